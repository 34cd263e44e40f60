"""What a batch has done, line by line: the file that a killed run goes on from.

The first line says what was asked for, every other line is what became of one input; the last line about an input
counts. A line is written after the files that it names. A line that a killed run could not finish is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from unetx_opt.errors import UnetxError
from unetx_opt.lifetime import Closing

__all__ = ["JOURNAL_NAME", "Journal"]

JOURNAL_NAME: Final = "results.jsonl"
_BLOCK: Final = 1 << 16


class Journal(Closing):
    """The journal of an output folder, held by one run at a time; a context manager.

    Parameters
    ----------
    folder : pathlib.Path
        Of the results; made where it is missing.
    resume : bool
        Go on with a journal that is there.

    Raises
    ------
    UnetxError
        There is a journal and `resume` is False, or another run holds it.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL_NAME
        self._file: BinaryIO = self.path.open("a+b")
        try:
            _lock(self._file, self.path)
            if not resume and self._file.tell():
                raise UnetxError(
                    f"{folder} holds the results of an earlier batch: pass --resume to go on with it, or choose "
                    "another --output"
                )
            self._file.truncate(_end_of_last_line(self._file))
        except BaseException:
            self._file.close()
            raise

    def begin(self, request: Mapping[str, Any]) -> None:
        """Write what is asked for, or compare it with what was.

        Raises
        ------
        UnetxError
            An earlier run was asked for something else.
        """
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self.append({"batch": request})
            return
        earlier = _parse(first, self.path, 1).get("batch")
        if not isinstance(earlier, dict):
            raise UnetxError(f"{self.path} is no journal of a batch: choose another --output")
        changed = [key for key, value in request.items() if earlier.get(key) != json.loads(json.dumps(value))]
        if changed:
            raise UnetxError(
                f"{self.path} is of a batch with another {', '.join(changed)}: repeat what it was started with, or "
                "choose another --output"
            )

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read what became of inputs, in the order in which it was written."""
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if number > 1:
                yield _parse(line, self.path, number)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it has left this process when the call returns."""
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Bring all lines to the disk and let others have the journal."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such lock on Windows; two runs into one folder are then not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnetxError(f"another run is writing {path}: wait for it, or choose another --output") from None
    except OSError:
        return  # a drive without locks


def _end_of_last_line(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise UnetxError(f"line {number} of {path} is damaged: remove the line, and its input is done again")
    return entry
