"""The CRF inside an engine against the CRF as a step of its own, on a processor.

    python -m unetx_bench.crf_in_engine --data lungs --size 512 -o benchmarks/results/

Every way of `unetx_bench.crf_graphs` runs in ONNX Runtime and in OpenVINO, in turns with the step that the runtime
has; an engine would carry the CRF where one of them gave the same masks within 1.5 times the step's time. It would
then also have to be told where in its input the image ends: the step leaves the padding out.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from unetx_bench.crf_graphs import FORMULATIONS, crf_model
from unetx_bench.dense_crf_cpu import chosen_names, mask_logits, read_image, scale_logits
from unetx_kernels.dense_crf.reference import Energies
from unetx_opt.files import write_file
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, refine
from unetx_opt.metrics.overlap import dice
from unetx_opt.optional import require

__all__ = ["main"]

_PURPOSE: Final = "the CRF in an engine"
_STEP: Final = "separate step"
_ALLOWED: Final = 1.5
_REPEATS: Final = 5  # runs whose results are compared bit for bit

#: Takes logit and grey (H, W) float32, gives the refined logit.
Engine = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


def _open_onnxruntime(model: bytes, threads: int) -> Engine:
    onnxruntime = require("onnxruntime", purpose=_PURPOSE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda logit, grey: np.asarray(session.run(None, {"logit": logit, "grey": grey})[0])


def _open_openvino(model: bytes, threads: int) -> Engine:
    core = require("openvino", purpose=_PURPOSE).Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda logit, grey: np.array(request.infer({"logit": logit, "grey": grey})[0])


_RUNTIMES: Final = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--images", default=4, help="Images of the test split, evenly spaced.")
@click.option("--size", "size_px", default=512, help="Height and width in pixels.")
@click.option("--rounds", default=7, help="Timed runs of each way on each image.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of an engine; the step has one.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
def main(data: Path, images: int, size_px: int, rounds: int, threads: int, output: Path) -> None:
    """Compare and time every way, and write JSON."""
    if reason := BACKENDS["grid"].why_not():
        raise click.ClickException(f"the comparison needs the separate step: {reason}")
    engines = _open_engines(size_px, threads)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for name in chosen_names(data, images):
        image, logits = read_image(data / "images" / name, size_px), scale_logits(mask_logits(data, name), size_px)
        for engine, row in _measure(engines, logits[0], image, rounds).items():
            rows[engine].append({"image": name, **row})
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    ways = [{"name": name, **_summarize(found)} for name, found in rows.items()]
    record = {
        "what": "the CRF as a graph of standard operators, against the separate step",
        "date": today,
        "size_px": size_px,
        "threads": threads,
        "load": os.getloadavg(),
        "packages": {package: version(package) for package in ("numpy", "numba", "onnx", "onnxruntime", "openvino")},
        "formulations": {row.name: row.summary for row in FORMULATIONS.values()},
        "ways": ways,
        "images": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"crf-in-engine-cpu-{today}.json"
    write_file(path, json.dumps(record, indent=1).encode())
    for way in ways:
        click.echo(json.dumps(way), err=True)
    click.echo(path)


def _open_engines(size_px: int, threads: int) -> dict[str, Engine]:
    parameters = CrfParameters()
    energies = Energies(**{name: getattr(parameters, name) for name in Energies.__dataclass_fields__})
    engines: dict[str, Engine] = {}
    for name, formulation in FORMULATIONS.items():
        model = crf_model((size_px, size_px), formulation, energies, parameters.iterations).SerializeToString()
        engines |= {f"{name}, {runtime}": open_(model, threads) for runtime, open_ in _RUNTIMES.items()}
    return engines


def _measure(
    engines: dict[str, Engine], logit: NDArray[np.float32], image: NDArray[np.uint8], rounds: int
) -> dict[str, dict[str, Any]]:
    grey = image.astype(np.float32)
    step = refine(logit[np.newaxis], image)
    rows: dict[str, dict[str, Any]] = {}
    for name, engine in engines.items():
        found = [engine(logit, grey) for _ in range(_REPEATS)]
        rows[name] = {
            "largest_difference": float(np.abs(found[0] - step.logits_khw[0]).max()),
            "dice": dice((found[0] > 0).astype(np.uint8), step.labels_hw),
            "equal_bits": all(one.tobytes() == found[0].tobytes() for one in found),
            "samples_ms": [],
            "step_ms": [],
        }
    for _ in range(rounds):
        for name, engine in engines.items():
            # The step before each engine, so that what else the machine does hits both.
            rows[name]["step_ms"].append(_time_ms(lambda: refine(logit[np.newaxis], image)))
            rows[name]["samples_ms"].append(_time_ms(functools.partial(engine, logit, grey)))
    return rows


def _time_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    own, step = (np.array([row[key] for row in rows]).ravel() for key in ("samples_ms", "step_ms"))
    ratios = np.sort(own / step)
    draws = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    same = min(row["dice"] for row in rows) >= 0.9999 and all(row["equal_bits"] for row in rows)
    return {
        "median_ms": float(np.median(own)),
        "step_median_ms": float(np.median(step)),
        "ratio": float(np.median(ratios)),
        "ratio_ci95": [float(low), float(high)],
        "ratio_of_least": float(own.min() / step.min()),
        "least_dice": min(row["dice"] for row in rows),
        "largest_difference": max(row["largest_difference"] for row in rows),
        "equal_bits": all(row["equal_bits"] for row in rows),
        "ships": bool(same and high <= _ALLOWED),
    }


if __name__ == "__main__":
    main()
