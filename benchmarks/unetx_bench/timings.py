"""Contenders of a report under names that are the same in every run: by the model and not by the bundle's folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from unetx_bench.report import BundleFacts, Candidate, Latency, Report
from unetx_bench.standings import peer_name

__all__ = ["ModelKey", "Timing", "TimingKey", "bundle_titles", "candidate_titles", "list_timings", "model_keys"]


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """What must be the same for latencies to be compared: the network, its size and its operations."""

    variant: str
    input_px: tuple[int, int]
    flop: int

    def __str__(self) -> str:
        """Name it: "unet 512 x 512, 24.1 GFLOP"."""
        return f"{self.variant} {self.input_px[0]} x {self.input_px[1]}, {self.flop / 1e9:.4g} GFLOP"


@dataclass(frozen=True, slots=True)
class TimingKey:
    """A contender, whatever its bundle's folder was called.

    Attributes
    ----------
    model : str
        Variant, size and, for an engine, precision.
    name : str
        Engine or peer.
    span : str
        Clock.
    batch : int
        Images in a call.
    flop : int
        Operations of the network: one of another width is another one.
    """

    model: str
    name: str
    span: str
    batch: int
    flop: int

    def __str__(self) -> str:
        """Name it: "unet fp16 512 x 512 openvino-cpu [engine]"."""
        clock = self.span if self.batch == 1 else f"{self.span}, batch {self.batch}"
        return f"{self.model} {self.name} [{clock}]"


@dataclass(frozen=True, slots=True)
class Timing:
    """A contender's latency and where it comes from."""

    key: TimingKey
    candidate: Candidate
    latency: Latency


def model_keys(report: Report) -> frozenset[ModelKey]:
    """The models that a report is about."""
    return frozenset(ModelKey(row.variant, row.input_px, row.flop) for row in report.bundles)


def bundle_titles(report: Report) -> dict[str, str]:
    """Bundle -> variant, precision, size and step; with the bundle's own name only where that is not unique."""
    titles = {row.name: _title(row) for row in report.bundles}
    counts = Counter(titles.values())
    return {name: title if counts[title] == 1 else f"{title} ({name})" for name, title in titles.items()}


def candidate_titles(report: Report) -> dict[str, tuple[str, str]]:
    """Candidate -> (model, engine or peer). A peer belongs to the network, whatever the precision of its bundle."""
    bundles, facts = bundle_titles(report), {row.name: row for row in report.bundles}
    return {
        row.name: (
            _peer_title(row, facts) if row.kind == "peer" else bundles.get(row.bundle, row.bundle),
            peer_name(row),
        )
        for row in report.candidates
    }


def list_timings(report: Report) -> dict[TimingKey, Timing]:
    """List the contenders of a report."""
    titles, candidates = candidate_titles(report), {row.name: row for row in report.candidates}
    flops = {row.name: row.flop for row in report.bundles}
    found: dict[TimingKey, Timing] = {}
    for latency in report.latencies:
        candidate = candidates.get(latency.candidate)
        if candidate is not None:
            key = TimingKey(*titles[candidate.name], latency.span, latency.batch, flops.get(candidate.bundle, 0))
            found.setdefault(key, Timing(key, candidate, latency))
    return found


def _title(row: BundleFacts) -> str:
    step = f" + {row.refinement}" if row.refinement else ""
    return f"{row.variant} {row.precision} {row.input_px[0]} x {row.input_px[1]}{step}"


def _peer_title(row: Candidate, facts: dict[str, BundleFacts]) -> str:
    bundle = facts.get(row.bundle)
    return row.bundle if bundle is None else f"{bundle.variant} {bundle.input_px[0]} x {bundle.input_px[1]}"
