"""Lines for a terminal, made of reports that others wrote."""

from __future__ import annotations

import click

__all__ = ["echo_line", "printable"]


def printable(line: str) -> str:
    """Replace what a terminal would obey, such as escape sequences and line breaks in a name, by question marks."""
    return "".join(character if character.isprintable() else "?" for character in line)


def echo_line(line: str) -> None:
    """Print a line on stdout, with nothing in it that a terminal obeys."""
    click.echo(printable(line))
