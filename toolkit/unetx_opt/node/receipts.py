"""The journal's receipts, and the spool: an image is on the disk and in the journal before it is acknowledged."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from unetx_opt.files import relative_name, write_file
from unetx_opt.node.deliveries import QueuedResult, queue_result, transaction
from unetx_opt.node.journal import RESULTS_FOLDER, SPOOL_FOLDER

__all__ = [
    "Receipt",
    "ReceivedImage",
    "claim_receipt",
    "count_waiting",
    "forget_finished",
    "mark_done",
    "mark_failed",
    "mark_hindered",
    "mark_refused",
    "record_receipt",
    "recover_receipts",
    "remove_strays",
    "spool_image",
]


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """An image as it came.

    Attributes
    ----------
    calling_ae, peer_address : str
        Who sent it.
    sop_class_uid, sop_instance_uid, transfer_syntax_uid : str
        Checked to be UIDs.
    """

    calling_ae: str
    peer_address: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """One row that work is done for.

    Attributes
    ----------
    receipt_id : str
        Of this receipt; the same image sent twice has two.
    spool_name : str
        File of the image in the spool.
    sop_class_uid, sop_instance_uid : str
        Of the image.
    received_at : float
        Seconds since the epoch.
    attempts : int
        Times that work was begun.
    """

    receipt_id: str
    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    received_at: float
    attempts: int


#: Of a spooled image or a result, and of one that was being written.
_OWN_NAME: Final = re.compile(r"\.?[0-9a-f]{32}(\.[a-z]{2,4})?\.dcm(\.partial-[0-9a-f-]+)?")
_FIELDS: Final = tuple(field.name for field in fields(Receipt))


def spool_image(state: Path, data: bytes) -> tuple[str, str]:
    """Write an image under a name of its own: beside, fsync, rename.

    Returns
    -------
    receipt_id, sha256 : str
        Of the receipt that the caller records next, and of the image.
    """
    receipt_id = uuid.uuid4().hex
    write_file(state / SPOOL_FOLDER / f"{receipt_id}.dcm", data)
    return receipt_id, hashlib.sha256(data).hexdigest()


def record_receipt(
    connection: sqlite3.Connection, receipt_id: str, image: ReceivedImage, size_and_hash: tuple[int, str], now: float
) -> None:
    """Write the row of a spooled image; it may be acknowledged once this is committed."""
    connection.execute(
        "INSERT INTO receipts (receipt_id, received_at, calling_ae, peer_address, sop_class_uid, sop_instance_uid, "
        "transfer_syntax_uid, spool_name, size_bytes, sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(receipt_id, now, image.calling_ae, image.peer_address, image.sop_class_uid, image.sop_instance_uid),
            *(image.transfer_syntax_uid, f"{receipt_id}.dcm", *size_and_hash),
        ),
    )


def count_waiting(connection: sqlite3.Connection) -> int:
    """How many images wait or are worked on."""
    found: int = connection.execute(
        "SELECT count(*) FROM receipts WHERE state IN ('received', 'working')"
    ).fetchone()[0]
    return found


def claim_receipt(connection: sqlite3.Connection, worker: int, now: float) -> Receipt | None:
    """Take the oldest image that may be worked on; it is ``working`` and one attempt older afterwards.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    worker : int
        Number of the worker, which takes it up again after its own death.
    now : float
        Seconds since the epoch.
    """
    cursor = connection.execute(
        "UPDATE receipts SET state = 'working', attempts = attempts + 1, worker = ? WHERE receipt_id = ("
        "SELECT receipt_id FROM receipts WHERE state = 'received' AND not_before <= ? "
        "ORDER BY not_before, received_at LIMIT 1) RETURNING *",
        (worker, now),
    )
    rows = cursor.fetchall()
    names = [column[0] for column in cursor.description]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return Receipt(**{name: found[0][name] for name in _FIELDS}) if found else None


def mark_done(
    connection: sqlite3.Connection,
    receipt: Receipt,
    results: Sequence[tuple[QueuedResult, Sequence[str]]],
    now: float,
) -> None:
    """Finish an image and queue its results, together or not at all.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    receipt : Receipt
        As it was claimed.
    results : sequence of (QueuedResult, sequence of str)
        Each with the destinations that it goes to; its files are on the disk.
    now : float
        Seconds since the epoch.
    """
    with transaction(connection):
        for result, destinations in results:
            queue_result(connection, result, destinations)
        connection.execute(
            "UPDATE receipts SET state = 'done', reason = NULL, finished_at = ? WHERE receipt_id = ?",
            (now, receipt.receipt_id),
        )


def mark_refused(connection: sqlite3.Connection, receipt: Receipt, reason: str, now: float) -> None:
    """There will be no result of this image."""
    connection.execute(
        "UPDATE receipts SET state = 'refused', reason = ?, finished_at = ? WHERE receipt_id = ?",
        (reason, now, receipt.receipt_id),
    )


def mark_failed(
    connection: sqlite3.Connection, receipt: Receipt, reason: str, *, attempts: int, again_at: float
) -> str:
    """Work on it failed and may be its fault: again at a time in seconds since the epoch, or dead.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    receipt : Receipt
        As it was claimed.
    reason : str
        Why.
    attempts : int
        After so many it is dead.
    again_at : float
        When it is tried again.

    Returns
    -------
    str
        Its state now.
    """
    state = "dead" if receipt.attempts >= attempts else "received"
    connection.execute(
        "UPDATE receipts SET state = ?, reason = ?, not_before = ? WHERE receipt_id = ? AND state = 'working'",
        (state, reason, again_at, receipt.receipt_id),
    )
    return state


def mark_hindered(connection: sqlite3.Connection, receipt: Receipt, reason: str, *, again_at: float) -> None:
    """Work on it was hindered by what it cannot help, a full disk say: again later, and this time does not count."""
    connection.execute(
        "UPDATE receipts SET state = 'received', reason = ?, not_before = ?, attempts = attempts - 1 "
        "WHERE receipt_id = ? AND state = 'working'",
        (reason, again_at, receipt.receipt_id),
    )


def recover_receipts(connection: sqlite3.Connection, attempts: int, worker: int | None = None) -> None:
    """Take up again what was being worked on when a worker, or everything, ended.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    attempts : int
        What was begun so often is dead.
    worker : int, optional
        Of one worker that died; None is the start of the node, where none works.
    """
    connection.execute(
        "UPDATE receipts SET state = CASE WHEN attempts >= ?1 THEN 'dead' ELSE 'received' END, "
        "reason = 'the process that worked on it died' WHERE state = 'working' AND (?2 IS NULL OR worker = ?2)",
        (attempts, worker),
    )


def remove_strays(connection: sqlite3.Connection, state: Path) -> int:
    """At a start: remove files that no row names; an image without a row was never acknowledged.

    Returns
    -------
    int
        How many.
    """
    removed = 0
    for folder, statement in (
        (SPOOL_FOLDER, "SELECT 1 FROM receipts WHERE spool_name = ?"),
        (RESULTS_FOLDER, "SELECT 1 FROM deliveries WHERE result_name = ?"),
    ):
        for path in (state / folder).iterdir():
            # Whatever else lies there is not the node's: the folder may be another one than was meant.
            if _OWN_NAME.fullmatch(path.name) and connection.execute(statement, (path.name,)).fetchone() is None:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def forget_finished(
    connection: sqlite3.Connection, state: Path, before: float, committing: Iterable[str] = ()
) -> int:
    """Remove images and results that every destination has for long enough.

    Their rows stay: what was received, and where it went, is known for as long as the journal is.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    state : pathlib.Path
        Folder of the node's state.
    before : float
        Finished before this, in seconds since the epoch.
    committing : iterable of str
        Destinations that must have committed theirs.

    Returns
    -------
    int
        How many images.
    """
    rows = connection.execute(
        "SELECT receipt_id, spool_name FROM receipts WHERE state IN ('done', 'refused') AND finished_at < ? "
        "AND spool_name != '' AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.receipt_id = receipts.receipt_id "
        "AND d.state != 'committed' "
        "AND (d.state != 'stored' OR d.destination IN (SELECT value FROM json_each(?)))) LIMIT 1000",
        (before, json.dumps(list(committing))),
    ).fetchall()
    for receipt_id, spool_name in rows:
        results = connection.execute(
            "SELECT DISTINCT result_name FROM deliveries WHERE receipt_id = ?", (receipt_id,)
        ).fetchall()
        for folder, name in ((SPOOL_FOLDER, spool_name), *((RESULTS_FOLDER, name) for (name,) in results)):
            safe = relative_name(name)
            if safe is not None:
                (state / folder / safe).unlink(missing_ok=True)
        connection.execute("UPDATE receipts SET spool_name = '' WHERE receipt_id = ?", (receipt_id,))
    return len(rows)
