"""Templates of this package to whole documents: style and script within, a policy that forbids everything else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Final

from unetx_bench.report_page.svg import Svg
from unetx_bench.statistics import Estimate
from unetx_opt.optional import require

__all__ = ["both_widths", "render_template"]

_PACKAGE: Final = "unetx_bench.report_page"
_PURPOSE: Final = "rendering a page"
#: Stands for a figure that is not there.
_DASH: Final = "\N{EN DASH}"
#: Width of a chart on a screen and on paper, and on a telephone: type is never scaled.
_WIDTHS: Final = (("wide", 760.0), ("narrow", 340.0))


def render_template(name: str, content: Mapping[str, Any]) -> str:
    """Render a document.

    Parameters
    ----------
    name : str
        File of this package; everything that it prints is escaped.
    content : mapping of str to object
        What it may use, besides the filters below.

    Raises
    ------
    MissingPackageError
        jinja2 is not installed.
    """
    jinja2 = require("jinja2", purpose=_PURPOSE)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_read),
    )
    environment.filters.update(
        {
            "figure": _figure,
            "interval": _interval,
            "percent": lambda value: _DASH if value is None else f"{value:.0%}",
            "bytes": _bytes,
            "yes_no": lambda value: {None: "unknown", True: "yes", False: "no"}[value],
        }
    )
    markup, style, script = jinja2.utils.markupsafe.Markup, _read("page.css"), _read("page.js")
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode("ascii")
    given = {"style": markup(style), "script": markup(script), "script_sha256": markup(digest)}
    text: str = environment.get_template(name).render({**content, **given})
    return text


def both_widths(name: str, draw: Callable[[str, float], Svg]) -> Any:
    """Draw a chart for wide and narrow pages; the style sheet shows one of them.

    Parameters
    ----------
    name : str
        Unique in the page.
    draw : callable
        Name and width in pixels to a drawing.

    Returns
    -------
    markupsafe.Markup
        Not to be escaped again: `unetx_bench.report_page.svg` did it.
    """
    markup = require("jinja2", purpose=_PURPOSE).utils.markupsafe.Markup
    parts = (f'<div class="{kind}">{draw(f"{name}-{kind}", width)}</div>' for kind, width in _WIDTHS)
    return markup("".join(parts))


def _read(name: str) -> str:
    return resources.files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _figure(value: float | None, form: str = ".4g") -> str:
    if value is None:
        return _DASH
    written = format(value, form)
    # Thousands are read faster as digits than as powers of ten.
    return f"{value:,.0f}" if "e+" in written else written


def _interval(estimate: Estimate | None, form: str = ".3g") -> str:
    return "" if estimate is None else f"{estimate.low:{form}} to {estimate.high:{form}}"


def _bytes(value: float | None) -> str:
    if value is None:
        return _DASH
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"
