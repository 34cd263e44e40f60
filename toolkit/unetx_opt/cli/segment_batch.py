"""`unetx-opt segment` with workers: how a batch is asked for, how it goes, and what it came to."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from unetx_opt.batch.settings import BatchSettings, EngineFacts, share_threads
from unetx_opt.cli.output import echo_json, note, progress
from unetx_opt.errors import UnetxError

if TYPE_CHECKING:
    from rich.progress import Progress

    from unetx_opt.batch.run import BatchResult, Runner

__all__ = ["Distribution", "segment_batch"]

#: Between two lines about how far it is, where stderr is no terminal.
_NOTE_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where a batch runs.

    Attributes
    ----------
    workers : int or None
        Processes; one where it is not said.
    resume : bool
        Go on with an earlier run.
    ray_address : str or None
        Of a Ray cluster; None is this machine without Ray.
    """

    workers: int | None
    resume: bool
    ray_address: str | None


def segment_batch(
    settings: BatchSettings, inputs: tuple[Path, ...], distribution: Distribution, *, as_json: bool
) -> None:
    """Run a batch and print what it came to.

    Raises
    ------
    UnetxError
        As `unetx_opt.batch.run.run_batch`; or an input could not be segmented.
    """
    from unetx_opt.batch.run import run_batch

    workers = distribution.workers or 1
    plan = replace(settings.plan, folder=settings.plan.folder.absolute(), swept=True)
    keys = tuple(path.absolute() for path in settings.public_keys)
    settings = replace(settings, plan=plan, public_keys=keys)
    if distribution.ray_address is None:
        settings = share_threads(settings, workers)
    else:  # a worker of a cluster takes what it is given, one processor unless it is told otherwise
        settings = replace(settings, threads=settings.threads or 1)
    with _watch(quiet=as_json) as watcher:
        result = run_batch(settings, inputs, _runner(distribution, workers), watcher, resume=distribution.resume)
    _print(result, settings, as_json=as_json)
    if result.failed:
        raise UnetxError(
            f"{result.failed} of {result.total} inputs could not be segmented, beginning with "
            f"{result.first_failed}: each is in {result.table} with the reason"
        )


def _runner(distribution: Distribution, workers: int) -> Runner:
    from unetx_opt.batch.cluster import ray_runner
    from unetx_opt.batch.run import local_runner

    if distribution.ray_address is None:
        return local_runner(workers)
    return ray_runner(distribution.ray_address, workers)


def _print(result: BatchResult, settings: BatchSettings, *, as_json: bool) -> None:
    segmented = result.total - result.failed
    if not as_json:
        resumed = f", {result.resumed} of them before" if result.resumed else ""
        click.echo(f"{result.table}: {segmented} of {result.total} inputs segmented{resumed}")
        return
    facts = result.facts
    echo_json(
        {
            "bundle": settings.bundle,
            "target": facts.target,
            "compute_dtype": facts.compute_dtype,
            "passed_over": facts.passed_over,
            "inputs": result.total,
            "segmented": segmented,
            "resumed": result.resumed,
            "failed": result.failed,
            "table": result.table,
            "journal": result.journal,
        }
    )


@contextlib.contextmanager
def _watch(*, quiet: bool) -> Iterator[_Display]:
    with progress(enabled=not quiet) as bars:
        yield _Display(bars)


class _Display:
    """Tells on stderr how a batch goes: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._bar = bars.add_task("segmenting", total=None)
        self._total = self._done = self._failed = 0
        self._noted = time.monotonic()

    def begin(self, facts: EngineFacts, total: int, done: int) -> None:
        note(f"engine: {facts.target}, computes {facts.compute_dtype}")
        for engine, reason in facts.passed_over.items():
            note(f"not used: {engine}: {reason}")
        if done:
            note(f"{done} of {total} inputs were done before")
        self._total, self._done = total, done
        self._bars.update(self._bar, total=total, completed=done)

    def advance(self, row: Mapping[str, Any]) -> None:
        self._done += 1
        for reason in row.get("forced") or ():
            note(f"forced: {row['input']}: {reason}")
        if row["status"] == "failed":
            self._failed += 1
            reason = str(row["reason"])
            note(f"error: {reason}" if str(row["input"]) in reason else f"error: {row['input']}: {reason}")
        self._bars.advance(self._bar)
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._noted >= _NOTE_EVERY_S:
            self._noted = now
            note(f"{self._done} of {self._total} inputs done, {self._failed} failed")
