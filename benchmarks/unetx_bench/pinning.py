"""Processors that a measurement may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from unetx_bench.errors import MeasurementError

__all__ = ["pinned"]

_TASKS: Final = Path("/proc/self/task")


@contextlib.contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[tuple[int, ...]]:
    """Keep this process on some processors for a while; engines must be opened inside, so that their threads follow.

    Parameters
    ----------
    cpus : sequence of int or None
        Numbers of the processors; None changes nothing.

    Yields
    ------
    tuple of int
        The processors that are used; empty where the system does not tell.

    Raises
    ------
    MeasurementError
        The system cannot pin, or has no such processor.
    """
    if not hasattr(os, "sched_setaffinity"):
        if cpus is not None:
            raise MeasurementError("this system cannot pin a process to processors: measure without --cpu")
        yield ()
        return
    before = os.sched_getaffinity(0)
    if cpus is not None and (not cpus or not set(cpus) <= before):
        raise MeasurementError(f"processors {list(cpus)} were asked for, this process may use {sorted(before)}")
    _move(before if cpus is None else set(cpus))
    try:
        yield tuple(sorted(os.sched_getaffinity(0)))
    finally:
        _move(before)


def _move(cpus: set[int]) -> None:
    """Move every thread of this process: a thread pool that already runs would stay where it is otherwise."""
    threads = [int(path.name) for path in _TASKS.iterdir()] if _TASKS.is_dir() else [0]
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, cpus)
