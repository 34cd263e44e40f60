"""A bundle as a directory of ordinary files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from unetx_opt.bundle.contents import MAX_ENTRIES, Kind, printable
from unetx_opt.errors import BundleError
from unetx_opt.files import relative_name

__all__ = ["DirectoryContents"]

# Absent on Windows. A name that became a link or a pipe after it was listed is then neither followed nor waited
# for.
_OPEN_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class DirectoryContents:
    """The files under a directory; links, pipes, devices and empty directories are problems."""

    kind: Kind = "directory"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        self._problems: list[str] = []
        self._scan()

    def problems(self) -> tuple[str, ...]:
        """What is in the directory and cannot be part of a bundle."""
        return tuple(self._problems)

    def sizes(self) -> Mapping[str, int]:
        """Name and size in bytes of every ordinary file with a safe name."""
        return self._sizes

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open a file; it may have changed since it was listed."""
        with open(self.path / name, "rb", opener=_open_plainly) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise BundleError(f"{self.path}: {name} is not an ordinary file any more")
            yield stream

    def close(self) -> None:
        """Nothing is held open."""

    def _scan(self) -> None:
        waiting, empty, entries = [""], set[str](), 0
        while waiting:
            directory = waiting.pop()
            empty.add(directory)
            with os.scandir(self.path / directory) as listing:
                for entry in listing:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        self._problems.append(f"there are more than {MAX_ENTRIES} entries")
                        return
                    name = f"{directory}/{entry.name}" if directory else entry.name
                    empty.discard(directory)
                    if self._add(name, entry):
                        waiting.append(name)
        self._problems.extend(f"the directory {name} is empty" for name in sorted(empty - {""}))

    def _add(self, name: str, entry: os.DirEntry[str]) -> bool:
        status = entry.stat(follow_symlinks=False)
        if relative_name(name) is None:
            self._problems.append(f"{printable(name)} is not a name that a bundle can hold")
        elif stat.S_ISLNK(status.st_mode) or _is_reparse_point(status):
            self._problems.append(f"{name} is a link; a bundle holds ordinary files only")
        elif stat.S_ISDIR(status.st_mode):
            return True
        elif stat.S_ISREG(status.st_mode):
            self._sizes[name] = status.st_size
        else:
            self._problems.append(f"{name} is neither a file nor a directory")
        return False


def _is_reparse_point(status: os.stat_result) -> bool:
    # On Windows a junction leads elsewhere as a symbolic link does.
    return bool(getattr(status, "st_file_attributes", 0) & stat.FILE_ATTRIBUTE_REPARSE_POINT)


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | _OPEN_FLAGS)
