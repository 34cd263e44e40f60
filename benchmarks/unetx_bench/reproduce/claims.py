"""The five claims, answered from the measured figures and from nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from unetx_bench.reproduce.article import BASELINE, CLAIMS, PRINTED, printed_error_share
from unetx_bench.reproduce.evidence import (
    ACCURACY,
    Evidence,
    accuracy_finding,
    operations_finding,
    seed_findings,
    tell,
    tell_undecided,
    time_findings,
)
from unetx_bench.reproduce.record import ClaimRecord, DataRecord, Finding, VariantRecord, Verdict
from unetx_bench.reproduce.verdicts import combine, decide_absence, decide_effect

__all__ = ["decide_claims"]

_SINGLE: Final = ("focal", "attention", "dilated", "crf")


def decide_claims(variants: Sequence[VariantRecord], data: DataRecord) -> tuple[ClaimRecord, ...]:
    """Answer every claim.

    Parameters
    ----------
    variants : sequence of VariantRecord
        What was measured; variants that are missing make their claims not decidable.
    data : DataRecord
        What the accuracy was measured on; from phantoms and from few images no accuracy is claimed.

    Returns
    -------
    tuple of ClaimRecord
        C1 to C5. A claim without any finding that decides is not decidable.
    """
    measured = Evidence({row.name: row for row in variants}, data)
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
    form = "{:+.5f}" if finding.unit == ACCURACY else "{:.3f}"
    value, low, high = (form.format(number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}, 95 % CI {low} to {high}"


def _decide_focal_accuracy(measured: Evidence) -> list[Finding]:
    share = printed_error_share("focal")
    return [
        accuracy_finding(measured, ("focal", BASELINE), decide_effect, share),
        *seed_findings(measured, "focal", BASELINE),
    ]


def _decide_attention_time(measured: Evidence) -> list[Finding]:
    printed = PRINTED["attention"].latency_ms / PRINTED[BASELINE].latency_ms
    return [operations_finding(measured, "attention"), *time_findings(measured, "attention", printed)]


def _decide_focal_time(measured: Evidence) -> list[Finding]:
    subject = f"graphs without weights, focal and {BASELINE}"
    if absent := measured.present("focal", BASELINE):
        return [tell_undecided(subject, absent)]
    graph, base = measured.variants["focal"].graph, measured.variants[BASELINE].graph
    if graph is None or base is None:
        return [tell_undecided(subject, "no graph was traced")]
    if graph.structure_sha256 != base.structure_sha256:
        hashes = f"SHA-256 {graph.structure_sha256[:16]}... and {base.structure_sha256[:16]}... differ"
        return [tell_undecided(subject, hashes)]
    same = f"one and the same graph, SHA-256 {graph.structure_sha256[:16]}..., {graph.flop / 1e9:.3f} GFLOP"
    return [
        tell(subject, same, Verdict.NOT_REPRODUCED),
        *(
            finding.model_copy(update={"verdict": None, "judged": None, "note": "noise: the graphs are identical"})
            for finding in time_findings(measured, "focal", None)
            if finding.estimate is not None
        ),
    ]


def _decide_resolution(measured: Evidence) -> list[Finding]:
    findings = []
    for name in ("dilated", "crf"):
        if absent := measured.present(name, BASELINE):
            findings.append(tell_undecided(f"accuracy and time, {name} to {BASELINE}", absent))
            continue
        share = printed_error_share(name)
        findings.append(accuracy_finding(measured, (name, BASELINE), decide_absence, share))
        findings += time_findings(measured, name, None)
    return findings


def _decide_combination(measured: Evidence) -> list[Finding]:
    if absent := measured.present("combined", BASELINE):
        return [tell_undecided("pixel accuracy, combined to the others", absent)]
    return [
        *(accuracy_finding(measured, ("combined", other), decide_effect, None) for other in (BASELINE, *_SINGLE)),
        *seed_findings(measured, "combined", BASELINE),
    ]


_DECISIONS: Final[Mapping[str, Callable[[Evidence], list[Finding]]]] = MappingProxyType(
    {
        "C1": _decide_focal_accuracy,
        "C2": _decide_attention_time,
        "C3": _decide_focal_time,
        "C4": _decide_resolution,
        "C5": _decide_combination,
    }
)
