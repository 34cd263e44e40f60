"""The pictures of a gate's report: a scatter plot as SVG text, an overlay of two masks as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from unetx_exporters.gate_cases import OVERVIEW_PX, CaseView, DriftCase
from unetx_opt.metrics.gates import GateLimits, ImageDrift

__all__ = ["DriftScale", "case_png", "drift_scale", "is_outside", "scatter_svg", "signed"]

# Okabe and Ito's palette: blue, orange and white stay apart under every colour-vision deficiency.
_REFERENCE_COLOR: Final = (86, 180, 233)
_ENGINE_COLOR: Final = (230, 159, 0)
_BOTH_COLOR: Final = (255, 255, 255)
_DIFFERENCE_COLOR: Final = (240, 60, 150)
_MINUS: Final = "\N{MINUS SIGN}"
_GAP_PX: Final = 8
_CONTOUR_PX: Final = 2

_Plane = TypeVar("_Plane", np.uint8, np.bool_)

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 22, 16, 48


@dataclass(frozen=True, slots=True)
class DriftScale:
    """What the axes of the scatter plots span, the same for every engine of a report.

    Attributes
    ----------
    shift_px : float
        Right end of the horizontal axis, which begins at 0: boundary shift.
    lower, upper : float
        Ends of the vertical axis: Dice difference.
    limits : GateLimits
        Of the gate whose lines are drawn.
    """

    shift_px: float
    lower: float
    upper: float
    limits: GateLimits


def drift_scale(drifts: Sequence[ImageDrift], limits: GateLimits) -> DriftScale:
    """Choose axes that show both limits and all points, but no more than four times the limits."""
    shifts = [drift.hausdorff_shift_px for drift in drifts if math.isfinite(drift.hausdorff_shift_px)]
    differences = [drift.score_difference for drift in drifts]
    reach, shift = abs(limits.worst_dice_difference), limits.hausdorff_shift_px
    return DriftScale(
        shift_px=min(4.0 * shift, 1.1 * max([1.2 * shift, *shifts])),
        lower=max(-4.0 * reach, 1.1 * min([-1.2 * reach, *differences])),
        upper=min(4.0 * reach, 1.1 * max([0.4 * reach, *differences])),
        limits=limits,
    )


def scatter_svg(name: str, drifts: Sequence[ImageDrift], scale: DriftScale) -> str:
    """Plot one engine: a point for each image and class, boundary shift against Dice difference.

    Parameters
    ----------
    name : str
        The engine, for readers who cannot see the plot.
    drifts : sequence of ImageDrift
        Crosses are beyond a limit that holds for every single image; of the others, circles are in place, and
        triangles stand at the border of the plot for what lies outside.
    scale : DriftScale
        Axes and limit lines.

    Returns
    -------
    str
        An ``svg`` element, coloured by the page's style sheet; every text in it is escaped.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(name)}: {len(drifts)} points, boundary shift against Dice difference">',
        *_axes(scale),
        *_limit_lines(scale),
        *(_point(drift, scale) for drift in drifts),
        "</svg>",
    ]
    return "".join(parts)


def is_outside(drift: ImageDrift, scale: DriftScale) -> bool:
    """Whether a point stands at the border of the plot because it lies beyond it."""
    within = scale.lower <= drift.score_difference <= scale.upper
    return not within or drift.hausdorff_shift_px > scale.shift_px


def signed(value: float) -> str:
    """Write a difference with six decimals at most, none of them needless, and a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    if text in ("0", "-0") and value != 0:
        text = f"{value:.0e}"
    return "0" if text == "-0" else text.replace("-", _MINUS)


def _x(shift_px: float, scale: DriftScale) -> float:
    inner = _WIDTH - _LEFT - _RIGHT
    return round(_LEFT + inner * min(shift_px / scale.shift_px, 1.0), 1)


def _y(difference: float, scale: DriftScale) -> float:
    inner = _HEIGHT - _TOP - _BOTTOM
    share = (scale.upper - difference) / (scale.upper - scale.lower)
    return round(_TOP + inner * min(max(share, 0.0), 1.0), 1)


def _axes(scale: DriftScale) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in _ticks(0.0, scale.shift_px):
        x = _x(tick, scale)
        parts.append(f'<line class="grid" x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(scale.lower, scale.upper):
        y = _y(tick, scale)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{signed(tick)}</text>')
    middle = (_TOP + bottom) / 2
    zero = _y(0.0, scale)
    parts += [
        f'<line class="axis" x1="{_LEFT}" y1="{zero}" x2="{right}" y2="{zero}"/>',
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{bottom}"/>',
        f'<text class="label" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        "95 % Hausdorff shift (px)</text>",
        f'<text class="label" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        "Dice difference</text>",
    ]
    return parts


def _limit_lines(scale: DriftScale) -> list[str]:
    worst, shift = scale.limits.worst_dice_difference, scale.limits.hausdorff_shift_px
    x, y = _x(shift, scale), _y(worst, scale)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    # The words stand on the side of the vertical line that has room for them.
    words, anchor = (_LEFT + 6, "start") if 2 * x > _LEFT + right else (right - 5, "end")
    return [
        f'<line class="limit" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>',
        f'<text class="limit-text" x="{words}" y="{y - 5}" text-anchor="{anchor}">worst image {signed(worst)}</text>',
        f'<line class="limit" x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}"/>',
        f'<text class="limit-text" x="{x - 5}" y="{_TOP + 11}" text-anchor="end">{shift:g} px for 95 %</text>',
    ]


def _point(drift: ImageDrift, scale: DriftScale) -> str:
    x, y = _x(drift.hausdorff_shift_px, scale), _y(drift.score_difference, scale)
    title = (
        f"<title>{escape(drift.name)}, {escape(drift.class_name)}: Dice difference {signed(drift.score_difference)}, "
        f"shift {signed(drift.hausdorff_shift_px)} px</title>"
    )
    if drift.is_broken or drift.score_difference < scale.limits.worst_dice_difference:
        cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m-8 0l8 -8"
        return f'<path class="beyond" d="{cross}">{title}</path>'
    if is_outside(drift, scale):
        triangle = f"M{x - 5:.1f} {y + 4:.1f}l10 0l-5 -9z"
        return f'<path class="point" d="{triangle}">{title}</path>'
    return f'<circle class="point" cx="{x}" cy="{y}" r="4">{title}</circle>'


def _ticks(lower: float, upper: float) -> list[float]:
    """Four to nine round numbers between two ends."""
    raw = (upper - lower) / 6
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = magnitude * min((1, 2, 5, 10), key=lambda factor: abs(factor * magnitude - raw))
    return [round(index * step, 12) for index in range(math.ceil(lower / step), math.floor(upper / step) + 1)]


def case_png(case: DriftCase) -> bytes:
    """Draw one case: the image with both contours, and beside it the largest difference enlarged.

    Returns
    -------
    bytes
        RGB PNG. Blue is the reference's contour, orange the engine's, white where they coincide; pixels that are
        in one mask only are pink. A white frame marks the enlarged window.
    """
    overview = _paint(case.overview, 1)
    _mark_window(overview, case)
    detail = _paint(case.detail, OVERVIEW_PX // max(case.detail.grey.shape))
    canvas = np.zeros((OVERVIEW_PX, 2 * OVERVIEW_PX + _GAP_PX, 3), dtype=np.uint8)
    for picture, start in ((overview, 0), (detail, OVERVIEW_PX + _GAP_PX)):
        height, width = picture.shape[:2]
        top, left = (OVERVIEW_PX - height) // 2, start + (OVERVIEW_PX - width) // 2
        canvas[top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _paint(view: CaseView, zoom: int) -> NDArray[np.uint8]:
    picture = np.repeat(_enlarge(view.grey, zoom)[:, :, np.newaxis], 3, axis=2)
    difference = _enlarge(view.difference, zoom)
    blended = picture[difference].astype(np.float64) * 0.3 + np.array(_DIFFERENCE_COLOR, dtype=np.float64) * 0.7
    picture[difference] = np.rint(blended).astype(np.uint8)
    contour, other_contour = (_contour(_enlarge(mask, zoom)) for mask in (view.reference, view.engine))
    picture[contour] = _REFERENCE_COLOR
    picture[other_contour] = _ENGINE_COLOR
    picture[contour & other_contour] = _BOTH_COLOR
    return np.asarray(picture, dtype=np.uint8)


def _enlarge(plane: NDArray[_Plane], zoom: int) -> NDArray[_Plane]:
    return plane.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # border_value 1: a mask that runs out of the picture has no contour along its edge.
    inside = binary_erosion(mask, iterations=_CONTOUR_PX, border_value=1)
    return np.asarray(mask & ~inside, dtype=np.bool_)


def _mark_window(overview: NDArray[np.uint8], case: DriftCase) -> None:
    lines = []
    for corner, length, side in zip(case.detail_corner, case.detail.grey.shape, overview.shape[:2], strict=True):
        lines.append((max(0, corner), min(side - 1, corner + round(length * case.overview_zoom))))
    (top, bottom), (left, right) = lines
    overview[[top, bottom], left : right + 1] = 255
    overview[top : bottom + 1, [left, right]] = 255
