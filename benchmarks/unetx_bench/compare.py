"""Two reports of one device: what changed between them, by ratios within each run.

Latencies of different runs are never divided by one another. What is compared is the ratio of a contender to a peer
that took turns with it, and so met the same clocks and the same disturbances; the peer is the same in both runs. The
interval of its change lies between the quotients of the two intervals' ends: with 99 % for each it holds with 98 %.
It is about the rounds of the two runs. What differs from one start of a program to the next, such as where its memory
lies, is not in it: the bound has to leave room for that, and two runs of the same engines show how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from unetx_bench.compare_facts import DriftChange, EnvironmentChange, drift_changes, environment_changes
from unetx_bench.errors import MeasurementError
from unetx_bench.report import Report
from unetx_bench.standings import BASELINES, baselines_of, find_ratio, peer_latencies
from unetx_bench.statistics import Estimate
from unetx_bench.timings import Timing, TimingKey, list_timings, model_keys

__all__ = ["DEFAULT_BOUND", "ContenderChange", "ReportComparison", "compare_reports"]

DEFAULT_BOUND: Final = 0.05


@dataclass(frozen=True, slots=True)
class ContenderChange:
    """One contender of both runs.

    Attributes
    ----------
    contender : str
        Model, engine or peer, and clock.
    kind : str
        "engine" or "peer".
    median_before_ms, median_after_ms : Estimate or None
        Side by side, not to be divided.
    peer : str or None
        What it is held against in both runs.
    ratio_before, ratio_after : Estimate or None
        Its time over the peer's, within each run.
    change : Estimate or None
        `ratio_after` over `ratio_before`: 1.05 is five percent slower than the peer's change explains.
    verdict : str
        "slower", "faster" (the whole interval is beyond the bound), "same" (the whole interval is within it), "not
        decidable" (it lies across), "not comparable", or "the common peer".
    remark : str
        Why it is not comparable; empty otherwise.
    """

    contender: str
    kind: str
    median_before_ms: Estimate | None
    median_after_ms: Estimate | None
    peer: str | None
    ratio_before: Estimate | None
    ratio_after: Estimate | None
    change: Estimate | None
    verdict: str
    remark: str


@dataclass(frozen=True, slots=True)
class ReportComparison:
    """Everything that changed between two reports.

    Attributes
    ----------
    bound, confidence : float
        Of a regression, and of the intervals of change, at least.
    contenders : tuple of ContenderChange
        Those of both.
    drifts : tuple of DriftChange
        Of engines in both.
    environment : tuple of EnvironmentChange
        What is not the same on the machine and in the method.
    only_before, only_after : tuple of str
        Contenders of one report.
    notes : tuple of str
        What a reader should know first.
    regressions : tuple of str
        Engines that are slower beyond the bound, break a gate that they passed, or no longer run.
    """

    bound: float
    confidence: float
    contenders: tuple[ContenderChange, ...]
    drifts: tuple[DriftChange, ...]
    environment: tuple[EnvironmentChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    notes: tuple[str, ...]
    regressions: tuple[str, ...]


def compare_reports(
    before: Report, after: Report, bound: float = DEFAULT_BOUND, peer: str | None = None
) -> ReportComparison:
    """Compare two reports.

    Parameters
    ----------
    before, after : Report
        Of one device.
    bound : float
        Above 0; 0.05 is five percent.
    peer : str, optional
        The common peer; otherwise PyTorch as it is, or the first that is in both.

    Raises
    ------
    MeasurementError
        The reports have no model in common at one size, are of different devices, or no contender of both has a
        common peer.
    """
    if not bound > 0:
        raise MeasurementError(f"the bound is {bound:g}, expected above 0: 0.05 is five percent")
    _check_comparable(before, after)
    first, second = list_timings(before), list_timings(after)
    both = [key for key in first if key in second]
    images_differ = before.image.sha256 != after.image.sha256
    changes = [
        _compare_timing(first[key], second[key], _Rules(before, after, bound, peer, images_differ)) for key in both
    ]
    if not any(change.change is not None for change in changes):
        raise MeasurementError(
            "no contender of both reports has a common peer and rounds enough: latencies of different runs are not "
            f"divided by one another; run bench with --peer {peer or BASELINES[0]} both times"
        )
    drifts = drift_changes(before, after)
    confidence = before.method.decision_confidence + after.method.decision_confidence - 1
    return ReportComparison(
        bound=bound,
        confidence=confidence,
        contenders=tuple(changes),
        drifts=drifts,
        environment=environment_changes(before, after),
        only_before=tuple(str(key) for key in first if key not in second),
        only_after=tuple(str(key) for key in second if key not in first),
        notes=(*_notes(before, after), *_peer_notes(before, after, changes)),
        regressions=(*_slower(changes), *_broken(drifts), *_gone(first, second)),
    )


@dataclass(frozen=True, slots=True)
class _Rules:
    before: Report
    after: Report
    bound: float
    peer: str | None
    images_differ: bool


def _check_comparable(before: Report, after: Report) -> None:
    models = [model_keys(report) for report in (before, after)]
    if not models[0] & models[1]:
        told = ["; ".join(sorted(map(str, keys))) for keys in models]
        raise MeasurementError(
            f"the reports are of different models or sizes ({told[0]} and {told[1]}): compare runs of one model"
        )
    devices = [(report.environment.cpu, report.environment.gpu) for report in (before, after)]
    if devices[0] != devices[1]:
        told = [" with ".join(filter(None, device)) for device in devices]
        raise MeasurementError(
            f"the reports are of different devices ({told[0]} and {told[1]}): what changed cannot be told from what "
            "differs; put them side by side with unetx-opt fleet"
        )


def _compare_timing(first: Timing, second: Timing, rules: _Rules) -> ContenderChange:
    peers = [
        peer_latencies(rules.before, first.candidate.bundle),
        peer_latencies(rules.after, second.candidate.bundle),
    ]
    common = [name for name in peers[0] if name in peers[1]]
    preferred = (rules.peer,) if rules.peer is not None else (*baselines_of(first.candidate), *common)
    peer = next((name for name in preferred if name in common), None)
    ratio_before = ratio_after = change = None
    verdict, remark = "not comparable", ""
    if peer is None:
        remark = f"{rules.peer or 'a common peer'} is not in both runs"
    elif peer == first.key.name and first.candidate.kind == "peer":
        verdict = "the common peer"
    elif rules.images_differ and first.key.span != "engine":
        remark = "the timed images differ"
    else:
        ratio_before = find_ratio(rules.before, first.latency, peers[0][peer])
        ratio_after = find_ratio(rules.after, second.latency, peers[1][peer])
        change = _divide(ratio_after, ratio_before)
        verdict = _decide(change, rules.bound)
        remark = "" if change is not None else "too few rounds for an interval"
    return ContenderChange(
        contender=str(first.key),
        kind=first.candidate.kind,
        median_before_ms=first.latency.median_ms,
        median_after_ms=second.latency.median_ms,
        peer=peer,
        ratio_before=ratio_before,
        ratio_after=ratio_after,
        change=change,
        verdict=verdict,
        remark=remark,
    )


def _divide(after: Estimate | None, before: Estimate | None) -> Estimate | None:
    if after is None or before is None:
        return None
    return Estimate(after.value / before.value, after.low / before.high, after.high / before.low)


def _decide(change: Estimate | None, bound: float) -> str:
    if change is None:
        return "not comparable"
    low, high = 1 / (1 + bound), 1 + bound
    if change.low > high:
        return "slower"
    if change.high < low:
        return "faster"
    return "same" if low <= change.low and change.high <= high else "not decidable"


def _notes(before: Report, after: Report) -> tuple[str, ...]:
    notes = [
        f"the run {which} was disturbed: {'; '.join(report.run.disturbances)}"
        for which, report in (("before", before), ("after", after))
        if report.run.disturbed
    ]
    if {row.checkpoint_sha256 for row in before.bundles} != {row.checkpoint_sha256 for row in after.bundles}:
        notes.append("the bundles were made from different weights")
    return tuple(notes)


def _peer_notes(before: Report, after: Report, changes: list[ContenderChange]) -> tuple[str, ...]:
    """Warn where the package behind a common peer is another version: then the yardstick may have changed too."""
    packages = [report.environment.packages for report in (before, after)]
    notes = []
    for peer in dict.fromkeys(row.peer for row in changes if row.peer is not None):
        package = peer.partition("-")[0]
        versions = [one.get(package) for one in packages]
        if versions[0] != versions[1]:
            notes.append(f"the common peer {peer} may itself have changed: {package} {versions[0]} -> {versions[1]}")
    return tuple(notes)


def _slower(changes: list[ContenderChange]) -> list[str]:
    return [
        f"{row.contender}: {row.change.value:.3f} times the time ({row.change.low:.3f} to {row.change.high:.3f}), "
        f"held against {row.peer}"
        for row in changes
        if row.verdict == "slower" and row.kind == "engine" and row.change is not None
    ]


def _broken(drifts: tuple[DriftChange, ...]) -> list[str]:
    return [f"{row.engine}: passed the gate {row.gate_before}, and now fails it" for row in drifts if row.is_broken]


def _gone(first: Mapping[TimingKey, Timing], second: Mapping[TimingKey, Timing]) -> list[str]:
    """Engines that do not run any more, of bundles that both runs have."""
    models, engines = {key.model for key in second}, {(key.model, key.name) for key in second}
    names = {
        (key.model, key.name): timing.candidate.kind
        for key, timing in first.items()
        if key.model in models and (key.model, key.name) not in engines
    }
    return [f"{model} {name}: no longer runs" for (model, name), kind in names.items() if kind == "engine"]
