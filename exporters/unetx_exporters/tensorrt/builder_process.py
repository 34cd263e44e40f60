"""The process that builds one plan: ``python -m unetx_exporters.tensorrt.builder_process`` in an empty directory.

A process of its own, because TensorRT's parser can abort, and because a plan of TensorRT-RTX is the same byte for
byte only when it is the first that a process builds. It reads the order from ``order.json`` in its working directory
and leaves ``result.json`` there. Exit code 0: built; 1: refused, and the result says why; anything else: the
process broke.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from unetx_exporters.tensorrt.plan import PlanOrder, build_plan
from unetx_opt.errors import UnetxError
from unetx_opt.optional import require

__all__ = ["MODULE", "ORDER_NAME", "RESULT_NAME", "main", "order_from_json", "order_to_json"]

MODULE: Final = "unetx_exporters.tensorrt.builder_process"
ORDER_NAME: Final = "order.json"
RESULT_NAME: Final = "result.json"
_FIXED: Final = "--fixed-addresses"
#: Packages whose plan depends on the graph alone; TensorRT's depends on what it measures on the GPU.
_REPRODUCIBLE: Final = frozenset({"tensorrt_rtx"})
_ADDR_NO_RANDOMIZE: Final = 0x0040000  # <sys/personality.h>
_NO_THREAD_CACHES: Final = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def order_to_json(order: PlanOrder) -> str:
    """Write an order as the text of ``order.json``."""
    return json.dumps(dataclasses.asdict(order))


def order_from_json(text: str) -> PlanOrder:
    """Read the text of ``order.json``; it comes from the process that started this one."""
    raw: dict[str, Any] = json.loads(text)
    return PlanOrder(**{**raw, "compute_capabilities": tuple(raw["compute_capabilities"])})


def main(argv: list[str]) -> int:
    """Build what the working directory asks for.

    Parameters
    ----------
    argv : list of str
        Arguments of the process, without its name.

    Returns
    -------
    int
        Its exit code.
    """
    started = time.perf_counter()
    try:
        order = order_from_json(Path(ORDER_NAME).read_text(encoding="utf-8"))
        if order.package in _REPRODUCIBLE and _FIXED not in argv:
            _restart_at_fixed_addresses()
        result = _build(order)
    except UnetxError as error:
        result = {"error": str(error)}
    result["seconds"] = round(time.perf_counter() - started, 3)
    Path(RESULT_NAME).write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


def _build(order: PlanOrder) -> dict[str, Any]:
    trt = require(order.package, purpose="building this engine")
    cache = Path(order.timing_cache) if order.timing_cache else None
    known = cache.read_bytes() if cache is not None and cache.exists() else None
    built = build_plan(trt, order, Path(order.plugin_graph or order.graph).read_bytes(), known)
    Path(order.plan).write_bytes(built.plan)
    if cache is not None and built.timing_cache is not None:
        cache.write_bytes(built.timing_cache)
    return {"version": str(trt.__version__), "reports": [list(report) for report in built.reports]}


def _restart_at_fixed_addresses() -> None:
    """Start this program again so that it lays out its memory in the same way each time, where that can be had.

    The builder orders some of its data by address. Addresses depend on their randomisation by the system, on
    which of the builder's threads is first, and on which thread keeps what it has freed for itself; the same
    graph then gives plans that differ in their bytes. Where the system refuses (some containers, other systems)
    the plan is as good, only not the same.
    """
    if sys.platform != "linux":
        return
    try:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        # A thread that wakes up does not interrupt the one that runs.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        library = ctypes.CDLL(None)
        current = library.personality(0xFFFFFFFF)
        if current < 0 or library.personality(current | _ADDR_NO_RANDOMIZE) < 0:
            return
    except (OSError, AttributeError):
        return
    # -P as the parent gave it: the working directory is no place to import from.
    command = [sys.executable, "-P", "-m", MODULE, _FIXED]
    os.execve(sys.executable, command, {**os.environ, "GLIBC_TUNABLES": _NO_THREAD_CACHES})  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
