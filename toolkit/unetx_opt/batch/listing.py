"""The inputs of a batch, found one by one: no list of them is ever in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from unetx_opt.errors import UnetxError

__all__ = ["Found", "check_inputs", "list_inputs", "stem_of"]

#: What a name loses to become the stem of its results; whatever else follows a dot may be part of a UID.
_SUFFIXES: Final = (".png", ".dcm", ".dicom")


@dataclass(frozen=True, slots=True)
class Found:
    """An input as the listing finds it.

    Attributes
    ----------
    argument : int
        Place of the argument that led to it.
    path : pathlib.Path
        Absolute.
    stem : str
        Of its results, relative to the output: the folders below the argument, and the name.
    """

    argument: int
    path: Path
    stem: str


def stem_of(name: str) -> str:
    """Remove the suffix of a PNG or DICOM file, in any case; a name that is nothing else stays."""
    lowered = name.lower()
    return next((name[: -len(end)] for end in _SUFFIXES if lowered.endswith(end) and len(name) > len(end)), name)


def check_inputs(inputs: Iterable[Path], output: Path) -> None:
    """Check that no result can replace an input or become one.

    Raises
    ------
    UnetxError
        An input is the output folder or lies within it.
    """
    for given in inputs:
        if given.resolve().is_relative_to(output.resolve()):
            raise UnetxError(f"{given} lies within the output {output}: choose another --output")


def list_inputs(inputs: Iterable[Path], output: Path) -> Iterator[Found]:
    """Find the visible files of folders and of the folders below them, in the order of the disk.

    The output folder is passed over where it lies within an input. Links to files are followed; links to folders
    below an argument may lead back, and are given as they are, as is a folder that cannot be listed: no result can be
    made of either, and nothing is left out in silence.
    """
    for argument, given in enumerate(inputs):
        path = given.absolute()
        if path.is_dir():
            yield from _walk(argument, path, output.resolve())
        else:
            yield Found(argument, path, stem_of(path.name))


def _walk(argument: int, top: Path, output: Path) -> Iterator[Found]:
    waiting = [(top, PurePath())]
    while waiting:
        folder, relative = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = folder / entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        yield Found(argument, path, str(relative / stem_of(entry.name)))
                    elif path.resolve() != output:
                        waiting.append((path, relative / entry.name))
        except OSError:
            yield Found(argument, folder, str(relative / folder.name))
