"""One benchmark from bundles to a report: open, time in turns, hold against the limits, compare the masks."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetx_bench.candidates import Opened, TimedCall, make_contenders, open_all
from unetx_bench.details import Details, measure_candidates
from unetx_bench.environment import Environment, capture_environment
from unetx_bench.findings import answer, latency_rows, method, ratio_pairs, ratio_rows
from unetx_bench.load import LoadMonitor
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Measurement, MeasureOptions
from unetx_bench.pinning import pinned
from unetx_bench.report import REPORT_NAME, Attempt, BundleFacts, Report, Run, TimedImageFacts, serialize_report
from unetx_bench.report_page.page import PAGE_NAME, render_report_page
from unetx_bench.request import BenchRequest, choose_images, make_timed_image
from unetx_bench.tables import latency_csv, samples_csv, summary_markdown
from unetx_opt import __version__
from unetx_opt.files import scratch_directory, staged_directory, write_file

__all__ = ["MeasuredRun", "measure_until_quiet", "run_benchmark"]

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The pass that is reported, with what was seen of the machine, and how often it was tried."""

    measurement: Measurement
    monitor: LoadMonitor
    attempts: tuple[Attempt, ...]


def run_benchmark(request: BenchRequest, note: Note = lambda text: None) -> Report:
    """Measure bundles and write the report's folder, whole or not at all.

    Parameters
    ----------
    request : BenchRequest
        What is asked for.
    note : callable
        Takes a line of progress.

    Returns
    -------
    Report
        As in ``report.json``. Beside it lie ``report.html``, ``latency.csv``, ``samples.csv``,
        ``summary.md`` and ``pictures/``.

    Raises
    ------
    UnetxError
        A bundle is damaged, nothing runs here, an engine's result is wrong, or the output exists.
    """
    with (
        staged_directory(request.output, overwrite=request.overwrite) as folder,
        scratch_directory(request.output.parent / f"{request.output.name}.work") as scratch,
        pinned(request.cpus),
    ):
        environment = capture_environment()
        note("opening the bundles")
        with open_all(request, scratch) as opened:
            images = choose_images(request, opened.bundles[0].manifest.input.height)
            image, facts = make_timed_image(images, scratch)
            calls = make_contenders(opened, request, image)
            note(f"timing {len(calls)} contenders in turns, at most {request.measure.maximum_seconds:.0f} s")
            run = measure_until_quiet(calls, request, note)
            details = measure_candidates(opened, request, image, folder, note)
        report = _assemble(request, environment, (opened, calls), run, (facts, details))
        _write(report, folder)
    # The figures are safe before they are rendered: a long run is not lost to a page.
    write_file(request.output / PAGE_NAME, render_report_page(report, request.output).encode())
    return report


def measure_until_quiet(calls: Sequence[TimedCall], request: BenchRequest, note: Note) -> MeasuredRun:
    """Measure, and again while the machine was disturbed, up to the attempts of the request.

    Returns
    -------
    MeasuredRun
        The pass during which other processes took the least.
    """
    contenders = [call.contender for call in calls]
    options = MeasureOptions(
        **{name: getattr(request.measure, name) for name in MeasureOptions.__dataclass_fields__ if name != "ratios"},
        ratios=tuple(ratio_pairs(calls)),
    )
    passes: list[tuple[float, Measurement, LoadMonitor]] = []
    for attempt in range(1, request.attempts + 1):
        monitor = LoadMonitor()
        measurement = measure_interleaved(contenders, options, monitor)
        passes.append((_others_cores(monitor), measurement, monitor))
        if not measurement.disturbances:
            break
        note(f"pass {attempt} of {request.attempts} was disturbed: {'; '.join(measurement.disturbances)}")
    attempts = tuple(Attempt(rounds=m.rounds, disturbances=m.disturbances, mean_others_cores=o) for o, m, _ in passes)
    quiet = [row for row in passes if not row[1].disturbances] or passes
    _, measurement, monitor = min(quiet, key=lambda row: row[0])
    return MeasuredRun(measurement, monitor, attempts)


def _others_cores(monitor: LoadMonitor) -> float:
    spans = [(window.end_s - window.start_s, window.others_cores) for window in monitor.windows]
    return sum(length * cores for length, cores in spans) / max(sum(length for length, _ in spans), 1e-9)


def _assemble(
    request: BenchRequest,
    environment: Environment,
    timed: tuple[Opened, Sequence[TimedCall]],
    run: MeasuredRun,
    found: tuple[dict[str, Any] | Any, Details],
) -> Report:
    (opened, calls), (image, details) = timed, found
    latencies = latency_rows(calls, run.measurement, request.measure.confidence)
    ratios = ratio_rows(calls, run.measurement)
    candidates = tuple(details.with_fractions(row, latencies) for row in details.candidates)
    disturbances = run.measurement.disturbances
    return Report(
        product=f"unetx-opt {__version__}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        answer=answer(calls, latencies, ratios, candidates, disturbances),
        method=method(request),
        environment=environment,
        image=TimedImageFacts(**image),
        bundles=tuple(
            BundleFacts(
                name=bundle.opened.name,
                variant=bundle.manifest.variant,
                precision=str(bundle.manifest.precision.requested),
                manifest_sha256=bundle.opened.manifest_sha256,
                checkpoint_sha256=bundle.manifest.checkpoint.sha256,
                input_px=(bundle.manifest.input.height, bundle.manifest.input.width),
                flop=bundle.manifest.operations.flop,
                refinement=None if bundle.manifest.postprocess is None else bundle.manifest.postprocess.name,
            )
            for bundle in opened.bundles
        ),
        run=_run_facts(run),
        latencies=latencies,
        ratios=ratios,
        candidates=candidates,
        not_measured=dict(opened.not_measured),
        drift_data=details.drift_data,
        ceilings=details.ceilings,
    )


def _run_facts(run: MeasuredRun) -> Run:
    measured, monitor = run.measurement, run.monitor
    return Run(
        rounds=measured.rounds,
        stopped=measured.stopped,
        warmup_rounds=measured.warmup.rounds,
        warmup_seconds=measured.warmup.seconds,
        warmup_stable=measured.warmup.stable,
        clock=measured.clock,
        order=tuple(tuple(int(index) for index in row) for row in measured.order),
        started_s=tuple(round(float(value), 6) for value in measured.started_s),
        disturbed=bool(measured.disturbances),
        disturbances=measured.disturbances,
        attempts=run.attempts,
        load=monitor.windows,
        other_processes=monitor.others,
        state_before=monitor.before,
        state_after=monitor.after,
    )


def _write(report: Report, folder: Path) -> None:
    (folder / REPORT_NAME).write_bytes(serialize_report(report))
    (folder / "latency.csv").write_text(latency_csv(report), encoding="utf-8")
    (folder / "samples.csv").write_text(samples_csv(report), encoding="utf-8")
    (folder / "summary.md").write_text(summary_markdown(report), encoding="utf-8")
