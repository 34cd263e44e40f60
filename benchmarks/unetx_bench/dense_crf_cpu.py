"""The CRF on the processor: time and masks of the grid against pydensecrf, and both against the definition.

    python -m unetx_bench.dense_crf_cpu --data lungs --images 12 --size 512 --size 1024

prints one JSON object. The backends take turns on every image, so that what else the machine does hits both;
an image's ratio is of medians over its rounds. Logits come from the shipped network (``--logits network``), or from
the true masks, blurred, shifted by smooth noise and by noise of single pixels (``--logits mask``, without PyTorch).
``--exact 3`` also computes the definition itself on three whole images, in some minutes: it says whose error it is
that separates the two.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unetx_bench.dense_crf_exact import infer_exactly
from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, refine
from unetx_opt.imaging.postprocess import label_mask
from unetx_opt.metrics.bootstrap import mean_interval
from unetx_opt.metrics.overlap import dice

__all__ = ["chosen_names", "main", "mask_logits", "read_image", "scale_logits"]

_BACKENDS: Final = ("grid", "pydensecrf")
_REFERENCE_PX: Final = 64
_NETWORK_PX: Final = 256

Logits = NDArray[np.float32]
LogitSource = Callable[[Path, str], Logits]
Definition = Callable[[Logits, NDArray[np.uint8], Energies, int], NDArray[np.float64]]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--images", default=12, help="Images of the test split, evenly spaced.")
@click.option("--size", "sizes", multiple=True, default=(512, 1024), help="Height and width in pixels.")
@click.option("--rounds", default=3, help="Timed runs of each backend on each image.")
@click.option("--logits", "source", type=click.Choice(("network", "mask")), default="network")
@click.option("--exact", default=0, help="Images, from 2, compared with the definition at the first size.")
def main(data: Path, images: int, sizes: tuple[int, ...], rounds: int, source: str, exact: int) -> None:
    """Measure and print JSON."""
    for row in map(BACKENDS.__getitem__, _BACKENDS):
        if reason := row.why_not():
            raise click.ClickException(f"the comparison needs {row.name}: {reason}")
    names = chosen_names(data, images)
    make: LogitSource = _network_logits() if source == "network" else mask_logits
    plain = {name: make(data, name) for name in names}
    environment = _environment()
    report = {
        "logits": source,
        "parameters": {name: getattr(CrfParameters(), name) for name in CrfParameters.__dataclass_fields__},
        "environment": environment,
        "sizes": [_measure_size(data, plain, size_px, rounds) for size_px in sizes],
        "reference": _compare_reference(data, plain),
    }
    if exact:
        report["exact"] = _compare_exact(data, dict(list(plain.items())[:exact]), sizes[0])
    environment["load_after"] = os.getloadavg()
    click.echo(json.dumps(report, indent=2))


def _measure_size(data: Path, plain: dict[str, Logits], size_px: int, rounds: int) -> dict[str, Any]:
    rows = []
    for name, logits in plain.items():
        image, scaled = read_image(data / "images" / name, size_px), scale_logits(logits, size_px)
        masks: dict[str, NDArray[np.uint8]] = {}
        samples: dict[str, list[float]] = {backend: [] for backend in _BACKENDS}
        for _ in range(rounds + 1):
            for backend in _BACKENDS:
                start = time.perf_counter()
                masks[backend] = refine(scaled, image, backend=backend).labels_hw
                samples[backend].append((time.perf_counter() - start) * 1e3)
        timed = {backend: values[1:] for backend, values in samples.items()}  # the first run warms up
        grid_ms, peer_ms = (float(np.median(timed[backend])) for backend in _BACKENDS)
        row: dict[str, Any] = {"image": name, "samples_ms": timed, "grid_ms": grid_ms, "pydensecrf_ms": peer_ms}
        row["ratio"] = peer_ms / grid_ms
        row["dice_to_pydensecrf"] = dice(masks["grid"], masks["pydensecrf"])
        row["dice_raw_to_pydensecrf"] = dice(label_mask(scaled), masks["pydensecrf"])
        rows.append(row)
    summary = {key: _summarize([row[key] for row in rows]) for key in rows[0] if key not in ("image", "samples_ms")}
    return {"size_px": size_px, "summary": summary, "images": rows}


def _compare_reference(data: Path, plain: dict[str, Logits]) -> dict[str, Any]:
    """Compare both with the sum over all pairs of pixels of small copies."""

    def expected(logit: Logits, image: NDArray[np.uint8], energies: Energies, iterations: int) -> NDArray[np.float64]:
        both = infer_mean_field(np.stack([np.zeros_like(logit), logit]), image, energies, iterations)
        return np.asarray(both[1])

    return _compare(data, plain, _REFERENCE_PX, expected)


def _compare_exact(data: Path, plain: dict[str, Logits], size_px: int) -> dict[str, Any]:
    """Compare both with the same sum over whole images."""
    return _compare(data, plain, size_px, infer_exactly)


def _compare(data: Path, plain: dict[str, Logits], size_px: int, definition: Definition) -> dict[str, Any]:
    parameters = CrfParameters()
    energies = Energies(**{name: getattr(parameters, name) for name in Energies.__dataclass_fields__})
    rows: dict[str, list[float]] = {f"{backend}_{kind}": [] for backend in _BACKENDS for kind in ("dice", "error")}
    rows["dice_between"] = []
    for name, logits in plain.items():
        image, scaled = read_image(data / "images" / name, size_px), scale_logits(logits, size_px)
        expected = definition(scaled[0], image, energies, parameters.iterations)
        found = {backend: refine(scaled, image, backend=backend) for backend in _BACKENDS}
        for backend, one in found.items():
            rows[f"{backend}_dice"].append(dice(one.labels_hw, (expected > 0.5).astype(np.uint8)))
            rows[f"{backend}_error"].append(float(np.abs(one.probabilities_khw[0] - expected).mean()))
        rows["dice_between"].append(dice(found["grid"].labels_hw, found["pydensecrf"].labels_hw))
    return {"size_px": size_px, **{key: _summarize(values) for key, values in rows.items()}}


def _summarize(values: list[float]) -> dict[str, Any]:
    mean = mean_interval(np.asarray(values))
    ordered = np.sort(values)
    draws = np.random.default_rng(0).integers(len(ordered), size=(2000, len(ordered)))
    low, high = np.quantile(np.median(ordered[draws], axis=1), (0.025, 0.975))
    return {
        "n": len(values),
        "median": float(np.median(ordered)),
        "median_ci95": [float(low), float(high)],
        "mean": float(np.mean(ordered)),
        "mean_ci95": [mean.lower, mean.upper],
        "least": float(ordered[0]),
        "most": float(ordered[-1]),
    }


def chosen_names(data: Path, count: int) -> list[str]:
    """Return files of the test split, evenly spaced."""
    with (data / "splits.csv").open(newline="", encoding="utf-8") as file:
        names = sorted(row["file"] for row in csv.DictReader(file) if row["split"] == "test")
    chosen = np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)
    return [names[index] for index in chosen]


def read_image(path: Path, size_px: int) -> NDArray[np.uint8]:
    """Return an image as grey (size, size)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((size_px, size_px), Image.Resampling.BILINEAR))


def scale_logits(logits: Logits, size_px: int) -> Logits:
    """Bring (1, H, W) logits to another size."""
    image = Image.fromarray(logits[0]).resize((size_px, size_px), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)[np.newaxis]


def mask_logits(data: Path, name: str) -> Logits:
    """Make (1, 512, 512) logits of a true mask: blurred, shifted by smooth noise and by noise of single pixels."""
    mask = read_image(data / "masks" / name, 512) > 127
    generator = np.random.default_rng(sum(name.encode()))
    shift = ndimage.gaussian_filter(generator.normal(size=mask.shape), 12)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 6) + 0.12 * shift / shift.std()
    soft += 0.03 * generator.normal(size=mask.shape)
    return np.asarray(6 * (soft - 0.5), dtype=np.float32)[np.newaxis]


def _network_logits() -> LogitSource:
    from unetx_opt.imaging.postprocess import restore_logits
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.models.checkpoint import load_model, read_checkpoint, reference_checkpoint
    from unetx_opt.optional import require
    from unetx_opt.specs import InputContract

    torch = require("torch", purpose="the network's logits")
    model = load_model(read_checkpoint(reference_checkpoint("unet")))
    contract = InputContract(height=_NETWORK_PX, width=_NETWORK_PX)

    def make(data: Path, name: str) -> Logits:
        prepared, geometry = prepare_image(read_image(data / "images" / name, 512), contract)
        with torch.inference_mode():
            logits = model(torch.from_numpy(prepared.copy())[None]).numpy()[0]
        return restore_logits(logits, geometry)

    return make


def _environment() -> dict[str, Any]:
    packages = ("numpy", "scipy", "numba", "pydensecrf2", "pillow")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
        "packages": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
