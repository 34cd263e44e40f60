"""The chart of drift image by image: one dot for each image, one line for each candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unetx_bench.report_page.axis import fit_axis, plain_number
from unetx_bench.report_page.svg import Svg, drawing, element, shorten, text

__all__ = ["ScatterRow", "draw_scatter"]

_ROW_PX: Final = 50
_LABEL_PX: Final = 16
_BAND_PX: Final = 22
_FOOT_PX: Final = 36
_LANES: Final = 5


@dataclass(frozen=True, slots=True)
class ScatterRow:
    """One candidate.

    Attributes
    ----------
    label : str
        Its name.
    state : str
        "passed", "failed" or "peer".
    differences : tuple of float
        Score of its mask less that of the reference's, one for each image and class.
    """

    label: str
    state: str
    differences: tuple[float, ...]


def draw_scatter(rows: Sequence[ScatterRow], limit: float | None, name: str, width: float) -> Svg:
    """Draw the differences of every image; `limit` is the gate's for the worst single image."""
    height, base = _FOOT_PX + _ROW_PX * len(rows), _ROW_PX * len(rows)
    values = [value for row in rows for value in row.differences]
    axis = fit_axis([*values, 0.0, *([] if limit is None else [limit])], 10, width - 14)
    parts: list[Svg] = []
    for value in axis.ticks(8 if width > 500 else 4):
        x = axis.place(value)
        parts.append(element("line", x1=x, x2=x, y1=0, y2=base, class_="grid"))
        parts.append(text(x, base + 16, plain_number(value), "tick middle"))
    parts.append(text(width - 14, base + 31, "difference of the Dice coefficient", "tick end"))
    marks = [(0.0, "base")] if limit is None else [(0.0, "base"), (limit, "limit")]
    for value, class_ in marks:
        parts.append(element("line", x1=axis.place(value), x2=axis.place(value), y1=0, y2=base, class_=class_))
    for index, row in enumerate(rows):
        top = index * _ROW_PX
        parts.append(text(4, top + 13, shorten(row.label, width - 16)))
        for number, value in enumerate(row.differences):
            # Lanes keep dots of equal values apart; their height means nothing.
            y = top + _LABEL_PX + 4 + (number % _LANES) * (_BAND_PX / _LANES)
            parts.append(element("circle", cx=axis.place(value), cy=y, r=2.6, class_=f"spot {row.state}"))
    summary = "; ".join(
        f"{row.label}: {min(row.differences):.2g} to {max(row.differences):.2g} over {len(row.differences)}"
        for row in rows
        if row.differences
    )
    return drawing(name, (width, height), "Drift of every image", summary, parts)
