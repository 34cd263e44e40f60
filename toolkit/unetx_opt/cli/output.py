"""What commands print: results on stdout, notes and progress on stderr.

A script that reads stdout sees either one JSON document or the plain result, and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["echo_json", "json_text", "note", "progress"]


def echo_json(obj: object) -> None:
    """Print one JSON document on stdout, as `json_text` makes it."""
    # The whole text first: a value that is refused leaves stdout empty, never half a document.
    click.echo(json_text(obj))


def json_text(obj: object) -> str:
    """Turn a result into one JSON document.

    Parameters
    ----------
    obj : object
        JSON types, and what results are made of: numpy scalars and arrays, dataclasses, mappings, sets
        (sorted), paths, and whatever offers pydantic's ``model_dump``.

    Raises
    ------
    ValueError
        A NaN or an infinity: JSON has neither, and readers that accept one hide that a figure is missing. A
        figure that does not exist is None.
    TypeError
        A value of another type.
    """
    return json.dumps(obj, indent=2, allow_nan=False, default=_plain)


def note(text: str) -> None:
    """Print a line for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def progress(*, enabled: bool = True) -> Progress:
    """Return a progress display on stderr, to be used as a context manager.

    Parameters
    ----------
    enabled : bool
        False shows nothing, as ``--json`` asks for. Nothing is shown either where stderr is not a terminal.

    Returns
    -------
    rich.progress.Progress
        Its bars vanish when it ends, so that only notes and errors remain.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (enabled and sys.stderr.isatty()),
    )


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return sorted(value)
    if isinstance(value, PurePath):
        return str(value)
    # By what they offer and not by type: importing numpy or pydantic here would cost every command its start.
    for conversion in ("model_dump", "tolist"):
        if hasattr(value, conversion) and not isinstance(value, type):
            return getattr(value, conversion)()
    raise TypeError(f"{type(value).__name__} has no place in a JSON result: convert it to plain types first")
