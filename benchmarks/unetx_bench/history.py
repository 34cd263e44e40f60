"""Many reports: how one machine's engines went over time, and how a fleet of machines stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetx_bench.errors import MeasurementError
from unetx_bench.report import REPORT_NAME, Report, read_report
from unetx_bench.standings import BASELINES, Standing, baselines_of, fastest_standing, find_ratio, peer_latencies
from unetx_bench.statistics import Estimate
from unetx_bench.timings import Timing, TimingKey, bundle_titles, list_timings

__all__ = ["FleetRow", "Trend", "TrendRow", "device_name", "list_fleet", "list_trends", "read_reports"]


@dataclass(frozen=True, slots=True)
class TrendRow:
    """One contender in one run.

    Attributes
    ----------
    created : str
        When the run was made, ISO 8601.
    source : str
        Where its report lies, as a short name.
    product : str
        What measured.
    ratio : Estimate
        Its time over the peer's within the run.
    median_ms : Estimate or None
        Its time.
    disturbed : bool
        Whether others used the machine.
    """

    created: str
    source: str
    product: str
    ratio: Estimate
    median_ms: Estimate | None
    disturbed: bool


@dataclass(frozen=True, slots=True)
class Trend:
    """One contender in the runs of one machine, the oldest first, always against the same peer."""

    key: TimingKey
    peer: str
    rows: tuple[TrendRow, ...]

    @property
    def change(self) -> Estimate | None:
        """The last ratio over the first, between the quotients of the intervals' ends; None for a single run."""
        if len(self.rows) < 2:
            return None
        first, last = self.rows[0].ratio, self.rows[-1].ratio
        return Estimate(last.value / first.value, last.low / first.high, last.high / first.low)


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One model on one workstation, by its latest report.

    Attributes
    ----------
    workstation : str
        The short name of its report: reports hold no host name.
    device, system : str
        Processor and GPU; operating system.
    model : str
        Variant, precision and size.
    created, product : str
        When, and what measured.
    standing : Standing or None
        The fastest engine that passes the gate; None where none does.
    disturbed : bool
        Whether others used the machine.
    """

    workstation: str
    device: str
    system: str
    model: str
    created: str
    product: str
    standing: Standing | None
    disturbed: bool


def read_reports(paths: Sequence[Path]) -> tuple[tuple[str, Report], ...]:
    """Read reports, each with a short name: the shortest end of its path that no other one has.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Files, or folders with a ``report.json``.

    Raises
    ------
    MeasurementError
        One is no report, or none is given.
    """
    if not paths:
        raise MeasurementError("no report was given: name report.json files, or folders that hold one")
    files = list(dict.fromkeys((path / REPORT_NAME if path.is_dir() else path).resolve() for path in paths))
    return tuple(zip(_short_names(files), map(read_report, files), strict=True))


def device_name(report: Report) -> str:
    """Name what a report was measured on: processor and GPU."""
    return " with ".join(filter(None, (report.environment.cpu, report.environment.gpu)))


def list_trends(reports: Sequence[tuple[str, Report]]) -> tuple[Trend, ...]:
    """Follow every contender over the runs of one machine.

    A contender is held against the peer that most of its runs have; runs without it are left out, and, by clocks
    that see the image, runs with another image than the last.

    Parameters
    ----------
    reports : sequence of (str, Report)
        As from `read_reports`, in any order.

    Raises
    ------
    MeasurementError
        The reports are of different machines, or none has a ratio to a peer.
    """
    devices = sorted({device_name(report) for _, report in reports})
    if len(devices) > 1:
        raise MeasurementError(
            f"a history is of one machine, these reports are of {len(devices)} ({'; '.join(devices)}): "
            "use unetx-opt fleet"
        )
    runs = sorted(reports, key=lambda row: row[1].created)
    found: dict[TimingKey, dict[str, list[TrendRow]]] = {}
    baselines: dict[TimingKey, tuple[str, ...]] = {}
    for source, report in runs:
        same_image = report.image.sha256 == runs[-1][1].image.sha256
        for key, timing in list_timings(report).items():
            baselines[key] = baselines_of(timing.candidate)
            # With an image of another size, preparing it and writing its mask take another time.
            for peer, row in (
                _held_against_peers(source, report, timing) if same_image or key.span == "engine" else ()
            ):
                found.setdefault(key, {}).setdefault(peer, []).append(row)
    if not found:
        raise MeasurementError(
            f"no report has a contender and a peer with rounds enough: run bench with --peer {BASELINES[0]}"
        )
    return tuple(_trend(key, by_peer, baselines[key]) for key, by_peer in found.items())


def list_fleet(reports: Sequence[tuple[str, Report]]) -> tuple[FleetRow, ...]:
    """Put workstations side by side: for each model the latest report of each; figures are never divided across.

    Parameters
    ----------
    reports : sequence of (str, Report)
        As from `read_reports`; the latest for a name, device and model counts.
    """
    latest: dict[tuple[str, str, str], FleetRow] = {}
    for source, report in sorted(reports, key=lambda row: row[1].created):
        for bundle, model in bundle_titles(report).items():
            host = report.environment
            row = FleetRow(
                workstation=source,
                device=device_name(report),
                system=f"{host.system} {host.kernel}",
                model=model,
                created=report.created,
                product=report.product,
                standing=fastest_standing(report, bundle),
                disturbed=report.run.disturbed,
            )
            latest[row.workstation, row.device, row.model] = row
    return tuple(sorted(latest.values(), key=lambda row: (row.model, _speed(row), row.device, row.workstation)))


def _held_against_peers(source: str, report: Report, timing: Timing) -> Iterator[tuple[str, TrendRow]]:
    for peer, latency in peer_latencies(report, timing.candidate.bundle).items():
        ratio = find_ratio(report, timing.latency, latency) if latency is not timing.latency else None
        if ratio is not None:
            median_ms, disturbed = timing.latency.median_ms, report.run.disturbed
            yield peer, TrendRow(report.created, source, report.product, ratio, median_ms, disturbed)


def _trend(key: TimingKey, by_peer: Mapping[str, list[TrendRow]], baselines: Sequence[str]) -> Trend:
    """Choose the peer of most runs; of several, PyTorch as it is on the same device."""
    order = {name: index for index, name in enumerate(baselines)}
    peer = min(by_peer, key=lambda name: (-len(by_peer[name]), order.get(name, len(order))))
    return Trend(key, peer, tuple(by_peer[peer]))


def _speed(row: FleetRow) -> float:
    return float("inf") if row.standing is None else row.standing.median_ms.value


def _short_names(files: Sequence[Path]) -> list[str]:
    parts = [path.parts[1:-1] if path.name == REPORT_NAME else (*path.parts[1:-1], path.stem) for path in files]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in files]
