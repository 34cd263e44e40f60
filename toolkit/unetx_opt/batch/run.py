"""A batch from its folders to its table."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import unetx_opt
from unetx_opt.batch.journal import Journal
from unetx_opt.batch.listing import check_inputs, list_inputs
from unetx_opt.batch.plan import Plan
from unetx_opt.batch.pool import segment_tasks
from unetx_opt.batch.settings import BatchSettings, EngineFacts, Task
from unetx_opt.batch.table import TABLE_NAME, write_table
from unetx_opt.batch.worker import SegmentWorker
from unetx_opt.files import sweep_abandoned

__all__ = ["BatchResult", "Runner", "Watcher", "local_runner", "run_batch"]

Runner = Callable[[BatchSettings, EngineFacts, SegmentWorker, Iterator[Task]], Iterator[dict[str, Any]]]


class Watcher(Protocol):
    """Who is told how a batch goes."""

    def begin(self, facts: EngineFacts, total: int, done: int) -> None:
        """Hear what runs, how many inputs there are, and how many an earlier run has done."""

    def advance(self, row: Mapping[str, Any]) -> None:
        """Hear what became of one input."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch came to.

    Attributes
    ----------
    facts : EngineFacts
        What segmented.
    total, resumed, failed : int
        Inputs; those that an earlier run had done; those without a result, with `first_failed` as an example.
    table, journal : pathlib.Path
        What became of each.
    """

    facts: EngineFacts
    total: int
    resumed: int
    failed: int
    first_failed: str | None
    table: Path
    journal: Path


def run_batch(
    settings: BatchSettings, inputs: Sequence[Path], runner: Runner, watcher: Watcher, *, resume: bool
) -> BatchResult:
    """Segment files and folders with all that is below them, and write a table of what became of each.

    Parameters
    ----------
    settings : BatchSettings
        What is done with each.
    inputs : sequence of pathlib.Path
        PNG or DICOM files, or folders of them.
    runner : callable
        What distributes the work: `local_runner`, or `unetx_opt.batch.cluster.ray_runner`.
    watcher : Watcher
        Told of every input.
    resume : bool
        Go on with what an earlier run left in the output folder.

    Raises
    ------
    UnetxError
        The bundle cannot be opened, the output folder is in use or of another batch, or lies around an input. What
        is wrong with one input is in its row, and stops nothing.
    """
    output = settings.plan.folder
    check_inputs(inputs, output)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(SegmentWorker(settings))
        facts = first.open()
        journal = stack.enter_context(Journal(output, resume=resume))
        journal.begin(_request(settings, facts))
        plan = stack.enter_context(Plan())
        plan.add(list_inputs(inputs, output))
        plan.recall(journal.entries(), output)
        plan.name_results()
        _sweep(output)
        total, done = plan.count()
        watcher.begin(facts, total, done)
        for row in runner(settings, facts, first, plan.pending()):
            journal.append(row)
            plan.record(row)
            watcher.advance(row)
        write_table(output / TABLE_NAME, plan.rows(), settings.plan.formats, facts.label_names[1:])
        failed, first_failed = _count_failed(plan)
        return BatchResult(facts, total, done, failed, first_failed, output / TABLE_NAME, journal.path)


def local_runner(workers: int) -> Runner:
    """Return a runner with so many processes on this machine."""

    def run(
        settings: BatchSettings, facts: EngineFacts, first: SegmentWorker, tasks: Iterator[Task]
    ) -> Iterator[dict[str, Any]]:
        chosen = dataclasses.replace(settings, target=facts.target)
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(SegmentWorker(chosen, facts)) for _ in range(workers - 1)]
            yield from segment_tasks([first, *others], tasks)

    return run


def _request(settings: BatchSettings, facts: EngineFacts) -> dict[str, Any]:
    """What a batch that goes on must have in common with the one before."""
    plan = settings.plan
    return {
        "version": unetx_opt.__version__,
        "bundle": facts.bundle_sha256,
        "target": facts.target,
        "arithmetic": facts.compute_dtype,
        "format": plan.formats,
        "seg-kind": plan.seg_kind,
        "stable-uids": plan.stable_uids,
        "force": plan.force,
        "udi": plan.udi,
    }


def _sweep(output: Path) -> None:
    for folder, _, _ in os.walk(output):
        sweep_abandoned(Path(folder))


def _count_failed(plan: Plan) -> tuple[int, str | None]:
    failed, first = 0, None
    for row in plan.rows():
        if row["status"] == "failed":
            failed, first = failed + 1, first or str(row["input"])
    return failed, first
