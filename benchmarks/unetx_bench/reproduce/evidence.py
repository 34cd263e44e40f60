"""The findings that claims are decided by, each made of the measured figures and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.record import (
    DataRecord,
    Difference,
    EngineLatency,
    Finding,
    Interval,
    VariantRecord,
    Verdict,
)
from unetx_bench.reproduce.verdicts import (
    LEAST_IMAGES,
    LESS,
    SIGNIFICANCE,
    Effect,
    decide_effect,
    decide_seeds,
    widen,
)

__all__ = [
    "ACCURACY",
    "Evidence",
    "accuracy_finding",
    "operations_finding",
    "seed_findings",
    "tell",
    "tell_undecided",
    "time_findings",
]

#: The figure that the article's claims are about, and the unit of its findings.
ACCURACY: Final = "accuracy"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured: variants by name, and the images behind their accuracy."""

    variants: Mapping[str, VariantRecord]
    data: DataRecord

    def present(self, *names: str) -> str | None:
        """Say which of some variants is missing, or None where all are there."""
        for name in names:
            row = self.variants.get(name)
            if row is None or row.missing is not None:
                reason = "it was not asked for" if row is None else row.missing
                return f"{name} was not measured: {reason}"
        return None

    def why_no_accuracy(self) -> str | None:
        """Say why no accuracy is claimed from the images, or None where it is."""
        if self.data.kind == "phantom":
            return "measured on phantoms, from which no accuracy is claimed"
        if self.data.images < LEAST_IMAGES:
            return f"measured on {self.data.images} images, and from fewer than {LEAST_IMAGES} no accuracy is claimed"
        return None

    def difference(self, first: str, second: str) -> Difference | None:
        """Difference in accuracy of two variants that are present."""
        row = self.variants[first]
        found = (d for d in row.differences if d.minus == second and d.figure == ACCURACY)
        return next(found, None)

    def why_no_difference(self, *names: str) -> str:
        """Say why variants that are present have no difference."""
        left_out = {name: self.variants[name].left_out for name in names}
        told = (f"{name} was {rows[ACCURACY]}" for name, rows in left_out.items() if ACCURACY in rows)
        return next(told, "no paired difference was measured")

    def latencies(self, name: str) -> Mapping[str, EngineLatency]:
        """Times of a variant that is present, by engine."""
        return {latency.engine: latency for latency in self.variants[name].latencies}

    def noise(self, engine: str) -> tuple[float, float]:
        """Lowest and highest ratio that engines of the baseline's very graph show: 1 and 1 where there is none."""
        base = self.variants[BASELINE].graph
        ratios = [
            latency.ratio
            for row in self.variants.values()
            if row.graph is not None and base is not None and row.graph.structure_sha256 == base.structure_sha256
            for latency in row.latencies
            if latency.engine == engine and latency.ratio is not None
        ]
        lows = [ratio.low for ratio in ratios if ratio.low is not None]
        highs = [ratio.high for ratio in ratios if ratio.high is not None]
        return min([1.0, *lows]), max([1.0, *highs])


def tell(subject: str, note: str, verdict: Verdict) -> Finding:
    """Make a finding that is no figure."""
    return Finding(subject=subject, estimate=None, unit="", null=None, printed=None, verdict=verdict, note=note)


def tell_undecided(subject: str, note: str) -> Finding:
    """Make a finding that leaves its claim open."""
    return tell(subject, note, Verdict.NOT_DECIDABLE)


def accuracy_finding(
    measured: Evidence, pair: tuple[str, str], decide: Callable[[Effect], Verdict], share: float | None
) -> Finding:
    """Compare two variants; `share` is the printed gain as a share of the baseline's errors."""
    first, second = pair
    subject = f"pixel accuracy, {first} minus {second}"
    absent = measured.present(first, second)
    difference = None if absent else measured.difference(first, second)
    if difference is None:
        return tell_undecided(subject, absent or measured.why_no_difference(*pair))
    estimate = Interval(value=difference.mean, low=difference.low, high=difference.high)
    printed = None
    if share is not None:
        printed = share * (1.0 - measured.variants[second].scores[ACCURACY].mean)
    is_found = (difference.p_value if difference.p_holm is None else difference.p_holm) < SIGNIFICANCE
    verdict = decide(Effect(estimate, 0.0, printed, raises=True, counts=is_found))
    refused = measured.why_no_accuracy()
    return Finding(
        subject=subject,
        estimate=estimate,
        unit="accuracy",
        null=0.0,
        printed=printed,
        verdict=verdict if refused is None else Verdict.NOT_DECIDABLE,
        note=refused or _describe_p_value(difference, is_found=is_found),
    )


def _describe_p_value(difference: Difference, *, is_found: bool) -> str:
    """Say what the interval alone would not tell: that it excludes 0 and is no difference all the same."""
    if is_found or difference.low <= 0 <= difference.high:
        return ""
    name, value = ("p", difference.p_value) if difference.p_holm is None else ("p (Holm)", difference.p_holm)
    return (
        f"the interval of {difference.mean:+.5f} excludes 0, but {name} is {value:.4f}: this counts as no difference"
    )


def seed_findings(measured: Evidence, first: str, second: str) -> list[Finding]:
    """Nothing where no seeds were given."""
    if measured.present(first, second):
        return []
    seeds = [measured.variants[name].seeds for name in (first, second)]
    values = [sorted(s.figures.get(ACCURACY, {}).values()) if s is not None else [] for s in seeds]
    if not all(values):
        return []
    refused = measured.why_no_accuracy()
    shown = " against ".join(f"{row[0]:.4f} to {row[-1]:.4f} ({len(row)} seeds)" for row in values)
    verdict = decide_seeds(*values) if refused is None else Verdict.NOT_DECIDABLE
    note = shown if refused is None else f"{shown}; {refused}"
    return [tell(f"accuracy of all seeds, {first} against {second}", note, verdict)]


def operations_finding(measured: Evidence, name: str) -> Finding:
    """Compare the operations of two graphs of equal shape."""
    subject = f"operations, {name} to {BASELINE}"
    absent = measured.present(name, BASELINE)
    graph = None if absent else measured.variants[name].graph
    base = None if absent else measured.variants[BASELINE].graph
    if graph is None or base is None:
        return tell_undecided(subject, absent or "no graph was traced")
    if (graph.width, graph.depth) != (base.width, base.depth):
        return tell_undecided(subject, _unequal(graph.width, base.width))
    ratio = graph.flop / base.flop
    return Finding(
        subject=subject,
        estimate=Interval(value=ratio, low=ratio, high=ratio),
        unit="ratio",
        null=1.0,
        printed=None,
        verdict=Verdict.REPRODUCED if graph.flop < base.flop else Verdict.NOT_REPRODUCED,
        note=f"{graph.flop / 1e9:.3f} against {base.flop / 1e9:.3f} GFLOP ({ratio - 1.0:+.1%})",
    )


def time_findings(measured: Evidence, name: str, printed: float | None) -> list[Finding]:
    """Ratio of times to the baseline on every engine that both have, the step included where there is one."""
    subject = f"time, {name} to {BASELINE}"
    if absent := measured.present(name, BASELINE):
        return [tell_undecided(subject, absent)]
    findings = []
    for engine, latency in measured.latencies(name).items():
        ratio = latency.ratio if measured.variants[name].step is None else latency.ratio_with_step
        if ratio is None:
            continue
        judged = widen(ratio, *measured.noise(engine))
        findings.append(
            Finding(
                subject=f"{subject}, {engine}",
                estimate=ratio,
                judged=judged,
                unit="ratio",
                null=LESS,
                printed=printed,
                verdict=decide_effect(Effect(judged, LESS, printed, raises=False)),
                note="",
            )
        )
    return findings or [tell_undecided(subject, "no engine of both was timed at equal width, or in too few rounds")]


def _unequal(width: int, other: int) -> str:
    return f"the networks are not of equal shape (first-stage widths {width} and {other}): train them alike"
