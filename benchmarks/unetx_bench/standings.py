"""How the contenders of one report stand to one another: the baseline of each bundle, ratios, the fastest engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from unetx_bench.errors import MeasurementError
from unetx_bench.ratios import ratio_interval
from unetx_bench.report import BundleFacts, Candidate, Latency, Report
from unetx_bench.statistics import Estimate

__all__ = [
    "BASELINES",
    "Standing",
    "baselines_of",
    "fastest_standing",
    "find_baseline",
    "find_ratio",
    "invert",
    "passes_gate",
    "peer_latencies",
    "peer_name",
    "plain_latency",
    "runs_on_gpu",
]

#: PyTorch as it is, on the CPU and on the GPU: what engines are held against.
BASELINES: Final = ("torch-eager", "torch-cuda-eager")
_GPU_TARGETS: Final = frozenset({"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"})


@dataclass(frozen=True, slots=True)
class Standing:
    """The fastest engine of a bundle that passes the drift gate.

    Attributes
    ----------
    candidate : Candidate
        The engine.
    median_ms : Estimate
        By the clock span "engine", one image.
    baseline : str or None
        Name of the peer that it is held against; None where none was measured.
    speedup : Estimate or None
        How many times as fast as that peer; None where there is none, or too few rounds.
    """

    candidate: Candidate
    median_ms: Estimate
    baseline: str | None
    speedup: Estimate | None


def plain_latency(report: Report, candidate: str) -> Latency | None:
    """Find the latency of a candidate by the clock span "engine" with one image in a call."""
    for row in report.latencies:
        if (row.candidate, row.span, row.batch) == (candidate, "engine", 1):
            return row
    return None


def peer_name(candidate: Candidate) -> str:
    """Name a candidate without the bundle that it was opened with."""
    return candidate.name.removeprefix(f"{candidate.bundle} ")


def peer_latencies(report: Report, bundle: str) -> dict[str, Latency]:
    """Find the peers of a bundle: name -> latency by the span "engine".

    Peers run once for a checkpoint and size: those of another bundle with the same are its own.
    """
    facts = {row.name: row for row in report.bundles}
    if bundle not in facts:
        return {}
    kin = {name for name, row in facts.items() if _model(row) == _model(facts[bundle])}
    found: dict[str, Latency] = {}
    for row in report.candidates:
        latency = plain_latency(report, row.name) if row.kind == "peer" and row.bundle in kin else None
        if latency is not None:
            found.setdefault(peer_name(row), latency)
    return found


def runs_on_gpu(candidate: Candidate) -> bool:
    """Whether a candidate computes on the GPU."""
    return candidate.target in _GPU_TARGETS or (candidate.kind == "peer" and "-cuda" in candidate.name)


def baselines_of(candidate: Candidate) -> tuple[str, ...]:
    """Name the peers that a candidate is held against, the preferred one first: PyTorch on its own device."""
    return BASELINES[::-1] if runs_on_gpu(candidate) else BASELINES


def find_baseline(report: Report, candidate: Candidate) -> Latency | None:
    """Find the peer that a candidate is held against; None where none of `baselines_of` was measured."""
    peers = peer_latencies(report, candidate.bundle)
    return next((peers[name] for name in baselines_of(candidate) if name in peers), None)


def find_ratio(report: Report, numerator: Latency, denominator: Latency) -> Estimate | None:
    """Find or compute the ratio of two contenders of one run, at the confidence of the report's decisions.

    Returns
    -------
    Estimate or None
        Numerator over denominator; None where there are too few rounds for an interval.
    """
    names = numerator.contender, denominator.contender
    for row in report.ratios:
        if (row.numerator, row.denominator) == names:
            return row.comparison.ratio
        if (row.denominator, row.numerator) == names:
            return invert(row.comparison.ratio)
    try:
        return ratio_interval(numerator.samples_ms, denominator.samples_ms, report.method.decision_confidence)
    except MeasurementError:
        return None


def invert(ratio: Estimate) -> Estimate:
    """Turn a ratio round: how many times as long becomes how many times as fast."""
    return Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)


def passes_gate(candidate: Candidate) -> bool:
    """Whether drift was measured and the gate passed."""
    return candidate.drift is not None and candidate.drift.decision.get("passed") is True


def fastest_standing(report: Report, bundle: str) -> Standing | None:
    """Find the fastest engine of a bundle that passes the gate and has a median; None where none does."""
    found: list[tuple[float, Candidate, Latency, Estimate]] = []
    for row in report.candidates:
        latency = plain_latency(report, row.name)
        if row.kind == "engine" and row.bundle == bundle and passes_gate(row) and latency and latency.median_ms:
            found.append((latency.median_ms.value, row, latency, latency.median_ms))
    if not found:
        return None
    _, best, latency, median_ms = min(found, key=lambda row: row[0])
    base = find_baseline(report, best)
    ratio = None if base is None else find_ratio(report, latency, base)
    return Standing(
        best, median_ms, None if base is None else base.candidate, None if ratio is None else invert(ratio)
    )


def _model(row: BundleFacts) -> tuple[object, ...]:
    return row.checkpoint_sha256, row.input_px
