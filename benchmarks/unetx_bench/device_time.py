"""How long a GPU takes for what a call starts there, by its own clock and without the host's time.

A call is timed between two events. Before each there is work that fills the caches with other data and keeps the GPU
busy until the host has started the whole call: what is timed then follows without gaps, from memory that no cache
holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from unetx_opt.optional import require

__all__ = ["CACHES", "samples_ms"]

#: The state of the caches, for a record.
CACHES: Final = "before every call 1 GiB is written, which no level-2 cache holds"
WARM_UPS: Final = 10
SAMPLES: Final = 50
_FLUSHED_BYTES: Final = 2**30
_PURPOSE: Final = "a kernel benchmark"


def samples_ms(run: Callable[[], object], samples: int = SAMPLES) -> list[float]:
    """Time single calls on the current stream, in milliseconds."""
    torch = require("torch", purpose=_PURPOSE)
    for _ in range(WARM_UPS):
        run()
    other = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    flushes = _flushes_to_hide(_host_s(run), other)
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(samples)]
    for begin, end in events:
        for _ in range(flushes):
            other.zero_()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _host_s(run: Callable[[], object]) -> float:
    """Return the longest that the host took to start one of a few calls."""
    torch = require("torch", purpose=_PURPOSE)
    longest = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        longest = max(longest, time.perf_counter() - begin)
    torch.cuda.synchronize()
    return longest


def _flushes_to_hide(host_s: float, other: Any) -> int:
    torch = require("torch", purpose=_PURPOSE)
    other.zero_()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    other.zero_()
    torch.cuda.synchronize()
    return max(1, math.ceil(2 * host_s / (time.perf_counter() - begin)))
