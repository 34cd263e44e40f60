"""From the histogram of a tensor to the range that its 256 values cover: four methods, and the choice among them.

The methods are min-max; a percentile of the magnitudes; entropy, which is the range whose quantized histogram has
the least Kullback-Leibler divergence from the histogram (Migacz, 8-bit inference with TensorRT, 2017); and the range
of the least mean squared error. None is best for every tensor: what is beyond the range of a rectified feature may be
a border effect, or the very thing that the network looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.quantize.grids import Grid
from unetx_exporters.quantize.histogram import Histogram

if TYPE_CHECKING:
    import onnx

    from unetx_exporters.quantize.calibrate import Calibration

__all__ = ["METHODS", "TensorRange", "choose_scales", "distinct_ranges", "range_by", "squared_error"]

_PERCENTILE: Final = 99.99
#: Ranges that the two searches try, as parts of the full one.
_SHRINKS: Final = np.geomspace(0.05, 1.0, 48)
_LEVELS: Final = 256
#: Ranges whose ends differ by less than this part of the length are one candidate.
_SAME: Final = 0.02
#: A range with this many times the least squared error is not measured.
_HOPELESS: Final = 8.0
#: Images on which ranges are compared, of those that a calibration keeps: each costs a run for every candidate.
_PROBES: Final = 2

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range of a tensor, how it was found, and what it costs.

    Attributes
    ----------
    low, high : float
        In the unit of the tensor.
    method : str
        A key of `METHODS`.
    error : float
        What the choice was made by: mean squared error, of the tensor relative to its mean square where only its
        histogram was looked at, or of the logits where those were measured.
    """

    low: float
    high: float
    method: str
    error: float

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain JSON types."""
        return {"low": self.low, "high": self.high, "method": self.method, "error": self.error}


def choose_scales(
    calibration: Calibration, graph: Path | onnx.ModelProto, scheme: str = "cpu"
) -> dict[str, TensorRange]:
    """Choose the range of every calibrated tensor: the method that disturbs the logits least.

    Parameters
    ----------
    calibration : Calibration
        Histograms, and the images on which the methods are compared; without images the mean squared error of
        the tensor itself decides.
    graph : pathlib.Path or onnx.ModelProto
        The graph that was calibrated.
    scheme : str
        Whose 8-bit tensors: a key of `unetx_exporters.quantize.schemes.FORMS`.

    Raises
    ------
    ExportError
        The calibration is of another graph.
    """
    from unetx_exporters.quantize.calibrate import load_graph
    from unetx_exporters.quantize.disturbance import logit_errors
    from unetx_exporters.quantize.schemes import get_form

    grid = get_form(scheme).activations
    candidates = {name: distinct_ranges(found, grid) for name, found in calibration.histograms.items()}
    images = calibration.probes[:_PROBES]
    errors = logit_errors(load_graph(graph), candidates, grid, images) if images else {}
    chosen = {}
    for name, methods in candidates.items():
        histogram = calibration.histograms[name]
        own = errors.get(name) or {
            method: squared_error(histogram, grid, limits) for method, limits in methods.items()
        }
        best = min(own, key=lambda method: own[method])
        chosen[name] = TensorRange(*methods[best], best, own[best])
    return chosen


def distinct_ranges(histogram: Histogram, grid: Grid) -> dict[str, Range]:
    """Find the range of a tensor by every method.

    Returns
    -------
    dict of str to (float, float)
        Without ranges that come to nearly the same as an earlier one, and without those whose error in the tensor
        itself is many times the least: such a range is never the best for the logits either.
    """
    found: dict[str, Range] = {}
    for method in METHODS:
        low, high = range_by(method, histogram, grid)
        near = _SAME * (histogram.high - histogram.low)
        if not any(abs(low - other[0]) <= near and abs(high - other[1]) <= near for other in found.values()):
            found[method] = (low, high)
    own = _own_errors(histogram, grid, found)
    return {method: limits for method, limits in found.items() if own[method] <= _HOPELESS * min(own.values())}


def _own_errors(histogram: Histogram, grid: Grid, methods: Mapping[str, Range]) -> dict[str, float]:
    return {method: squared_error(histogram, grid, limits) for method, limits in methods.items()}


def range_by(method: str, histogram: Histogram, grid: Grid) -> Range:
    """Find the range of a tensor by one method.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    histogram : Histogram
        Of the tensor's values.
    grid : Grid
        Kind of 8-bit tensor that it becomes.

    Returns
    -------
    low, high : float
        Within the extremes of the histogram.
    """
    return METHODS[method](histogram, grid)


def squared_error(histogram: Histogram, grid: Grid, limits: Range) -> float:
    """Mean squared error of rounding a tensor with a range, relative to its mean square; 0 for a tensor of zeros."""
    values, weights = histogram.centres(), histogram.counts
    power = float(np.dot(weights, values**2))
    if power == 0.0:
        return 0.0
    quantizer = grid.fit(*limits)
    squares = (quantizer.dequantize(quantizer.quantize(values)) - values) ** 2
    if quantizer.scale < histogram.width:
        # Finer than a bin: inside the range the error is even over a step, wherever in the bin the values are.
        low, high = quantizer.range
        squares = np.where((values > low) & (values < high), quantizer.scale**2 / 12.0, squares)
    return float(np.dot(weights, squares)) / power


def _min_max(histogram: Histogram, grid: Grid) -> Range:
    del grid
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, grid: Grid) -> Range:
    del grid
    total, beyond = (
        histogram.total,
        (1.0 - _PERCENTILE / 100.0) / (2.0 if histogram.low < 0.0 < histogram.high else 1.0),
    )
    cumulative = np.cumsum(histogram.counts)
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    low, high = histogram.low, histogram.high
    if low < 0.0:
        low = max(low, float(edges[np.searchsorted(cumulative, beyond * total, side="right")]))
    if high > 0.0:
        high = min(high, float(edges[np.searchsorted(cumulative, (1.0 - beyond) * total, side="left") + 1]))
    return min(low, high), max(low, high)


def _candidates(histogram: Histogram) -> list[Range]:
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    longer = max(-low, high)
    # Cut both sides at one magnitude: the shorter side stays whole until it is reached.
    return [(max(low, -part * longer), min(high, part * longer)) for part in map(float, _SHRINKS)]


def _least_squares(histogram: Histogram, grid: Grid) -> Range:
    return min(_candidates(histogram), key=lambda limits: squared_error(histogram, grid, limits))


def _entropy(histogram: Histogram, grid: Grid) -> Range:
    return min(_candidates(histogram), key=lambda limits: _divergence(histogram, grid, limits))


def _divergence(histogram: Histogram, grid: Grid, limits: Range) -> float:
    """Kullback-Leibler divergence of the quantized histogram from the clipped one, without the bin of 0."""
    values, counts = histogram.centres(), histogram.counts.astype(np.float64)
    # Rectified tensors are mostly 0, which every grid holds exactly: it would hide all else.
    counts = np.where(np.abs(values) < histogram.width, 0.0, counts)
    quantizer = grid.fit(*limits)
    codes = np.clip(
        np.rint(values / quantizer.scale),
        quantizer.lowest - quantizer.zero_point,
        quantizer.highest - quantizer.zero_point,
    ).astype(np.int64)
    codes -= codes.min()
    inside = (values >= limits[0]) & (values <= limits[1])
    reference = np.where(inside, counts, 0.0)
    clipped = counts[~inside]
    if clipped.size:
        index = np.flatnonzero(inside)
        if index.size == 0:
            return float("inf")
        reference[index[0]] += counts[: index[0]].sum()
        reference[index[-1]] += counts[index[-1] + 1 :].sum()
    filled = (counts > 0.0) & inside
    share = np.bincount(codes, np.where(inside, counts, 0.0), minlength=_LEVELS)
    bins = np.bincount(codes, filled, minlength=_LEVELS)
    quantized = np.where(filled, (share / np.maximum(bins, 1.0))[codes], 0.0)
    return _relative_entropy(reference, quantized)


def _relative_entropy(reference: NDArray[np.float64], quantized: NDArray[np.float64]) -> float:
    total, other = reference.sum(), quantized.sum()
    if total == 0.0 or other == 0.0:
        return float("inf") if total > 0.0 else 0.0
    p, q = reference / total, quantized / other
    used = p > 0.0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


#: Method -> function of (histogram, grid) that gives the range.
METHODS: Final[Mapping[str, Callable[[Histogram, Grid], Range]]] = MappingProxyType(
    {"min-max": _min_max, "percentile": _percentile, "entropy": _entropy, "mse": _least_squares}
)
