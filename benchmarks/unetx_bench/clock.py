"""Clocks: how long one call took, and what the clock itself costs.

A clock is a row. `MONOTONIC` reads the host's monotonic clock around the call, which must not return before its work
is done. `CUDA_EVENTS` lets the GPU stamp the begin and the end of what a call enqueues on PyTorch's current stream;
the host's part before the first kernel is then outside the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from unetx_bench.errors import MeasurementError
from unetx_opt.optional import find, require

__all__ = ["CLOCKS", "Clock", "ClockFigures", "count_interruptions", "get_clock", "measure_clock"]

Call = Callable[[], object]

_READINGS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Clock:
    """One way to time a call.

    Attributes
    ----------
    name : str
        Key of `CLOCKS`.
    describes : str
        What lies inside its two readings.
    why_not : callable
        No arguments; gives the reason why it cannot be read here, or None.
    time_ns : callable
        Runs a call once and gives its duration in nanoseconds.
    """

    name: str
    describes: str
    why_not: Callable[[], str | None]
    time_ns: Callable[[Call], int]


@dataclass(frozen=True, slots=True)
class ClockFigures:
    """What the host's clock costs and can tell apart, measured now.

    Attributes
    ----------
    readings : int
        Pairs of successive readings.
    overhead_ns : float
        Median difference of two successive readings: what every sample holds besides the call.
    resolution_ns : int
        Smallest difference above 0 that was seen.
    """

    readings: int
    overhead_ns: float
    resolution_ns: int


def measure_clock(readings: int = _READINGS, read_ns: Callable[[], int] = time.perf_counter_ns) -> ClockFigures:
    """Measure the host's clock by reading it twice in succession, many times.

    Parameters
    ----------
    readings : int
        Pairs of readings, at least 1.
    read_ns : callable
        The clock, in nanoseconds.

    Raises
    ------
    MeasurementError
        The clock never advanced, or went backwards.
    """
    differences = np.empty(readings, dtype=np.int64)
    for index in range(readings):
        start = read_ns()
        differences[index] = read_ns() - start
    if differences.min() < 0:
        raise MeasurementError(f"the clock went back by {-int(differences.min())} ns: no duration can be measured")
    above = differences[differences > 0]
    if not len(above):
        raise MeasurementError(
            f"the clock did not advance in {readings} readings: no short duration can be measured with it"
        )
    return ClockFigures(readings, float(np.median(differences)), int(above.min()))


def count_interruptions() -> int:
    """Count how often the system took a processor from this process so far; 0 where it does not count that."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _time_on_host(call: Call) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def _why_not_cuda_events() -> str | None:
    if not find("torch"):
        return "the package torch is not installed: run pip install 'unetx-opt[export]'"
    torch = require("torch", purpose="timing with CUDA events")
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None


def _time_on_gpu(call: Call) -> int:
    torch = require("torch", purpose="timing with CUDA events")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return round(float(start.elapsed_time(end)) * 1e6)


#: Clock by name.
CLOCKS: Final[Mapping[str, Clock]] = MappingProxyType(
    {
        clock.name: clock
        for clock in (
            Clock(
                "monotonic",
                "the host's monotonic clock, read before the call and after it has returned",
                lambda: None,
                _time_on_host,
            ),
            Clock(
                "cuda-events",
                "two events on PyTorch's current CUDA stream, stamped by the GPU",
                _why_not_cuda_events,
                _time_on_gpu,
            ),
        )
    }
)


def get_clock(name: str) -> Clock:
    """Look up a clock that can be read here.

    Raises
    ------
    MeasurementError
        There is no such clock, or it cannot be read on this machine.
    """
    if name not in CLOCKS:
        raise MeasurementError(f"unknown clock {name!r}, expected one of {', '.join(CLOCKS)}")
    reason = CLOCKS[name].why_not()
    if reason is not None:
        raise MeasurementError(f"the clock {name} cannot be read here: {reason}")
    return CLOCKS[name]
