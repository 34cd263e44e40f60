"""Files that appear whole or not at all: written beside, fsynced, renamed.

The staging name is ``.<name>.partial-<pid>-<random>`` in the same directory, so that the rename never crosses a
file system. A process that is killed leaves only such a staging entry; the next writer of the same name removes
those whose process is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unetx_opt.errors import UnetxError

__all__ = ["relative_name", "staged_directory", "staged_file", "write_file"]

_PARTIAL = re.compile(r"\.partial-(\d+)-[0-9a-f]{8}$")
# Names that Windows maps to devices, with or without an extension.
_DEVICE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
)
_NAME_CHARACTERS = re.compile(r"[A-Za-z0-9._+-]+")


def relative_name(name: str) -> PurePosixPath | None:
    """Check a file name that came from a file.

    Parameters
    ----------
    name : str
        A name that claims to be relative, with ``/`` between its parts.

    Returns
    -------
    pathlib.PurePosixPath or None
        The path, or None where the name could leave its root or mean something else on another system:
        absolute, empty or dotted parts, back-slashes, drive letters, device names, trailing dots, characters
        outside ``A-Z a-z 0-9 . _ + -``, over 200 characters.
    """
    if not name or len(name) > 200:
        return None
    for part in name.split("/"):
        if not _NAME_CHARACTERS.fullmatch(part) or part.endswith("."):
            return None
        if part.partition(".")[0].lower() in _DEVICE_NAMES:
            return None
    return PurePosixPath(name)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file: beside, fsync, rename. An existing file is replaced in one step."""
    with staged_file(path) as staging:
        staging.write_bytes(data)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; on success it is fsynced and renamed to `path`, on an error removed."""
    staging = _staging_path(path)
    try:
        yield staging
        _sync(staging)
        staging.replace(path)
        _sync(path.parent)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `path`; on success everything in it is fsynced and it is renamed.

    Parameters
    ----------
    path : pathlib.Path
        Where the directory shall appear.
    overwrite : bool
        Replace a directory that is already there; otherwise that is an error, found before any work is done.

    Raises
    ------
    UnetxError
        `path` exists and `overwrite` is False.
    """
    if path.exists() and not overwrite:
        raise UnetxError(f"{path} already exists: choose another output, or pass --overwrite to replace it")
    staging = _staging_path(path)
    try:
        staging.mkdir()
        yield staging
        for directory, _, names in os.walk(staging, topdown=False):
            for name in names:
                _sync(Path(directory, name))
            _sync(Path(directory))
        _replace_directory(staging, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _replace_directory(staging: Path, path: Path) -> None:
    if not path.exists():
        staging.rename(path)
        return
    # No portable call swaps two directories: the old one steps aside first, and comes back if the second
    # rename fails.
    aside = _staging_path(path)
    path.rename(aside)
    try:
        staging.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


def _staging_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    return path.parent / f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"


def _remove_abandoned(path: Path) -> None:
    for entry in path.parent.glob(f".{_escape(path.name)}.partial-*"):
        match = _PARTIAL.search(entry.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill(pid, 0) would end the process there; an abandoned staging entry stays
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    if path.is_dir():
        if os.name == "nt":  # a directory cannot be opened for fsync there
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
