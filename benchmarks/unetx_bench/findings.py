"""From samples to statements: latencies with intervals, ratios within the run, and the answer in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unetx_bench.bundles import CLOCK_SPANS
from unetx_bench.candidates import TimedCall
from unetx_bench.measurement import Measurement
from unetx_bench.report import Candidate, Latency, Method, Ratio
from unetx_bench.request import BenchRequest
from unetx_bench.statistics import (
    DECISION_CONFIDENCE,
    DECISION_MARGIN,
    minimum_count,
    quantile_interval,
    same_or_different,
)

__all__ = ["answer", "latency_rows", "method", "ratio_pairs", "ratio_rows"]

_BASELINES = ("torch-eager", "torch-cuda-eager")


def ratio_pairs(calls: Sequence[TimedCall]) -> Iterator[tuple[str, str]]:
    """Name the ratios that the measurement shall know well: of every engine to PyTorch as it is, in its bundle."""
    for call in _plain(calls):
        for base in _baselines(calls, call.bundle):
            if call.candidate != base.candidate:
                yield call.contender.name, base.contender.name


def latency_rows(calls: Sequence[TimedCall], measured: Measurement, confidence: float) -> tuple[Latency, ...]:
    """Summarise every contender; a percentile without enough samples is None."""
    rows = []
    for call in calls:
        name = call.contender.name
        samples = measured.samples_ms[name]
        median, p90, p99 = (quantile_interval(samples, q, confidence) for q in (0.5, 0.9, 0.99))
        rows.append(
            Latency(
                contender=name,
                candidate=call.candidate,
                span=call.span,
                batch=call.batch,
                clock=call.contender.clock,
                first_call_ms=measured.warmup.first_call_ms[name],
                median_ms=median,
                p90_ms=p90,
                p99_ms=p99,
                least_ms=float(samples.min()),
                mean_ms=float(samples.mean()),
                interrupted=int(measured.interrupted[name].sum()),
                samples_ms=tuple(float(value) for value in samples),
            )
        )
    return tuple(rows)


def ratio_rows(calls: Sequence[TimedCall], measured: Measurement) -> tuple[Ratio, ...]:
    """Compare all pairs by the span "engine" and one image a call, each pair once."""
    if measured.rounds < minimum_count(0.5):
        return ()
    plain, rows = _plain(calls), []
    for index, numerator in enumerate(plain):
        for denominator in plain[index + 1 :]:
            names = numerator.contender.name, denominator.contender.name
            compared = same_or_different(*measured.paired(*names))
            rows.append(Ratio(numerator=names[0], denominator=names[1], comparison=compared))
    return tuple(rows)


def method(request: BenchRequest) -> Method:
    """State how it was measured."""
    options = request.measure
    return Method(
        rules={
            **{f"clock span {name}": text for name, text in CLOCK_SPANS.items()},
            "order": "all contenders once in each round, in an order drawn anew for each round",
            "warm-up": "rounds in windows of five, until no contender's median falls by more than 5 % from one "
            "window to the next, at least warmup_seconds",
            "stopping": "when every median and every ratio to PyTorch is known to +- half_width, or at "
            "maximum_seconds; looks at widths only",
            "quantiles": "order statistics; the number of samples is divided by the integrated autocorrelation time",
            "percentiles": "refused below MLPerf's early-stopping minimum: 64 samples for p90, 662 for p99",
            "ratios": "median over the rounds of the ratio within a round, exact binomial interval (sign test); of "
            "rounds in which the system interrupted neither call, where there are 30 of them",
            "settling": "before every call the harness sleeps for settle_s, or for idle_gap_s where that is longer",
            "caches": "not flushed between calls",
            "verification": "the first result of every contender is checked before it is timed",
            "disturbance": "other processes above 0.2 processors in a window of a second, time stolen by the "
            "hypervisor above 0.05, a change of the CPU's speed by more than 5 %, throttling",
        },
        confidence=options.confidence,
        half_width=options.half_width,
        decision_confidence=DECISION_CONFIDENCE,
        decision_margin=DECISION_MARGIN,
        maximum_seconds=options.maximum_seconds,
        settle_s=options.settle_s,
        idle_gap_s=options.idle_gap_s,
        threads=request.threads,
        pinned_cpus=request.cpus,
        seed=options.seed,
    )


def answer(
    calls: Sequence[TimedCall],
    latencies: Sequence[Latency],
    ratios: Sequence[Ratio],
    candidates: Sequence[Candidate],
    disturbances: Sequence[str],
) -> tuple[str, ...]:
    """Say for each bundle which engine is the fastest that passes the gate, and how it stands against PyTorch."""
    medians = {row.contender: row.median_ms for row in latencies}
    rows = {row.name: row for row in candidates}
    said = []
    for bundle in dict.fromkeys(call.bundle for call in calls):
        engines = [call for call in _plain(calls) if call.bundle == bundle and rows[call.candidate].kind == "engine"]
        sure = [call for call in engines if _passes(rows[call.candidate]) and medians[call.contender.name]]
        if not sure:
            said.append(f"{bundle}: {_why_none([rows[call.candidate] for call in engines])}.")
            continue
        best = min(sure, key=lambda call: _value(medians[call.contender.name]))
        median = medians[best.contender.name]
        assert median is not None  # noqa: S101  (sure ones have one)
        text = (
            f"{bundle}: the fastest engine that passes the drift gate is {best.candidate}, "
            f"median {median.value:.3g} ms ({median.low:.3g} to {median.high:.3g})"
        )
        said.append(text + "".join(_against(best, base, ratios) for base in _baselines(calls, bundle)) + ".")
    if disturbances:
        said.append(f"The run was disturbed, and its absolute figures are doubtful: {'; '.join(disturbances)}.")
    return tuple(said)


def _why_none(engines: Sequence[Candidate]) -> str:
    if engines and all(row.drift is None for row in engines):
        return "no engine is ranked, because drift was not measured"
    return "no engine both passed the drift gate and was measured long enough to be ranked"


def _against(best: TimedCall, base: TimedCall, ratios: Sequence[Ratio]) -> str:
    for row in ratios:
        compared = row.comparison
        factors = (compared.ratio.value, compared.ratio.low, compared.ratio.high)
        if (row.numerator, row.denominator) == (best.contender.name, base.contender.name):
            factors = (1 / compared.ratio.value, 1 / compared.ratio.high, 1 / compared.ratio.low)
        elif (row.denominator, row.numerator) != (best.contender.name, base.contender.name):
            continue
        return (
            f"; {factors[0]:.2f} times as fast as {base.candidate} "
            f"({factors[1]:.2f} to {factors[2]:.2f} at {compared.confidence:.0%} confidence)"
        )
    return ""


def _passes(row: Candidate) -> bool:
    return row.drift is not None and bool(row.drift.decision["passed"])


def _value(estimate: object) -> float:
    return float(getattr(estimate, "value", float("inf")))


def _plain(calls: Sequence[TimedCall]) -> list[TimedCall]:
    return [call for call in calls if call.span == "engine" and call.batch == 1]


def _baselines(calls: Sequence[TimedCall], bundle: str) -> list[TimedCall]:
    return [call for call in _plain(calls) if call.candidate in {f"{bundle} {name}" for name in _BASELINES}]
