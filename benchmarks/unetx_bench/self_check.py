"""Is the harness itself right on this machine? Two equal engines, a planted slowdown, and what the harness costs.

    python -m unetx_bench.self_check --trials 100 -o self-check.json

Each trial loads one small engine three times, draws which copy plays which part, and times them in turns; one is
slowed: after its call it waits for a share of the time that this very call took. The other two must be called the
same, the slowed one slower. A trial has the default settings but for its time, which is shorter.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from unetx_bench.clock import measure_clock
from unetx_bench.environment import capture_environment, capture_state
from unetx_bench.load import LoadMonitor
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Contender, MeasureOptions
from unetx_bench.noise import error_rates
from unetx_bench.peers import PeerModel, open_peer
from unetx_bench.statistics import same_or_different
from unetx_opt.files import scratch_directory, write_file
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import variant_spec
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.runtime.sessions.onnxruntime import open_onnxruntime
from unetx_opt.specs import EngineRecord

__all__ = ["main", "measure_empty_call", "run_trial", "slowed"]

_NAMES: Final = ("a copy", "another copy", "a copy, slowed")


@click.command()
@click.option("--trials", type=click.IntRange(1), default=100, show_default=True, help="Each takes --seconds.")
@click.option("--seconds", type=click.FloatRange(0.1), default=6.0, show_default=True, help="Most time for a trial.")
@click.option("--minutes", type=click.FloatRange(0), default=60.0, show_default=True, help="Begin no trial later.")
@click.option("--slowdown", type=click.FloatRange(0), default=0.05, show_default=True, help="Planted share.")
@click.option("--engine", type=click.Choice(["onnxruntime", "openvino"]), default="onnxruntime", show_default=True)
@click.option("--size", "size_px", type=click.IntRange(32), default=64, show_default=True, help="Input in pixels.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of one inference.")
@click.option(
    "--simulated", type=click.IntRange(0), default=400, show_default=True, help="Simulated trials per noise."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file that shall appear.")
def main(output: Path, trials: int, simulated: int, **given: Any) -> None:
    """Check the harness on this machine, and write what was found."""
    options = MeasureOptions(
        maximum_seconds=given["seconds"], ratios=((_NAMES[1], _NAMES[0]), (_NAMES[2], _NAMES[0]))
    )
    environment = capture_environment()
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with scratch_directory(output) as folder:
        graph, image = _make_graph(folder, given["size_px"])
        for trial in range(trials):
            if time.perf_counter() - started > given["minutes"] * 60:
                break
            with ExitStack() as stack:
                engines = [_open_engine(stack, graph, image, given) for _ in range(3)]
                # Where an engine's memory lies depends on when it was loaded: no part always has the first.
                engines = [engines[index] for index in np.random.default_rng(trial).permutation(3)]
                contenders = (
                    Contender(_NAMES[0], engines[0]),
                    Contender(_NAMES[1], engines[1]),
                    Contender(_NAMES[2], slowed(engines[2], given["slowdown"])),
                )
                rows.append(run_trial(contenders, dataclasses.replace(options, seed=trial)))
            click.echo(
                f"trial {trial + 1} of {trials}: {rows[-1]['equal']['verdict']}; {rows[-1]['slowed']['verdict']}"
            )
    record = {
        "schema_version": 1,
        "what": "two copies of one engine, and a third with a planted slowdown",
        "settings": {**given, "trials": trials, "measure": asdict(options)},
        "trials_done": len(rows),
        "counts": {key: dict(Counter(row[key]["verdict"] for row in rows)) for key in ("equal", "slowed")},
        "disturbed_trials": sum(bool(row["disturbances"]) for row in rows),
        "harness": measure_empty_call(),
        "simulated": error_rates(rounds=100, trials=simulated) if simulated else {},
        "environment": asdict(environment),
        "state_after": asdict(capture_state()),
        "trials": rows,
    }
    write_file(output, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode("ascii"))
    click.echo(json.dumps({"counts": record["counts"], "harness": record["harness"]}))


def slowed(call: Callable[[], object], share: float) -> Callable[[], object]:
    """Make a call that takes (1 + share) times as long as it takes."""

    def run() -> object:
        start = time.perf_counter_ns()
        result = call()
        end = start + round((time.perf_counter_ns() - start) * (1 + share))
        while time.perf_counter_ns() < end:
            pass
        return result

    return run


def run_trial(contenders: tuple[Contender, Contender, Contender], options: MeasureOptions) -> dict[str, Any]:
    """Measure a copy, another copy, and a slowed one; gives both decisions and what they rest on."""
    measured = measure_interleaved(contenders, options, LoadMonitor())
    first, second, slow = (contender.name for contender in contenders)
    equal, slower = measured.paired(second, first), measured.paired(slow, first)
    return {
        "equal": asdict(same_or_different(*equal)),
        "slowed": asdict(same_or_different(*slower)),
        "rounds": measured.rounds,
        "rounds_compared": [len(equal[0]), len(slower[0])],
        "stopped": measured.stopped,
        "median_ms": [float(np.median(row)) for row in measured.samples_ms.values()],
        "disturbances": list(measured.disturbances),
    }


def measure_empty_call(seconds: float = 2.0) -> dict[str, float]:
    """Time a call that does nothing: the harness's own cost, over that of the clock.

    Returns
    -------
    dict
        empty_call_us, clock_overhead_us, own_cost_us: medians.
    """
    options = MeasureOptions(maximum_seconds=seconds, minimum_seconds=seconds, settle_s=0.0)
    measured = measure_interleaved((Contender("empty call", lambda: None),), options)
    empty_us = float(np.median(measured.samples_ms["empty call"])) * 1e3
    clock_us = measure_clock().overhead_ns / 1e3
    return {"empty_call_us": empty_us, "clock_overhead_us": clock_us, "own_cost_us": max(0.0, empty_us - clock_us)}


def _make_graph(folder: Path, size_px: int) -> tuple[Path, np.ndarray[Any, np.dtype[np.float32]]]:
    from unetx_exporters.onnx.trace import trace_onnx

    torch, onnx = (require(name, purpose="making the engine of the check") for name in ("torch", "onnx"))
    torch.manual_seed(0)
    path = folder / "small.onnx"
    onnx.save(trace_onnx(build_model(variant_spec("unet", width=8, depth=3)).eval(), size_px, size_px).model, path)
    image = np.random.default_rng(0).random((1, 1, size_px, size_px), np.float32)
    return path, image


def _open_engine(
    stack: ExitStack, graph: Path, image: np.ndarray[Any, np.dtype[np.float32]], given: dict[str, Any]
) -> Callable[[], object]:
    if given["engine"] == "onnxruntime":
        record = EngineRecord("onnxruntime-cpu", (graph.name,))
        session = stack.enter_context(
            open_onnxruntime(OpenRequest(record, lambda name: graph.read_bytes(), given["threads"]))
        )
        return lambda: session.infer(image)
    model = PeerModel(build_model(variant_spec("unet", width=8, depth=3)), graph, image, given["threads"])
    infer = stack.enter_context(open_peer("openvino-default", model))
    return lambda: infer(image)


if __name__ == "__main__":
    main()
