"""What a benchmark is asked for, and the checkpoint and images that it finds for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unetx_bench.bundles import TimedImage
from unetx_bench.errors import MeasurementError
from unetx_bench.measurement import MeasureOptions
from unetx_exporters.gate_images import GateImages, folder_gate_images, phantom_gate_images
from unetx_opt.errors import CheckpointError, UnetxError
from unetx_opt.metrics.gates import MINIMUM_IMAGES

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest
    from unetx_opt.models.checkpoint import Checkpoint

__all__ = ["BenchRequest", "choose_images", "find_checkpoint", "make_timed_image"]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One benchmark.

    Attributes
    ----------
    bundles : tuple of pathlib.Path
        At least one.
    output : pathlib.Path
        Folder that shall appear.
    measure : MeasureOptions
        When to stop.
    checkpoints : tuple of pathlib.Path
        Where the bundles' weights may be, besides the reference checkpoints; matched by hash.
    peers : tuple of str
        Keys of `unetx_bench.peers.PEERS`.
    spans : tuple of str
        Keys of `unetx_bench.bundles.CLOCK_SPANS`.
    batches : tuple of int
        Images per call of the span "engine".
    data : pathlib.Path or None
        Data folder for drift and for the timed image; phantoms otherwise.
    split : str
        Its split.
    images : int
        Most images to measure drift on; 0 measures none.
    gate : str
        Key of the table of gates.
    threads : int or None
        CPU threads of one inference.
    cpus : tuple of int or None
        Processors to stay on.
    attempts : int
        How often a disturbed measurement is made at most.
    details : bool
        Also measure the first run in fresh processes, limits, profiles and energy.
    pictures : bool
        Write pictures of the worst images.
    overwrite : bool
        Replace an existing output.
    """

    bundles: tuple[Path, ...]
    output: Path
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    checkpoints: tuple[Path, ...] = ()
    peers: tuple[str, ...] = ()
    spans: tuple[str, ...] = ("engine", "host", "file")
    batches: tuple[int, ...] = (1,)
    data: Path | None = None
    split: str = "test"
    images: int = 40
    gate: str = "strict"
    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    attempts: int = 2
    details: bool = True
    pictures: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if 0 < self.images < MINIMUM_IMAGES:
            raise MeasurementError(
                f"drift on {self.images} images decides nothing, a gate needs {MINIMUM_IMAGES}: pass --images "
                f"{MINIMUM_IMAGES} or more, or 0 to leave drift out"
            )


def find_checkpoint(manifest: Manifest, given: Sequence[Path]) -> Checkpoint:
    """Find the weights that a bundle was made from.

    Parameters
    ----------
    manifest : Manifest
        Of the bundle.
    given : sequence of pathlib.Path
        Files to look at before the reference checkpoint of the variant.

    Raises
    ------
    CheckpointError
        None has the hash that the manifest names.
    """
    from unetx_opt.models.checkpoint import read_checkpoint, reference_checkpoint

    wanted = manifest.checkpoint.sha256
    candidates = list(given)
    with contextlib.suppress(UnetxError):  # none ships for this variant
        candidates.append(reference_checkpoint(manifest.variant))
    for path in candidates:
        if path.is_file() and _sha256(path) == wanted:
            return read_checkpoint(path, variant=manifest.variant)
    raise CheckpointError(
        f"the checkpoint of variant {manifest.variant} with SHA-256 {wanted[:16]}... was not found: "
        "pass it with --checkpoint for peers and drift"
    )


def choose_images(request: BenchRequest, size_px: int) -> GateImages:
    """Choose the images for drift: evenly spaced from the split, or phantoms of the engine's size."""
    if request.data is None:
        return phantom_gate_images(max(request.images, 1), size_px, seed=1)
    images = folder_gate_images(request.data, request.split)
    chosen = np.linspace(0, len(images) - 1, min(max(request.images, 1), len(images))).astype(int)
    return dataclasses.replace(images, count=len(chosen), read=lambda index: images.read(int(chosen[index])))


def make_timed_image(images: GateImages, folder: Path) -> tuple[TimedImage, Mapping[str, Any]]:
    """Write the first image as a file to be timed with.

    Returns
    -------
    TimedImage
        The file.
    dict
        Its facts for the report: name, sha256, height_px, width_px.
    """
    image = images.read(0)
    path = folder / "image.png"
    grey = image.pixels if image.pixels.dtype == np.uint8 else image.pixels.astype(np.uint16)
    Image.fromarray(grey).save(path)
    facts = {
        "name": image.name,
        "sha256": image.sha256,
        "height_px": image.pixels.shape[0],
        "width_px": image.pixels.shape[1],
    }
    return TimedImage(image.name, path, folder / "mask.png"), facts


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
