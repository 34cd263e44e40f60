"""The five claims, answered from the measured figures and from nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_bench.reproduce.article import BASELINE, CLAIMS, PRINTED, printed_error_share
from unetx_bench.reproduce.record import (
    ClaimRecord,
    DataRecord,
    Difference,
    EngineLatency,
    Finding,
    Interval,
    VariantRecord,
    Verdict,
)
from unetx_bench.reproduce.verdicts import LESS, Effect, combine, decide_absence, decide_effect, decide_seeds, widen

__all__ = ["decide_claims"]

_ACCURACY: Final = "accuracy"
_SINGLE: Final = ("focal", "attention", "dilated", "crf")


@dataclass(frozen=True, slots=True)
class _Measured:
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

    def difference(self, first: str, second: str) -> Difference | None:
        row = self.variants[first]
        found = (d for d in row.differences if d.minus == second and d.figure == _ACCURACY)
        return next(found, None)

    def latencies(self, name: str) -> Mapping[str, EngineLatency]:
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


def decide_claims(variants: Sequence[VariantRecord], data: DataRecord) -> tuple[ClaimRecord, ...]:
    """Answer every claim.

    Parameters
    ----------
    variants : sequence of VariantRecord
        What was measured; variants that are missing make their claims not decidable.
    data : DataRecord
        What the accuracy was measured on; from phantoms no accuracy is claimed.

    Returns
    -------
    tuple of ClaimRecord
        C1 to C5. A claim without any finding that decides is not decidable.
    """
    measured = _Measured({row.name: row for row in variants}, data)
    return tuple(_answer(claim_id, decide(measured)) for claim_id, decide in _DECISIONS.items())


def _answer(claim_id: str, findings: Sequence[Finding]) -> ClaimRecord:
    claim = CLAIMS[claim_id]
    deciding = [finding for finding in findings if finding.verdict is not None]
    verdict = combine(finding.verdict for finding in deciding if finding.verdict is not None)
    return ClaimRecord(
        id=claim.id,
        claim=claim.text,
        remark=claim.remark,
        rule=claim.rule,
        verdict=verdict,
        reason=_reason(verdict, deciding),
        findings=tuple(findings),
    )


def _reason(verdict: Verdict, deciding: Sequence[Finding]) -> str:
    """Name the clearest finding that decides, and how many parts there are of each answer."""
    told = [finding for finding in deciding if finding.verdict is verdict]
    if not told:
        return "Nothing was measured that decides it."
    clearest = told[0] if verdict is Verdict.NOT_DECIDABLE else max(told, key=_clarity)
    first = f"{clearest.subject}: {clearest.note or _in_words(clearest)}"
    if len(deciding) == 1:
        return first
    counts = Counter(finding.verdict for finding in deciding)
    parts = ", ".join(f"{counts[answer]} {answer}" for answer in Verdict if counts[answer])
    return f"{first}. Of {len(deciding)} parts: {parts}"


def _clarity(finding: Finding) -> float:
    """How far an interval lies from no effect, in half widths; what is no interval is as clear as can be."""
    interval = finding.judged or finding.estimate
    if interval is None or interval.low is None or interval.high is None or finding.null is None:
        return math.inf
    half = (interval.high - interval.low) / 2
    return abs((interval.high + interval.low) / 2 - finding.null) / half if half else math.inf


def _in_words(finding: Finding) -> str:
    estimate = finding.estimate
    if estimate is None or estimate.low is None or estimate.high is None:
        return "no interval"
    form = "{:+.5f}" if finding.unit == _ACCURACY else "{:.3f}"
    value, low, high = (form.format(number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}, 95 % CI {low} to {high}"


def _told(subject: str, note: str, verdict: Verdict) -> Finding:
    """Make a finding that is no figure."""
    return Finding(subject=subject, estimate=None, unit="", null=None, printed=None, verdict=verdict, note=note)


def _undecided(subject: str, note: str) -> Finding:
    return _told(subject, note, Verdict.NOT_DECIDABLE)


def _accuracy_finding(
    measured: _Measured, pair: tuple[str, str], decide: Callable[[Effect], Verdict], share: float | None
) -> Finding:
    """Compare two variants; `share` is the printed gain as a share of the baseline's errors."""
    first, second = pair
    subject = f"pixel accuracy, {first} minus {second}"
    absent = measured.present(first, second)
    difference = None if absent else measured.difference(first, second)
    if difference is None:
        return _undecided(subject, absent or "no paired difference was measured")
    estimate = Interval(value=difference.mean, low=difference.low, high=difference.high)
    printed = None
    if share is not None:
        printed = share * (1.0 - measured.variants[second].scores[_ACCURACY].mean)
    is_phantom = measured.data.kind == "phantom"
    verdict = decide(Effect(estimate, 0.0, printed, raises=True))
    return Finding(
        subject=subject,
        estimate=estimate,
        unit="accuracy",
        null=0.0,
        printed=printed,
        verdict=Verdict.NOT_DECIDABLE if is_phantom else verdict,
        note="measured on phantoms, from which no accuracy is claimed" if is_phantom else "",
    )


def _seed_findings(measured: _Measured, first: str, second: str) -> list[Finding]:
    """Nothing where no seeds were given."""
    if measured.present(first, second):
        return []
    seeds = [measured.variants[name].seeds for name in (first, second)]
    values = [sorted(s.figures.get(_ACCURACY, {}).values()) if s is not None else [] for s in seeds]
    if not all(values):
        return []
    shown = " against ".join(f"{row[0]:.4f} to {row[-1]:.4f} ({len(row)} seeds)" for row in values)
    return [_told(f"accuracy of all seeds, {first} against {second}", shown, decide_seeds(*values))]


def _operations_finding(measured: _Measured, name: str) -> Finding:
    subject = f"operations, {name} to {BASELINE}"
    absent = measured.present(name, BASELINE)
    graph = None if absent else measured.variants[name].graph
    base = None if absent else measured.variants[BASELINE].graph
    if graph is None or base is None:
        return _undecided(subject, absent or "no graph was traced")
    if (graph.width, graph.depth) != (base.width, base.depth):
        return _undecided(subject, _unequal(graph.width, base.width))
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


def _time_findings(measured: _Measured, name: str, printed: float | None) -> list[Finding]:
    """Ratio of times to the baseline on every engine that both have, the step included where there is one."""
    subject = f"time, {name} to {BASELINE}"
    if absent := measured.present(name, BASELINE):
        return [_undecided(subject, absent)]
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
    return findings or [_undecided(subject, "no engine of both was timed at equal width, or in too few rounds")]


def _decide_focal_accuracy(measured: _Measured) -> list[Finding]:
    share = printed_error_share("focal")
    return [
        _accuracy_finding(measured, ("focal", BASELINE), decide_effect, share),
        *_seed_findings(measured, "focal", BASELINE),
    ]


def _decide_attention_time(measured: _Measured) -> list[Finding]:
    printed = PRINTED["attention"].latency_ms / PRINTED[BASELINE].latency_ms
    return [_operations_finding(measured, "attention"), *_time_findings(measured, "attention", printed)]


def _decide_focal_time(measured: _Measured) -> list[Finding]:
    subject = f"graphs without weights, focal and {BASELINE}"
    if absent := measured.present("focal", BASELINE):
        return [_undecided(subject, absent)]
    graph, base = measured.variants["focal"].graph, measured.variants[BASELINE].graph
    if graph is None or base is None:
        return [_undecided(subject, "no graph was traced")]
    if graph.structure_sha256 != base.structure_sha256:
        hashes = f"SHA-256 {graph.structure_sha256[:16]}... and {base.structure_sha256[:16]}... differ"
        return [_undecided(subject, hashes)]
    same = f"one and the same graph, SHA-256 {graph.structure_sha256[:16]}..., {graph.flop / 1e9:.3f} GFLOP"
    return [
        _told(subject, same, Verdict.NOT_REPRODUCED),
        *(
            finding.model_copy(update={"verdict": None, "judged": None, "note": "noise: the graphs are identical"})
            for finding in _time_findings(measured, "focal", None)
            if finding.estimate is not None
        ),
    ]


def _decide_resolution(measured: _Measured) -> list[Finding]:
    findings = []
    for name in ("dilated", "crf"):
        if absent := measured.present(name, BASELINE):
            findings.append(_undecided(f"accuracy and time, {name} to {BASELINE}", absent))
            continue
        share = printed_error_share(name)
        findings.append(_accuracy_finding(measured, (name, BASELINE), decide_absence, share))
        findings += _time_findings(measured, name, None)
    return findings


def _decide_combination(measured: _Measured) -> list[Finding]:
    if absent := measured.present("combined", BASELINE):
        return [_undecided("pixel accuracy, combined to the others", absent)]
    return [
        *(_accuracy_finding(measured, ("combined", other), decide_effect, None) for other in (BASELINE, *_SINGLE)),
        *_seed_findings(measured, "combined", BASELINE),
    ]


def _unequal(width: int, other: int) -> str:
    return f"the networks are not of equal shape (first-stage widths {width} and {other}): train them alike"


_DECISIONS: Final[Mapping[str, Callable[[_Measured], list[Finding]]]] = MappingProxyType(
    {
        "C1": _decide_focal_accuracy,
        "C2": _decide_attention_time,
        "C3": _decide_focal_time,
        "C4": _decide_resolution,
        "C5": _decide_combination,
    }
)
