"""Every engine of every variant, and the steps behind them, timed in turns in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.bundles import CLOCK_SPANS, OpenedEngine, check_logits, open_engines
from unetx_bench.environment import Environment
from unetx_bench.errors import MeasurementError
from unetx_bench.load import LoadMonitor
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Contender, MeasureOptions
from unetx_bench.quantiles import dependence_time, minimum_count
from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.engines import Built
from unetx_bench.reproduce.record import EngineLatency, Interval, StepLatency
from unetx_bench.reproduce.stages import Workplace
from unetx_bench.statistics import Estimate, quantile_interval, ratio_interval
from unetx_exporters.gate_images import image_sha256

if TYPE_CHECKING:
    from unetx_opt.imaging.preprocess import ImageGeometry

__all__ = ["CLOCK", "TimeSetting", "TimedRun", "estimate_engines", "estimate_step", "time_variants"]

#: What lies inside the clock.
CLOCK: Final = CLOCK_SPANS["engine"]
_STEP: Final = "step"


@dataclass(frozen=True, slots=True)
class TimeSetting:
    """How and where times are measured.

    Attributes
    ----------
    options : MeasureOptions
        When to stop; its ratios are set by `time_variants`.
    environment : Environment
        The machine.
    """

    options: MeasureOptions
    environment: Environment


@dataclass(frozen=True, slots=True)
class TimedRun:
    """Samples of one run; everything in it may be compared.

    Attributes
    ----------
    samples_ms : mapping of str to mapping of str to numpy.ndarray
        Variant -> engine, or "step" -> float64 (rounds,); the same index is the same round.
    facts : mapping of str to mapping of str to str
        Engine -> its precision, target and compute_dtype.
    left_out : mapping of str to mapping of str to str
        Variant -> engine -> why it was not timed.
    disturbances : tuple of str
        What else the machine did.
    stopped : str
        The rule that ended the run.
    """

    samples_ms: Mapping[str, Mapping[str, NDArray[np.float64]]]
    facts: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, Mapping[str, str]]
    disturbances: tuple[str, ...]
    stopped: str


@dataclass(frozen=True, slots=True)
class _Lane:
    """One contender, and whose it is."""

    variant: str
    engine: str
    contender: Contender


def time_variants(
    built: Mapping[str, Sequence[Built]],
    pixels: NDArray[Any],
    setting: TimeSetting,
    place: Workplace,
    tell: Callable[[str], None],
) -> TimedRun:
    """Time all engines, or take the run of the same bundles that is kept from this very machine.

    Parameters
    ----------
    built : mapping of str to sequence of Built
        Variant -> its bundles.
    pixels : numpy.ndarray
        (H, W) grey values of the one image that every engine is given.
    setting : TimeSetting
        When to stop, and on what machine this is.
    place : Workplace
        Where the samples are kept.
    tell : callable
        Told what is going on.

    Raises
    ------
    MeasurementError
        An engine gives NaN or Inf, or nothing can be timed.
    """
    key = {
        "bundles": {f"{name} {one.precision}": one.sha256 for name, rows in built.items() for one in rows},
        "options": dataclasses.asdict(setting.options),
        "image": image_sha256(pixels),
        "machine": _identify(setting.environment),
    }
    kept = place.recall("latency", key, lambda: _measure(built, pixels, setting.options, tell))
    samples = {
        name: MappingProxyType({engine: np.asarray(row) for engine, row in rows.items()})
        for name, rows in kept["samples_ms"].items()
    }
    return TimedRun(
        samples_ms=MappingProxyType(samples),
        facts=kept["facts"],
        left_out=kept["left_out"],
        disturbances=tuple(kept["disturbances"]),
        stopped=kept["stopped"],
    )


def _identify(environment: Environment) -> dict[str, Any]:
    """What makes times comparable: the host, its parts and the versions, and not the state of the moment."""
    facts = dataclasses.asdict(environment)
    for passing in ("state", "why_not"):
        facts.pop(passing)
    # The name itself is nobody's business: outputs are handed on.
    return facts | {"host": hashlib.sha256(platform.node().encode()).hexdigest()[:12]}


def _measure(
    built: Mapping[str, Sequence[Built]],
    pixels: NDArray[Any],
    options: MeasureOptions,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    facts: dict[str, dict[str, str]] = {}
    left_out: dict[str, dict[str, str]] = {name: {} for name in built}
    lanes: list[_Lane] = []
    with contextlib.ExitStack() as stack:
        for name, bundles in built.items():
            opened = []
            for one in bundles:
                found = stack.enter_context(open_engines(one.path, f"{name} {one.precision}"))
                left_out[name] |= {k: v for k, v in found.why_not.items() if not v.startswith("not built: not asked")}
                opened += [(one, engine) for engine in found.engines]
            for lane, fact in _engine_lanes(name, opened, pixels):
                facts[lane.engine] = fact
                lanes.append(lane)
            lanes += _step_lanes(name, [engine for _, engine in opened], pixels)
        ratios = _ratios(lanes)
        seconds = options.maximum_seconds
        tell(f"timing {len(lanes)} engines and steps in turns, at most {seconds:.0f} s and the warm-up")
        measured = measure_interleaved(
            [lane.contender for lane in lanes], dataclasses.replace(options, ratios=ratios), LoadMonitor()
        )
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in built}
    for lane in lanes:
        samples[lane.variant][lane.engine] = measured.samples_ms[lane.contender.name].tolist()
    return {
        "samples_ms": samples,
        "facts": facts,
        "left_out": left_out,
        "disturbances": list(measured.disturbances),
        "stopped": measured.stopped,
    }


def _engine_lanes(
    variant: str, opened: Sequence[tuple[Built, OpenedEngine]], pixels: NDArray[Any]
) -> Iterator[tuple[_Lane, dict[str, str]]]:
    """One lane for each kind of engine; of several of a kind the first, which the runtime takes too."""
    seen = set()
    for built, engine in opened:
        dtype = engine.session.compute_dtype
        label = f"{engine.record.target} {built.precision} ({dtype})"
        if label in seen:
            continue
        seen.add(label)
        image_nchw = _prepare(engine, pixels)[0][np.newaxis]
        lane = _Lane(variant, label, _engine_contender(f"{variant} {label}", engine, image_nchw))
        yield lane, {"precision": built.precision.value, "target": engine.record.target, "compute_dtype": dtype}


def _engine_contender(name: str, engine: OpenedEngine, image_nchw: NDArray[np.float32]) -> Contender:
    return Contender(name, lambda: engine.session.infer(image_nchw), check_logits)


def _step_lanes(variant: str, engines: Sequence[OpenedEngine], pixels: NDArray[Any]) -> list[_Lane]:
    """The step on the logits of the first engine: it depends on them, and hardly on who computed them."""
    if not engines or engines[0].segmenter.refiner is None:
        return []
    engine, refiner = engines[0], engines[0].segmenter.refiner
    image_chw, geometry = _prepare(engine, pixels)
    logits_chw = engine.session.infer(image_chw[np.newaxis])[0]
    call = Contender(f"{variant} {_STEP}", lambda: refiner.refine(logits_chw, image_chw, geometry))
    return [_Lane(variant, _STEP, call)]


def _prepare(engine: OpenedEngine, pixels: NDArray[Any]) -> tuple[NDArray[np.float32], ImageGeometry]:
    from unetx_opt.imaging.preprocess import prepare_image

    return prepare_image(pixels, engine.segmenter.contract)


def _ratios(lanes: Sequence[_Lane]) -> tuple[tuple[str, str], ...]:
    base = {lane.engine: lane.contender.name for lane in lanes if lane.variant == BASELINE}
    return tuple(
        (lane.contender.name, base[lane.engine])
        for lane in lanes
        if lane.variant != BASELINE and lane.engine in base and lane.engine != _STEP
    )


def estimate_engines(run: TimedRun, variant: str, *, comparable: bool) -> tuple[EngineLatency, ...]:
    """Estimate the times of a variant's engines.

    Parameters
    ----------
    run : TimedRun
        The samples.
    variant : str
        A variant of it.
    comparable : bool
        Whether the network has the baseline's width, depth and input; without that there are no ratios.
    """
    rows = run.samples_ms[variant]
    base = run.samples_ms.get(BASELINE, {}) if comparable and variant != BASELINE else {}
    step_ms = rows.get(_STEP)
    found = []
    for engine, samples_ms in rows.items():
        if engine == _STEP:
            continue
        whole_ms = None if step_ms is None else samples_ms + step_ms
        baseline_ms = base.get(engine)
        found.append(
            EngineLatency(
                engine=engine,
                **run.facts[engine],
                ms=_median(samples_ms),
                rounds=len(samples_ms),
                ratio=_ratio(samples_ms, baseline_ms),
                ms_with_step=None if whole_ms is None else _median(whole_ms),
                ratio_with_step=None if whole_ms is None else _ratio(whole_ms, baseline_ms),
            )
        )
    return tuple(found)


def estimate_step(run: TimedRun, variant: str, name: str | None) -> StepLatency | None:
    """Estimate the time of the step behind a variant's network; None where there is none."""
    samples_ms = run.samples_ms[variant].get(_STEP)
    if samples_ms is None or name is None:
        return None
    return StepLatency(name=name, ms=_median(samples_ms), rounds=len(samples_ms))


def _median(samples_ms: NDArray[np.float64]) -> Interval:
    if estimate := quantile_interval(samples_ms, 0.5):
        return _interval(estimate)
    median = float(np.median(samples_ms))
    return Interval(value=median, low=None, high=None, why=_why_no_interval(samples_ms, median))


def _why_no_interval(samples_ms: NDArray[np.float64], median_ms: float) -> str:
    if (count := len(samples_ms)) < minimum_count(0.5):
        return f"{count} rounds are too few"
    independent = int(count / dependence_time(samples_ms <= median_ms))
    return f"successive rounds are alike (autocorrelated): {count} count as {independent} independent ones, too few"


def _ratio(numerator_ms: NDArray[np.float64], denominator_ms: NDArray[np.float64] | None) -> Interval | None:
    if denominator_ms is None:
        return None
    try:
        return _interval(ratio_interval(numerator_ms, denominator_ms))
    except MeasurementError:  # the time was up after too few rounds for any interval
        return None


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)
