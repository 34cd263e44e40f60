"""SVG elements as text: everything that comes from outside is escaped in this one place.

The charts are drawn by hand and not by matplotlib: their text stays text in the page's type, their colours are the
style sheet's and follow the theme and the printer, and a chart is a few kilobytes that a test can read.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final, NewType

__all__ = ["Svg", "drawing", "element", "shorten", "text"]

#: Escaped markup.
Svg = NewType("Svg", str)

#: Width of a character over the height of the type, of the page's fonts at most.
_CHARACTER: Final = 0.56


def element(tag: str, children: Iterable[Svg] = (), **attributes: str | float) -> Svg:
    """Make an element.

    Parameters
    ----------
    tag : str
        Its name.
    children : iterable of Svg
        Elements and escaped texts.
    **attributes
        ``class_`` is class, and other ``_`` are ``-``; numbers are written to a tenth of a pixel.
    """
    written = "".join(f' {_attribute(name)}="{_value(value)}"' for name, value in attributes.items())
    return Svg(f"<{tag}{written}>{''.join(children)}</{tag}>")


def text(x: float, y: float, content: object, class_: str = "label") -> Svg:
    """Write a text at a baseline."""
    return element("text", [_escape(content)], x=x, y=y, class_=class_)


def drawing(name: str, size: tuple[float, float], title: str, summary: str, children: Sequence[Svg]) -> Svg:
    """Make a chart that a screen reader can name and describe.

    Parameters
    ----------
    name : str
        Unique in the page.
    size : tuple of float
        (width, height) in pixels.
    title, summary : str
        What it is, and what it shows in words.
    children : sequence of Svg
        Its content.
    """
    heads = [
        element("title", [_escape(title)], id=f"{name}-title"),
        element("desc", [_escape(summary)], id=f"{name}-desc"),
    ]
    return element(
        "svg",
        [*heads, *children],
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        width=size[0],
        height=size[1],
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


def shorten(content: str, width_px: float, height_px: float = 13) -> str:
    """Cut a text in the middle where it is longer than its place."""
    limit = max(8, int(width_px / (height_px * _CHARACTER)))
    if len(content) <= limit:
        return content
    head = (limit - 1) * 3 // 5
    return f"{content[:head]}…{content[len(content) - (limit - 1 - head) :]}"


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{round(value, 1):g}"


def _escape(content: object) -> Svg:
    return Svg(html.escape(str(content)))
