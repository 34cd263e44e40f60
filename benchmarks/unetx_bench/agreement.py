"""Do others find the same latency? OpenVINO's benchmark_app, and ONNX Runtime's own profiler, against the harness.

    python -m unetx_bench.agreement BUNDLE --threads 2 -o agreement.json

benchmark_app is a program of its own: in every pair it is started anew, it and the harness take turns of a fraction
of a second (see `unetx_bench.tool_turns`), and the ratio of their medians is taken pair by pair. ONNX Runtime's
profiler stamps the very calls that the harness times, so that the two are compared call by call.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from unetx_bench.bundles import OpenedEngine, open_engines
from unetx_bench.environment import capture_environment
from unetx_bench.errors import MeasurementError
from unetx_bench.load import LoadMonitor
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Contender, Measurement, MeasureOptions, Monitor
from unetx_bench.statistics import Estimate, quantile_interval, ratio_interval
from unetx_bench.tool_turns import ToolTurns
from unetx_exporters.onnxruntime.profile import end_profile, open_profiled
from unetx_opt.files import scratch_directory, write_file
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from unetx_bench.bundles import OpenedEngines

__all__ = ["agreement_row", "agreement_with_benchmark_app", "agreement_with_profiler", "main", "read_median_ms"]

_MEDIAN: Final = re.compile(r"Median:\s+([0-9.]+)\s*ms")
_BEGINS: Final = re.compile(r"First inference took")
_TOOL: Final = "from openvino.tools.benchmark.main import main; main()"
#: Ratios whose interval reaches into this band around 1 agree, if the interval is no wider than +- the other.
_BAND: Final = 0.02
_WIDEST: Final = 0.05
#: A turn beside benchmark_app: so many calls, and no shorter than so many seconds.
_TURN_CALLS: Final = 16
_TURN_S: Final = 0.25


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of one inference.")
@click.option("--pairs", type=click.IntRange(11), default=12, show_default=True, help="Runs of benchmark_app.")
@click.option("--seconds", type=click.FloatRange(1.0), default=6.0, show_default=True, help="Of one pair.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file that shall appear.")
def main(bundle: Path, threads: int, pairs: int, seconds: float, output: Path) -> None:
    """Compare the harness with the runtimes' own tools on the engines of BUNDLE."""
    environment = capture_environment()
    monitor = LoadMonitor()
    monitor.start()
    rows = []
    with open_engines(bundle, threads=threads) as opened, scratch_directory(output) as folder:
        for engine in opened.engines:
            if engine.record.target == "openvino-cpu":
                write_engine(opened, engine, folder)
                rows.append(agreement_with_benchmark_app(engine, folder, (threads, pairs, seconds)))
            elif engine.record.target == "onnxruntime-cpu":
                rows.append(agreement_with_profiler(opened, engine, threads, pairs * seconds / 2))
            else:
                continue
            click.echo(json.dumps({key: rows[-1][key] for key in ("engine", "peer", "ratio", "agrees")}))
    record = {
        "schema_version": 1,
        "threads": threads,
        "agrees_within": _BAND,
        "rows": rows,
        "disturbances": list(monitor.stop()),
        "environment": asdict(environment),
    }
    write_file(output, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode("ascii"))


def write_engine(opened: OpenedEngines, engine: OpenedEngine, folder: Path) -> None:
    """Write the files of an engine where another program can read them."""
    for name in engine.record.files:
        (folder / Path(name).name).write_bytes(opened.read(name))


def agreement_with_benchmark_app(engine: OpenedEngine, folder: Path, how: tuple[int, int, float]) -> dict[str, Any]:
    """Let benchmark_app and the harness take turns on one OpenVINO engine.

    Parameters
    ----------
    engine : OpenedEngine
        Of the target openvino-cpu.
    folder : pathlib.Path
        Holds its files.
    how : tuple
        Threads, pairs, seconds of a pair, which is turns of both.
    """
    threads, pairs, seconds = how
    image = _blank(engine)
    model = folder.resolve() / Path(engine.record.files[0]).name
    command = [
        *(sys.executable, "-u", "-c", _TOOL, "-m", str(model), "-d", "CPU"),
        # It takes a number of threads only without a hint; one stream and one request are what the hint gives.
        *("-hint", "none", "-nstreams", "1", "-nireq", "1", "-nthreads", str(threads)),
        *("-api", "sync", "-t", str(max(1, round(seconds)))),
        *("-infer_precision", engine.record.settings.get("inference_precision", "f32")),
        *("-data_shape", f"[{','.join(map(str, image.shape))}]"),
    ]
    contender = Contender(engine.name, lambda: engine.session.infer(image))
    call_s = float(np.median(_measure(contender, seconds=0.5).samples_ms[engine.name])) / 1e3
    turn_s = min(max(_TURN_S, _TURN_CALLS * call_s), seconds / 2)
    generator = np.random.default_rng(0)
    medians: dict[str, list[float]] = {"harness": [], "benchmark_app": []}
    for _ in range(pairs):
        first = bool(generator.integers(2))
        turns = ToolTurns(command, folder, _BEGINS, turn_s=turn_s, tool_first=first)
        measured = _measure(contender, seconds, turns)
        medians["harness"].append(float(np.median(measured.samples_ms[engine.name])))
        medians["benchmark_app"].append(read_median_ms(turns.text))
    return agreement_row(engine.name, "benchmark_app", medians) | {"turn_s": turn_s}


def _measure(contender: Contender, seconds: float, monitor: Monitor | None = None) -> Measurement:
    options = MeasureOptions(
        minimum_seconds=seconds, maximum_seconds=seconds, half_width=1e-9, settle_s=0.0, warmup_seconds=0.2
    )
    return measure_interleaved((contender,), options, monitor)


def agreement_with_profiler(
    opened: OpenedEngines, engine: OpenedEngine, threads: int, seconds: float
) -> dict[str, Any]:
    """Time calls of one ONNX Runtime engine by the harness and by its profiler at once.

    Parameters
    ----------
    opened : OpenedEngines
        The bundle.
    engine : OpenedEngine
        Of the target onnxruntime-cpu.
    threads : int
        Of one inference.
    seconds : float
        How long.
    """
    from unetx_opt.runtime.sessions.onnxruntime import session_options

    image = _blank(engine)
    data = opened.read(engine.record.files[0])
    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(data, engine.record, session_options(threads), Path(folder))
        contender = Contender(engine.name, lambda: session.run([OUTPUT_NAME], {INPUT_NAME: image}))
        # The trace is kept in memory and holds every layer of every call: it ends by itself at a million events.
        limits = MeasureOptions(half_width=1e-9, maximum_seconds=min(seconds, 30.0), settle_s=0.0)
        measured = measure_interleaved((contender,), limits)
        stamped = end_profile(session).runs_ms
    harness = measured.samples_ms[engine.name]
    rounds = min(len(stamped), len(harness))
    both = {"harness": harness[-rounds:], "profiler": np.asarray(stamped[-rounds:])}
    row = agreement_row(engine.name, "profiler", both)
    return row | {"difference_us": asdict(_must(quantile_interval((both["harness"] - both["profiler"]) * 1e3)))}


def read_median_ms(text: str) -> float:
    """Read the median latency from what benchmark_app prints.

    Raises
    ------
    MeasurementError
        It prints none.
    """
    match = _MEDIAN.search(text)
    if match is None:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise MeasurementError(f"benchmark_app printed no median latency; its last line is: {last.strip()}")
    return float(match[1])


def agreement_row(engine: str, peer: str, medians: Mapping[str, Any]) -> dict[str, Any]:
    """Compare paired figures of the harness and of another tool; ``agrees`` is None where they are too uncertain.

    Parameters
    ----------
    engine, peer : str
        Names; `peer` is a key of `medians` beside "harness".
    medians : mapping of str to array_like
        (pairs,) in ms.
    """
    ratio = ratio_interval(medians["harness"], medians[peer])
    reaches = ratio.low <= 1 + _BAND and ratio.high >= 1 / (1 + _BAND)
    return {
        "engine": engine,
        "peer": peer,
        "samples_ms": {name: [round(float(value), 6) for value in values] for name, values in medians.items()},
        "median_ms": {name: float(np.median(values)) for name, values in medians.items()},
        "ratio": asdict(ratio),
        "agrees": None if ratio.half_width > _WIDEST else reaches,
    }


def _must(estimate: Estimate | None) -> Estimate:
    if estimate is None:
        raise MeasurementError("too few calls for an interval: measure longer")
    return estimate


def _blank(engine: OpenedEngine) -> NDArray[np.float32]:
    contract = engine.manifest.input
    return np.random.default_rng(0).random((1, contract.channels, contract.height, contract.width), np.float32)


if __name__ == "__main__":
    main()
