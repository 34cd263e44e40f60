"""From measurements to the record that is written: rows, intervals, differences, claims."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_bench.environment import Environment
from unetx_bench.reproduce.accuracy import Scores, compare_variants, summarize_scores
from unetx_bench.reproduce.article import BASELINE, PRINTED
from unetx_bench.reproduce.claims import decide_claims
from unetx_bench.reproduce.latency import CLOCK, TimedRun, estimate_engines, estimate_step
from unetx_bench.reproduce.plan import Plan
from unetx_bench.reproduce.record import (
    DataRecord,
    Difference,
    GraphRecord,
    PrintedFigures,
    Reproduction,
    SeedFigures,
    SettingsRecord,
    VariantRecord,
)
from unetx_bench.reproduce.weights import Weights
from unetx_opt import __version__
from unetx_opt.models.variants import VARIANTS

__all__ = ["Measured", "assemble", "describe_device"]

_STOPPED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "precise": "every interval was narrow enough",
        "rounds": "the number of rounds was reached",
        "time": "the time was up before every interval was narrow",
    }
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the stages leave, by variant.

    Attributes
    ----------
    plan : Plan
        What was done.
    size_px : int
        Height and width of the networks' input.
    data : DataRecord
        The test images.
    environment : Environment
        The machine, before anything was timed.
    weights : mapping of str to Weights
        Of the variants that have any.
    missing : mapping of str to str
        Variant -> why there is nothing to show of it.
    graphs : mapping of str to GraphRecord
        Without the ratios to the baseline.
    scores : mapping of str to mapping of str to Scores
        Variant -> precision -> figures; the first precision is the network's own.
    steps : mapping of str to (str or None)
        Variant -> name of the step behind its network.
    left_out : mapping of str to mapping of str to str
        Variant -> what was not built or timed -> why.
    run : TimedRun
        The samples.
    seeds : mapping of str to SeedFigures
        Of further trainings, where given.
    """

    plan: Plan
    size_px: int
    data: DataRecord
    environment: Environment
    weights: Mapping[str, Weights]
    missing: Mapping[str, str]
    graphs: Mapping[str, GraphRecord]
    scores: Mapping[str, Mapping[str, Scores]]
    steps: Mapping[str, str | None]
    left_out: Mapping[str, Mapping[str, str]]
    run: TimedRun
    seeds: Mapping[str, SeedFigures]


def assemble(measured: Measured, seconds: float) -> Reproduction:
    """Make the record, its claims answered.

    Parameters
    ----------
    measured : Measured
        What the stages leave.
    seconds : float
        Duration of the run so far.
    """
    precision = next(iter(measured.scores[BASELINE]))
    paired = {name: rows[precision] for name, rows in measured.scores.items() if precision in rows}
    differences = compare_variants(paired)
    rows = tuple(_variant_record(name, measured, differences) for name in measured.plan.variants)
    plan = measured.plan
    settings = SettingsRecord(
        size_px=measured.size_px,
        quick=plan.options.quick,
        precisions=tuple(precision.value for precision in plan.precisions),
        targets=plan.targets,
        gate=plan.extent.gate or "strict, for int8 standard",
        cut=plan.cut,
        left_out=dict(plan.left_out),
        clock=CLOCK,
        stopped=_STOPPED.get(measured.run.stopped, measured.run.stopped),
    )
    return Reproduction(
        program="unetx-opt",
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(seconds, 1),
        device=describe_device(measured.environment),
        environment=dataclasses.asdict(measured.environment),
        disturbances=measured.run.disturbances,
        data=measured.data,
        settings=settings,
        variants=rows,
        claims=decide_claims(rows, measured.data),
    )


def describe_device(environment: Environment) -> str:
    """Name the device in one line."""
    cores = len(environment.usable_cpus) or environment.cores
    memory = f"{environment.memory_bytes / 2**30:.0f} GiB"
    gpu = f"GPU {environment.gpu}" if environment.gpu else "no GPU"
    return f"{environment.cpu}, {cores} processors, {memory}, {gpu}, {environment.system} {environment.machine}"


def _variant_record(
    name: str, measured: Measured, differences: Mapping[str, tuple[Difference, ...]]
) -> VariantRecord:
    printed = PRINTED.get(name)
    weights = measured.weights.get(name)
    row = VariantRecord(
        name=name,
        summary=VARIANTS[name].summary,
        missing=measured.missing.get(name),
        printed=None if printed is None else PrintedFigures(**dataclasses.asdict(printed)),
        weights=None if weights is None else weights.record,
        seeds=measured.seeds.get(name),
    )
    if row.missing is not None:
        return row
    graph, base = measured.graphs[name], measured.graphs[BASELINE]
    comparable = (graph.width, graph.depth) == (base.width, base.depth)
    scores = {precision: summarize_scores(found) for precision, found in measured.scores[name].items()}
    # Accuracies stand side by side, and are subtracted, at the baseline's precision alone.
    precision = next(iter(measured.scores[BASELINE]))
    left_out = dict(measured.left_out[name])
    if precision not in scores:
        told = " and ".join(scores) or "no precision"
        left_out["accuracy"] = f"scored at {told} and {BASELINE} at {precision}: accuracies are not compared"
    update = {
        "graph": _with_ratios(graph, base) if comparable else graph,
        "scores": scores.get(precision, {}),
        "scores_by_precision": scores,
        "differences": differences.get(name, ()),
        "latencies": estimate_engines(measured.run, name, comparable=comparable),
        "step": estimate_step(measured.run, name, measured.steps[name]),
        "left_out": left_out,
    }
    return row.model_copy(update=update)


def _with_ratios(graph: GraphRecord, base: GraphRecord) -> GraphRecord:
    return graph.model_copy(
        update={"flop_ratio": graph.flop / base.flop, "bytes_ratio": graph.bytes_moved / base.bytes_moved}
    )
