"""Ranges of every tensor that may become 8-bit, from images that pass one at a time.

Memory does not depend on the number of images: of each tensor a histogram is kept. Tensors are computed in groups,
so that the activations held at once have a bound too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import INPUT_NAME, infer_types
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.quantize.histogram import DEFAULT_BINS, Histogram, histogram_of, merge_histograms
from unetx_exporters.quantize.images import neighbour_correlation
from unetx_exporters.quantize.tensors import Flow, list_tensors
from unetx_opt.errors import DataError, ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="calibrating a graph")

__all__ = ["Calibration", "CalibrationOptions", "calibrate_ranges", "load_graph"]

#: Least correlation of neighbouring pixels of an image as the network sees it.
_LEAST_CORRELATION: Final = 0.5
_FLAT: Final = 1e-4


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How a graph is calibrated.

    Attributes
    ----------
    bins : int
        Largest number of bins of a histogram.
    group_bytes : int
        Activations that are held at once.
    sampled_values : int
        Values of one tensor of one image that are counted, evenly spread; smallest and largest are of all.
    few_images : int
        A calibration on fewer images is warned about.
    probes : int
        Images that are kept, on which ranges and preparations are measured.
    threads : int or None
        Threads of one operator; None for all that this process may use.
    """

    bins: int = DEFAULT_BINS
    group_bytes: int = 256 * 2**20
    sampled_values: int = 2**19
    few_images: int = 16
    probes: int = 4
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was seen of each tensor.

    Attributes
    ----------
    histograms : mapping of str to Histogram
        By tensor name.
    images : int
        Number of images.
    warnings : tuple of str
        What a reader of the evidence must know, as sentences.
    probes : tuple of numpy.ndarray
        A few of the images, on which choices are measured.
    """

    histograms: Mapping[str, Histogram]
    images: int
    warnings: tuple[str, ...] = ()
    probes: tuple[NDArray[np.float32], ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain JSON types, without the counts."""
        tensors = {name: histogram.to_json() for name, histogram in self.histograms.items()}
        return {"images": self.images, "warnings": list(self.warnings), "tensors": tensors}


def calibrate_ranges(
    graph: Path | onnx.ModelProto,
    images: Iterable[NDArray[np.float32]],
    options: CalibrationOptions | None = None,
) -> Calibration:
    """Run a float32 graph on images and count the values of its tensors.

    Parameters
    ----------
    graph : pathlib.Path or onnx.ModelProto
        Float32 graph with batch normalisation folded.
    images : iterable of numpy.ndarray
        (N, C, H, W) float32 as the network reads them; gone through once, one held at a time.
    options : CalibrationOptions, optional
        Sizes.

    Raises
    ------
    DataError
        There is no image, or one is constant, is noise, or holds what is not a finite number.
    ExportError
        The graph cannot be run, or one of its tensors is not finite on an image.
    """
    options = options or CalibrationOptions()
    model = load_graph(graph)
    flow = Flow(model)
    names = list_tensors(flow)
    if not names:
        raise ExportError("the graph has no layer with weights, so there is nothing to calibrate")
    counted: dict[str, Histogram] = {}
    probes: list[NDArray[np.float32]] = []
    draw = random.Random(0)  # noqa: S311 - a sample, no secret
    count = 0
    with contextlib.ExitStack() as stack:
        runners = [
            stack.enter_context(GraphRunner(model, outputs=group, threads=options.threads, keep_memory=False))
            for group in _groups(model, [name for name in names if name != INPUT_NAME], options.group_bytes)
        ]
        for image in images:
            _refuse_unlike(image, count)
            _count(counted, INPUT_NAME, image, options)
            for runner in runners:
                for name, values in runner.run(image).items():
                    if name in names:
                        _count(counted, name, values, options)
            count += 1
            # A sample of fixed size in which every image has the same chance (reservoir sampling).
            place = count - 1 if count <= options.probes else draw.randrange(count)
            if place < options.probes:
                probes[place:] = [image[:1].copy(), *probes[place + 1 :]]
    if count == 0:
        raise DataError("there is no calibration image: give at least 16 of the kind that the model will see")
    histograms = MappingProxyType({name: counted[name] for name in names})
    return Calibration(histograms, count, _warnings(count, options), tuple(probes))


def load_graph(graph: Path | onnx.ModelProto) -> onnx.ModelProto:
    """Read a graph from a file, or take one that is in memory."""
    return onnx.load(graph) if isinstance(graph, Path) else graph


def _groups(model: onnx.ModelProto, names: Sequence[str], limit: int) -> list[list[str]]:
    sizes = {value.name: _bytes(value) for value in infer_types(model).graph.value_info}
    groups: list[list[str]] = []
    left = 0
    for name in names:
        size = sizes.get(name, 0)
        if not groups or size > left:
            groups.append([])
            left = limit
        groups[-1].append(name)
        left -= size
    return groups


def _bytes(value: onnx.ValueInfoProto) -> int:
    size = 4
    for dim in value.type.tensor_type.shape.dim:
        size *= max(1, int(dim.dim_value))  # a symbolic batch is 0 here
    return size


def _refuse_unlike(image: NDArray[Any], index: int) -> None:
    if image.ndim != 4 or image.size == 0:
        raise DataError(f"calibration image {index} has shape {image.shape}, expected (N, C, H, W)")
    if not np.isfinite(image).all():
        raise DataError(f"calibration image {index} holds values that are not finite: remove it")
    if float(np.ptp(image)) < _FLAT:
        raise DataError(f"calibration image {index} is of one grey: ranges of it fit no image, remove it")
    correlation = min(neighbour_correlation(plane) for batch in image for plane in batch if np.ptp(plane) >= _FLAT)
    if correlation < _LEAST_CORRELATION:
        raise DataError(
            f"calibration image {index} looks like noise (neighbouring pixels correlate by {correlation:.2f}, "
            f"expected at least {_LEAST_CORRELATION}): ranges of random data fit no image, remove it"
        )


def _count(counted: dict[str, Histogram], name: str, values: NDArray[Any], options: CalibrationOptions) -> None:
    extremes = float(values.min()), float(values.max())
    if not np.isfinite(extremes).all():
        raise ExportError(f"tensor {name} is not finite on a calibration image: the model overflows, train it again")
    flat = values.ravel()
    # An odd step visits every column of an image whose width is a power of two.
    step = max(1, flat.size // options.sampled_values) | 1
    found = histogram_of(flat[::step], options.bins, extremes)
    counted[name] = merge_histograms(counted[name], found) if name in counted else found


def _warnings(count: int, options: CalibrationOptions) -> tuple[str, ...]:
    if count >= options.few_images:
        return ()
    return (
        f"The 8-bit ranges come from {count} images only, expected at least {options.few_images}: a range may miss "
        "what other images reach.",
    )
