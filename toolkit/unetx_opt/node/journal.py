"""The journal: what was received, what became of it, and what is still to be sent, in one SQLite file.

``receipts`` has a row for each image that was acknowledged, ``deliveries`` one for each result and destination,
``measures`` what is counted. Every process, and every thread, opens a connection of its own.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from unetx_opt.errors import UnetxError
from unetx_opt.node.deliveries import DELIVERIES_SCHEMA
from unetx_opt.node.measures import MEASURES_SCHEMA

__all__ = [
    "JOURNAL_NAME",
    "RECEIPT_STATES",
    "RESULTS_FOLDER",
    "SPOOL_FOLDER",
    "THUMBNAILS_FOLDER",
    "connect_journal",
    "create_journal",
]

JOURNAL_NAME: Final = "journal.sqlite"
#: Folders beside it: images as they were received, results as they are sent, small pictures for the status page.
SPOOL_FOLDER: Final = "spool"
RESULTS_FOLDER: Final = "results"
THUMBNAILS_FOLDER: Final = "thumbnails"
RECEIPT_STATES: Final = ("received", "working", "done", "refused", "dead")
_VERSION: Final = 1
#: How long a change waits for another process's.
_PATIENCE_S: Final = 30.0

_RECEIPTS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS receipts (
    receipt_id TEXT PRIMARY KEY,
    received_at REAL NOT NULL,
    calling_ae TEXT NOT NULL,
    peer_address TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    spool_name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'received' CHECK (state IN ('received', 'working', 'done', 'refused', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    worker INTEGER,
    reason TEXT,
    finished_at REAL
);
CREATE INDEX IF NOT EXISTS receipts_due ON receipts (state, not_before);
CREATE INDEX IF NOT EXISTS receipts_finished ON receipts (finished_at) WHERE finished_at IS NOT NULL;
"""


def create_journal(folder: Path) -> Path:
    """Make the journal of a state folder, or check that it is one of this version.

    Parameters
    ----------
    folder : pathlib.Path
        It is made where it is absent, for its owner alone.

    Returns
    -------
    pathlib.Path
        The journal's file.

    Raises
    ------
    UnetxError
        The file is no journal, or one of another version.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    try:
        connection = _connect(path, "rwc")
        try:
            _require_version(connection, path, may_be_new=True)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(
                f"BEGIN IMMEDIATE; {_RECEIPTS_SCHEMA} {DELIVERIES_SCHEMA} {MEASURES_SCHEMA} "
                f"PRAGMA user_version = {_VERSION}; COMMIT;"
            )
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise UnetxError(
            f"{path} is no journal of a node ({error}): move it away, or choose another folder"
        ) from error
    return path


def connect_journal(path: Path) -> sqlite3.Connection:
    """Open a journal that exists; every statement is a transaction of its own unless one is begun.

    A change is on the disk when it was made: what a node acknowledges survives a power cut.

    Raises
    ------
    UnetxError
        There is none, or one of another version.
    """
    if not path.exists():
        raise UnetxError(f"{path} does not exist: start the node once, or name its folder of state")
    try:
        connection = _connect(path, "rw")
        _require_version(connection, path, may_be_new=False)
    except sqlite3.DatabaseError as error:
        raise UnetxError(f"{path} is no journal of a node ({error}): name the folder of its state") from error
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE_S, isolation_level=None
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _require_version(connection: sqlite3.Connection, path: Path, *, may_be_new: bool) -> None:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found == _VERSION:
        return
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not (may_be_new and found == 0 and tables == 0):
        connection.close()
        raise UnetxError(f"{path} has version {found} of the journal, expected {_VERSION}: choose another folder")
