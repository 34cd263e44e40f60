"""The C library's files, and their way into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from unetx_opt.errors import ExportError

__all__ = ["NATIVE_FOLDER", "SOURCE_NAMES", "copy_native", "source_folder"]

#: Folder of a bundle that holds the C library's files.
NATIVE_FOLDER: Final = "native"
#: What belongs to the library, relative to its folder.
SOURCE_NAMES: Final = (
    "CMakeLists.txt",
    "examples/Segment.cs",
    "examples/segment.c",
    "examples/segment.cpp",
    "unetx.c",
    "unetx.h",
)


def source_folder() -> Path:
    """Return where this installation holds the C library's files."""
    return Path(__file__).parent


def copy_native(directory: Path) -> tuple[str, ...]:
    """Copy the C library's files into a bundle that is being built.

    Parameters
    ----------
    directory : pathlib.Path
        The bundle, before its manifest is written.

    Returns
    -------
    tuple of str
        Names of the files in the bundle, below `NATIVE_FOLDER`.

    Raises
    ------
    ExportError
        The installation lacks a file, or the bundle already has such a folder.
    """
    target = directory / NATIVE_FOLDER
    if target.exists():
        raise ExportError(f"{target} already exists: build into an empty directory")
    for name in SOURCE_NAMES:
        try:
            data = (source_folder() / name).read_bytes()
        except OSError as error:
            raise ExportError(f"{name} of the C library cannot be read: install unetx-opt again") from error
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tuple(f"{NATIVE_FOLDER}/{name}" for name in SOURCE_NAMES)
