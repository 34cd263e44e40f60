"""Engines against their FP32 reference: the same images through both, one drift for each image and class."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.gate_cases import DriftCase, keep_worst
from unetx_exporters.gate_images import GateImage
from unetx_opt.errors import DataError, ExportError, SpecError
from unetx_opt.imaging.preprocess import ImageGeometry, prepare_image
from unetx_opt.imaging.refinement import decide_labels
from unetx_opt.metrics.gates import ComparedMasks, ImageDrift, drift_of
from unetx_opt.metrics.overlap import class_mask
from unetx_opt.specs import InputContract

__all__ = [
    "DriftMeasurement",
    "DriftOptions",
    "Engine",
    "MeasuredImage",
    "measure_drift",
]

#: Takes (1, C, H, W) float32, gives logits (1, K, H, W) float32.
Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]


#: Takes logits (K, h, w) and the image (C, h, w) on the network's grid, and where they lie; gives labels (H, W).
Decide = Callable[[NDArray[np.float32], NDArray[np.float32], ImageGeometry], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """How drift is measured.

    Attributes
    ----------
    class_names : tuple of str
        Names of the foreground classes in the order of their labels; empty calls them "foreground", or
        "class 1", "class 2" and so on.
    worst_cases : int
        How many images per engine are kept for the report's pictures.
    progress : callable or None
        Called with the name of each image once it is done.
    decide_pixels : callable
        Takes logits (K, h, w) and the image (C, h, w) on the network's grid, and the geometry; gives labels (H, W)
        on the source grid. What a model applies after its logits belongs here, so that the masks that are compared
        are those that are delivered; the logits themselves are compared before it.
    """

    class_names: tuple[str, ...] = ()
    worst_cases: int = 4
    progress: Callable[[str], None] | None = None
    decide_pixels: Decide = decide_labels


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """One image that took part: its name, the hash of its pixels, and its size."""

    name: str
    sha256: str
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True)
class DriftMeasurement:
    """What all engines made of all images.

    Attributes
    ----------
    drifts : mapping of str to tuple of ImageDrift
        For each engine, images in order and the classes of an image together.
    call_ms : mapping of str to tuple of float
        For each engine, wall-clock time of its one call per image. Taken in turns with the other engines, so that
        they can be ranked; no benchmark: nothing was warmed up, pinned or repeated.
    images : tuple of MeasuredImage
        In order.
    worst_cases : mapping of str to tuple of DriftCase
        For each engine, the images where its mask differs most, the worst first.
    """

    drifts: Mapping[str, tuple[ImageDrift, ...]]
    call_ms: Mapping[str, tuple[float, ...]]
    images: tuple[MeasuredImage, ...]
    worst_cases: Mapping[str, tuple[DriftCase, ...]]

    def median_call_ms(self, name: str) -> float:
        """Median time of one call of an engine."""
        return statistics.median(self.call_ms[name])


@dataclass(frozen=True, slots=True)
class _Reference:
    """One image as the reference sees it, for every engine to be compared with."""

    image: GateImage
    image_chw: NDArray[np.float32]
    geometry: ImageGeometry
    logits_nchw: NDArray[np.float32]
    labels: NDArray[np.uint8]


def measure_drift(
    reference: Engine,
    candidates: Mapping[str, Engine],
    images: Iterable[GateImage],
    contract: InputContract,
    options: DriftOptions = DriftOptions(),
) -> DriftMeasurement:
    """Run the reference and every engine on every image, and compare the masks on the image's own grid.

    Parameters
    ----------
    reference : callable
        The FP32 model of the same checkpoint, see `Engine`.
    candidates : mapping of str to callable
        Engines by name. Image i begins with engine i modulo their number, so that none is always first.
    images : iterable of GateImage
        One is held at a time.
    contract : InputContract
        How an image is brought to the engines; done once per image.
    options : DriftOptions
        Names, progress, pictures.

    Returns
    -------
    DriftMeasurement
        To be decided by `unetx_opt.metrics.gates.decide_gate`, one engine at a time. An engine's NaN and Inf are
        counted there and no error.

    Raises
    ------
    DataError
        Two images have the same pixels or the same name, or there is none.
    ExportError
        The reference gives NaN or Inf, or an engine's logits do not have the reference's shape.
    SpecError
        There are no candidates, or the class names do not fit the number of classes.
    """
    if not candidates:
        raise SpecError("no engine was given to compare with the reference, expected at least one")
    names = tuple(candidates)
    drifts: dict[str, list[ImageDrift]] = {name: [] for name in names}
    call_ms: dict[str, list[float]] = {name: [] for name in names}
    worst: dict[str, tuple[DriftCase, ...]] = dict.fromkeys(names, ())
    measured: dict[str, MeasuredImage] = {}
    for index, image in enumerate(images):
        _note_image(image, measured)
        image_chw, geometry = prepare_image(image.pixels, contract, image.spacing_mm)
        image_nchw = image_chw[np.newaxis]
        expected = _run_reference(reference, image, image_nchw, geometry, options)
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            logits, took_ms = _call(candidates[name], image_nchw)
            call_ms[name].append(took_ms)
            for drift, masks in _compare(name, logits, expected, options):
                drifts[name].append(drift)
                worst[name] = keep_worst(worst[name], drift, image.pixels, masks, options.worst_cases)
        if options.progress is not None:
            options.progress(image.name)
    if not measured:
        raise DataError("no image was given to measure drift on, expected at least one")
    return DriftMeasurement(
        drifts={name: tuple(drifts[name]) for name in names},
        call_ms={name: tuple(call_ms[name]) for name in names},
        images=tuple(measured.values()),
        worst_cases=worst,
    )


def _note_image(image: GateImage, measured: dict[str, MeasuredImage]) -> None:
    """Add an image to those measured, unless it was among them."""
    for other in measured.values():
        if image.sha256 == other.sha256 or image.name == other.name:
            raise DataError(
                f"images {other.name} and {image.name} are the same, expected each once: remove one from the split"
            )
    height_px, width_px = image.pixels.shape
    measured[image.sha256] = MeasuredImage(image.name, image.sha256, height_px, width_px)


def _run_reference(
    reference: Engine,
    image: GateImage,
    image_nchw: NDArray[np.float32],
    geometry: ImageGeometry,
    options: DriftOptions,
) -> _Reference:
    logits, _ = _call(reference, image_nchw)
    unusable = int(np.count_nonzero(~np.isfinite(logits)))
    if unusable:
        raise ExportError(
            f"the reference gives {unusable} NaN or infinite logits on image {image.name}: the checkpoint is "
            "unusable, train it again or choose another"
        )
    labels = options.decide_pixels(logits[0], image_nchw[0], geometry)
    return _Reference(image, image_nchw[0], geometry, logits, labels)


def _call(engine: Engine, image_nchw: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    own_copy = image_nchw.copy()  # an engine that computes in place must not change what the next one reads
    start = time.perf_counter_ns()
    logits = engine(own_copy)
    took_ms = (time.perf_counter_ns() - start) / 1e6
    return np.asarray(logits), took_ms


def _compare(
    name: str, logits: NDArray[np.float32], expected: _Reference, options: DriftOptions
) -> list[tuple[ImageDrift, ComparedMasks]]:
    """Drift and masks of each class of one image, for one engine."""
    if logits.shape != expected.logits_nchw.shape or logits.dtype != np.float32:
        raise ExportError(
            f"engine {name} gives logits {logits.dtype} {logits.shape} on image {expected.image.name}, expected "
            f"float32 {expected.logits_nchw.shape} as the reference: it was built from another graph"
        )
    unusable = int(np.count_nonzero(~np.isfinite(logits)))
    difference = math.inf if unusable else float(np.abs(logits - expected.logits_nchw).max())
    labels = options.decide_pixels(logits[0], expected.image_chw, expected.geometry)
    found = []
    for class_name, class_index in _foreground(logits.shape[1], options.class_names):
        truth = expected.image.truth
        masks = ComparedMasks(
            reference=class_mask(expected.labels, class_index),
            engine=class_mask(labels, class_index),
            truth=None if truth is None else class_mask(truth, class_index),
        )
        found.append((drift_of(expected.image.name, class_name, masks, difference, unusable), masks))
    return found


def _foreground(class_count: int, class_names: tuple[str, ...]) -> list[tuple[str, int | None]]:
    """Name and label of every class but the background; None is "not 0", of a binary mask."""
    labels: list[int | None] = [None] if class_count == 1 else list(range(1, class_count))
    names = class_names or (("foreground",) if class_count == 1 else tuple(f"class {label}" for label in labels))
    if len(names) != len(labels):
        raise SpecError(f"{len(names)} class names were given ({', '.join(names)}), expected {len(labels)}")
    return list(zip(names, labels, strict=True))
