"""One interval as a small drawing, on a scale that it shares with the others of its table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from unetx_bench.reproduce.record import Interval

__all__ = ["Scale", "interval_svg", "shared_scale"]

_WIDTH: Final = 220
_HEIGHT: Final = 22
_MARGIN: Final = 8
_SPARE: Final = 0.06


@dataclass(frozen=True, slots=True)
class Scale:
    """The values at the left and the right end of a drawing."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Horizontal position of a value; one outside stands at the border."""
        share = (value - self.low) / (self.high - self.low)
        return round(_MARGIN + min(1.0, max(0.0, share)) * (_WIDTH - 2 * _MARGIN), 1)


def shared_scale(intervals: Iterable[Interval], marks: Iterable[float]) -> Scale:
    """Choose a scale on which all intervals and marks can be seen.

    Parameters
    ----------
    intervals : iterable of Interval
        What is drawn.
    marks : iterable of float
        Values of no effect and printed effects.
    """
    values = list(marks)
    for interval in intervals:
        values += [value for value in (interval.value, interval.low, interval.high) if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    spare = _SPARE * (high - low) or 1e-6 + 0.01 * abs(low)
    return Scale(low - spare, high + spare)


def interval_svg(interval: Interval, scale: Scale, null: float, printed: float | None) -> str:
    """Draw an interval: a bar with a dot, a line at no effect, an open diamond at the printed effect.

    Parameters
    ----------
    interval : Interval
        What was measured; without bounds there is a dot alone.
    scale : Scale
        Shared by a table.
    null : float
        No effect.
    printed : float or None
        The printed effect in the same unit.

    Returns
    -------
    str
        An SVG element without any text from outside; colours are those of the page's style.
    """
    middle = _HEIGHT / 2
    zero = scale.place(null)
    parts = [f'<line class="null" x1="{zero}" x2="{zero}" y1="1" y2="{_HEIGHT - 1}"/>']
    if interval.low is not None and interval.high is not None:
        low, high = scale.place(interval.low), scale.place(interval.high)
        parts.append(f'<line class="bar" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>')
        parts += [f'<line class="bar" x1="{x}" x2="{x}" y1="{middle - 4}" y2="{middle + 4}"/>' for x in (low, high)]
    if printed is not None:
        x = scale.place(printed)
        parts.append(
            f'<path class="printed" d="M{x} {middle - 5}L{x + 5} {middle}L{x} {middle + 5}L{x - 5} {middle}Z"/>'
        )
    parts.append(f'<circle class="dot" cx="{scale.place(interval.value)}" cy="{middle}" r="3.2"/>')
    return (
        f'<svg class="interval" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )
