"""The whole reproduction: weights, bundles, accuracy, times; every stage is kept when it is done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from unetx_bench.environment import capture_environment
from unetx_bench.reproduce.accuracy import Scores, score_bundle
from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.assembly import Measured, assemble
from unetx_bench.reproduce.engines import Built, build_variant, graph_facts
from unetx_bench.reproduce.identity import identify_folder
from unetx_bench.reproduce.images import ImageChoice, TestImages, open_images
from unetx_bench.reproduce.latency import TimedRun, TimeSetting, time_variants
from unetx_bench.reproduce.plan import DEFAULT_SIZE_PX, Plan, ReproduceOptions, make_plan
from unetx_bench.reproduce.publish import discard_work
from unetx_bench.reproduce.record import GraphRecord, Reproduction
from unetx_bench.reproduce.stages import WORK_NAME, Workplace
from unetx_bench.reproduce.weights import Weights, find_weights, read_seeds
from unetx_opt.errors import SpecError, UnetxError
from unetx_opt.runtime.host import probe_host

__all__ = ["reproduce"]

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for every variant."""

    plan: Plan
    images: TestImages
    size_px: int
    place: Workplace
    tell: Tell


@dataclass(slots=True)
class _Row:
    """What the stages leave of one variant."""

    graph: GraphRecord | None = None
    built: list[Built] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def reproduce(options: ReproduceOptions, tell: Tell = lambda text: None) -> tuple[Reproduction, TimedRun]:
    """Measure every variant, and answer the article's claims.

    Parameters
    ----------
    options : ReproduceOptions
        What is asked for.
    tell : callable
        Told what is going on, line by line.

    Returns
    -------
    tuple
        What was measured and what follows, and the raw samples of the times.

    Raises
    ------
    UnetxError
        The baseline cannot be measured, or the data cannot be read. Any other variant that fails is a row of the
        result that says why.
    """
    started = time.monotonic()
    plan = make_plan(options, probe_host())
    seeds = read_seeds(options.seeds)
    environment = capture_environment()
    weights, absent = find_weights(plan, tell)
    setting = _prepare(plan, weights[BASELINE], tell)
    if options.overwrite:  # only now: nothing is lost by a command that could not have begun
        discard_work(options.output)
    rows = {name: _measure_variant(name, found, setting) for name, found in weights.items()}
    missing = dict(absent) | {name: _reasons(row) for name, row in rows.items() if not row.built}
    if BASELINE in missing:
        raise UnetxError(f"the baseline cannot be measured: {missing[BASELINE]}")
    kept = {name: row for name, row in rows.items() if name not in missing}
    built = {name: row.built for name, row in kept.items()}
    timing = TimeSetting(plan.measure, environment)
    run = time_variants(built, setting.images.read(0)[0], timing, setting.place, tell)
    measured = Measured(
        plan=plan,
        size_px=setting.size_px,
        data=setting.images.record,
        environment=environment,
        weights=weights,
        missing=missing,
        graphs={name: row.graph for name, row in kept.items() if row.graph is not None},
        scores={name: row.scores for name, row in kept.items()},
        steps={name: row.built[0].step for name, row in kept.items()},
        left_out={name: row.left_out | dict(run.left_out[name]) for name, row in kept.items()},
        run=run,
        seeds=seeds,
    )
    return assemble(measured, time.monotonic() - started), run


def _prepare(plan: Plan, baseline: Weights, tell: Tell) -> _Setting:
    options = plan.options
    default = DEFAULT_SIZE_PX if options.quick else baseline.record.trained_size_px or DEFAULT_SIZE_PX
    size_px = options.size_px or default
    if size_px % baseline.divisor:
        nearest = max(1, round(size_px / baseline.divisor)) * baseline.divisor
        raise SpecError(
            f"size {size_px} is not a multiple of {baseline.divisor}, as the baseline needs: try {nearest}"
        )
    choice = ImageChoice(options.data, plan.image_limit, plan.extent.phantoms, size_px, options.partial)
    images = open_images(choice, baseline.label_count)
    if plan.build_data is not None:
        plan = dataclasses.replace(plan, data_identity=identify_folder(plan.build_data))
    tell(f"{len(plan.variants)} variants at {size_px} x {size_px} pixels, {images.record.note}")
    return _Setting(plan, images, size_px, Workplace(options.output / WORK_NAME), tell)


def _measure_variant(name: str, weights: Weights, setting: _Setting) -> _Row:
    """Build, score and count one variant; what fails is left out with its reason."""
    row = _Row()
    for precision in setting.plan.precisions:
        try:
            built = build_variant(name, precision, weights, setting.plan, setting.size_px, setting.tell)
            if setting.plan.extent.every_precision or not row.scores:
                label = f"{name}-{precision}"
                row.scores[precision.value] = score_bundle(label, built, setting.images, setting.place, setting.tell)
            row.built.append(built)
        except UnetxError as error:
            row.left_out[precision.value] = str(error)
            setting.tell(f"left out: {name} {precision}: {error}")
    try:
        if row.built:
            row.graph = graph_facts(name, weights, row.built, setting.size_px, setting.place)
    except UnetxError as error:  # without its graph, nothing that was measured can be judged
        row.built.clear()
        row.left_out["graph"] = str(error)
    return row


def _reasons(row: _Row) -> str:
    return "; ".join(f"{what}: {reason}" for what, reason in row.left_out.items())
