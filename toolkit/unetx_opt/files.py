"""Files that appear whole or not at all: written beside, fsynced, renamed.

The staging name is ``.<name>.partial-<host>-<pid>-<random>`` in the same directory, so that the rename never
crosses a file system. A process that is killed leaves only such an entry; the next writer of the same name on
the same host removes those whose process is gone. On a drive that several hosts share, the entries of another
host stay: whether its process lives cannot be seen from here.

A directory that is replaced steps aside as ``.<name>.replaced-<host>-<pid>-<random>``; where the writer was
killed before the new one took its place, the next writer puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from unetx_opt.errors import UnetxError

__all__ = [
    "relative_name",
    "scratch_directory",
    "staged_directory",
    "staged_file",
    "sweep_abandoned",
    "write_file",
]

_PARTIAL: Final = "partial"
_REPLACED: Final = "replaced"
_ENTRY: Final = re.compile(r"\.(partial|replaced)-([0-9a-f]{12})-(\d{1,20})-[0-9a-f]{8}")
# Names that Windows maps to devices, with or without an extension.
_DEVICE_NAMES: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
)
_NAME_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._+-]+")
# The disk, a quota or a limit on file sizes is exhausted; EDQUOT does not exist on every system.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


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


def write_file(path: Path, data: bytes, *, settle: bool = True) -> None:
    """Write a whole file: beside, fsync, rename. An existing file is replaced in one step.

    Parameters
    ----------
    path : pathlib.Path
        Its folder is made where it is missing.
    data : bytes
        All of the file.
    settle : bool
        Look through the folder for what a killed writer of the same name has left. Who writes very many files into
        one folder passes False, and calls `sweep_abandoned` once.
    """
    with staged_file(path, settle=settle) as staging:
        staging.write_bytes(data)


def sweep_abandoned(folder: Path) -> None:
    """Remove what killed writers of this host have left in a folder, whatever the names of their files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _ENTRY.search(entry.name)
            if match is None or match.end() != len(entry.name) or not entry.name.startswith("."):
                continue
            # What was replaced may be the only copy: its own writer puts it back.
            if match[1] == _PARTIAL and match[2] == _host_token() and not _is_alive(int(match[3])):
                _remove(folder / entry.name)


@contextlib.contextmanager
def staged_file(path: Path, *, overwrite: bool = True, settle: bool = True) -> Iterator[Path]:
    """Yield a path beside `path`; on success it is fsynced and renamed to `path`, on an error removed.

    `settle` is as for `write_file`.

    Raises
    ------
    UnetxError
        `path` exists and `overwrite` is False, or the disk is full. `path` is then what it was before.
    """
    staging = _beside(path, _PARTIAL, settle=settle)
    _refuse_existing(path, overwrite=overwrite)
    try:
        with _space_for(path):
            yield staging
            _sync(staging)
            _refuse_existing(path, overwrite=overwrite)
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
        Replace what is already there; otherwise that is an error, found before any work is done.

    Raises
    ------
    UnetxError
        `path` exists and `overwrite` is False, or the disk is full.
    """
    staging = _beside(path, _PARTIAL)
    _refuse_existing(path, overwrite=overwrite)
    try:
        with _space_for(path):
            staging.mkdir()
            yield staging
            for directory, _, names in os.walk(staging, topdown=False):
                for name in names:
                    _sync(Path(directory, name))
                _sync(Path(directory))
            _refuse_existing(path, overwrite=overwrite)
            _take_place(staging, path)
            _sync(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`, on the same file system; it is removed in any case."""
    scratch = _beside(path, _PARTIAL)
    try:
        with _space_for(path):
            scratch.mkdir()
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _space_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UnetxError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}; free some space, or choose another output"
        ) from error


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise UnetxError(f"{path} already exists: choose another output, or pass --overwrite to replace it")


def _take_place(staging: Path, path: Path) -> None:
    if not os.path.lexists(path):
        staging.rename(path)
        return
    # No portable call swaps two directories: the old one steps aside first, and comes back if the second
    # rename fails.
    aside = _entry(path, _REPLACED)
    path.rename(aside)
    try:
        staging.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    _remove(aside)


def _beside(path: Path, kind: str, *, settle: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if settle:
        _settle_abandoned(path)
    return _entry(path, kind)


def _entry(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{kind}-{_host_token()}-{os.getpid()}-{secrets.token_hex(4)}"


def _settle_abandoned(path: Path) -> None:
    prefix = f".{path.name}"
    with os.scandir(path.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.name.startswith(prefix))
    for name in names:
        match = _ENTRY.fullmatch(name[len(prefix) :])
        if match is None or match[2] != _host_token() or _is_alive(int(match[3])):
            continue
        entry = path.parent / name
        if match[1] == _REPLACED and not os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                entry.rename(path)
        else:
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink(missing_ok=True)


@functools.cache
def _host_token() -> str:
    # A process id means something only on one host, and there only inside one container: Linux names the
    # namespace that its ids belong to.
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()}\n{namespace}".encode()).hexdigest()[:12]


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
    if os.name == "nt":
        if path.is_dir():  # a directory cannot be opened for fsync there
            return
        flags = os.O_RDWR  # and a file that is open for reading only cannot be flushed
    else:
        flags = os.O_RDONLY  # a file without write permission is synced too
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
