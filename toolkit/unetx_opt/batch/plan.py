"""Which inputs a batch has, what each result is called, and what became of it: on disk, however many there are."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unetx_opt.batch.listing import Found
from unetx_opt.batch.settings import Task
from unetx_opt.lifetime import Closing

__all__ = ["Plan"]

_PAGE: Final = 256
_SCHEMA: Final = """
CREATE TABLE inputs (
    argument INTEGER NOT NULL,
    path BLOB NOT NULL UNIQUE,  -- bytes: a name need not be text
    base BLOB NOT NULL,         -- stem of its results where no other input wants the same
    stem BLOB,
    folded BLOB UNIQUE,         -- the stem as file systems without case see it
    row TEXT                    -- JSON of what became of it
);
CREATE INDEX in_order ON inputs (argument, path);
"""


class Plan(Closing):
    """All inputs of a batch in the order of the arguments and of their paths; a context manager.

    It lies in a private file of SQLite's that the system removes with the process: the journal is what lasts.
    """

    def __init__(self) -> None:
        # An empty name is a database of its own in the folder for temporary files.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_SCHEMA)

    def add(self, found: Iterable[Found]) -> None:
        """Take up inputs; one that is named twice is one input."""
        rows = ((item.argument, os.fsencode(item.path), os.fsencode(item.stem)) for item in found)
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR IGNORE INTO inputs (argument, path, base) VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def recall(self, entries: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """Take over what a journal says about the inputs that are still there.

        An input keeps the stem that it had. What failed, has changed since or lacks a result is done again.
        """
        self._database.execute("BEGIN")
        for entry in entries:
            path, stem = os.fsencode(str(entry.get("input"))), str(entry.get("stem"))
            known = self._database.execute("SELECT base FROM inputs WHERE path = ?", (path,)).fetchone()
            # The journal is a file like any other: a stem that this input could not have had leads elsewhere.
            if known is None or re.fullmatch(re.escape(os.fsdecode(known[0])) + r"(-[1-9]\d*)?", stem) is None:
                continue
            row = json.dumps(entry) if _is_done(entry, folder) else None
            self._database.execute(
                "UPDATE OR IGNORE inputs SET stem = ?, folded = ?, row = ? WHERE path = ?",
                (os.fsencode(stem), _fold(stem), row, path),
            )
        self._database.execute("COMMIT")

    def name_results(self) -> None:
        """Give every input without a stem one of its own: the second a becomes a-2, also where case is ignored."""
        self._database.execute("BEGIN")
        for path, base, stem in self._in_order("path, base, stem"):
            name, number = os.fsdecode(base), 1
            while stem is None and not self._take(path, name):
                number += 1
                name = f"{os.fsdecode(base)}-{number}"
        self._database.execute("COMMIT")

    def pending(self) -> Iterator[Task]:
        """Give the inputs of which nothing is known yet, in order; rows may be recorded meanwhile."""
        for path, stem, row in self._in_order("path, stem, row"):
            if row is None:
                yield Task(Path(os.fsdecode(path)), os.fsdecode(stem))

    def record(self, row: Mapping[str, Any]) -> None:
        """Note what became of an input."""
        self._database.execute(
            "UPDATE inputs SET row = ? WHERE path = ?", (json.dumps(row), os.fsencode(str(row["input"])))
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give what became of every input, in order."""
        for (row,) in self._in_order("row"):
            if row is not None:
                yield json.loads(row)

    def count(self) -> tuple[int, int]:
        """Count all inputs, and those of which something is known."""
        total, known = self._database.execute("SELECT COUNT(*), COUNT(row) FROM inputs").fetchone()
        return int(total), int(known)

    def close(self) -> None:
        """Remove everything."""
        self._database.close()

    def _take(self, path: bytes, stem: str) -> bool:
        changed = self._database.execute(
            "UPDATE OR IGNORE inputs SET stem = ?, folded = ? WHERE path = ?", (os.fsencode(stem), _fold(stem), path)
        )
        return changed.rowcount == 1

    def _in_order(self, columns: str) -> Iterator[tuple[Any, ...]]:
        """Read page by page: a cursor that stays open would not bear changes of what it reads."""
        last: tuple[int, bytes] = (-1, b"")
        while True:
            page = self._database.execute(
                f"SELECT argument, path, {columns} FROM inputs WHERE (argument, path) > (?, ?) "  # noqa: S608
                "ORDER BY argument, path LIMIT ?",
                (*last, _PAGE),
            ).fetchall()
            if not page:
                return
            yield from (row[2:] for row in page)
            last = page[-1][:2]


def _fold(stem: str) -> bytes:
    return os.fsencode(stem.casefold())


def _is_done(entry: Mapping[str, Any], folder: Path) -> bool:
    """Whether an input was segmented, is what it was, and its results lie there in full size."""
    if entry.get("status") != "segmented":
        return False
    try:
        stat = Path(entry["input"]).stat()
        if (stat.st_size, stat.st_mtime_ns) != (entry["input_bytes"], entry["input_mtime_ns"]):
            return False
        return all((folder / file["name"]).stat().st_size == file["bytes"] for file in entry["files"].values())
    except (OSError, KeyError, TypeError, AttributeError):
        return False
