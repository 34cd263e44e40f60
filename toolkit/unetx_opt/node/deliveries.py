"""The journal's table of deliveries: one row for each result and destination, and what may become of it.

::

    waiting -> sending -> stored -> committed        waiting: not before a time
       ^          |          |
       |          v          v
       +------ (again) <- (peer has it not)          dead: kept until a person sends it again or drops it
                  |
                  v
                dead

Every change is one transaction that names the state it starts from, so that a process which died, or a person at
``unetx-opt queue``, is never overwritten by one who did not know.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

__all__ = [
    "DELIVERIES_SCHEMA",
    "DELIVERY_STATES",
    "Delivery",
    "QueuedResult",
    "claim_delivery",
    "claim_for_commitment",
    "count_deliveries",
    "fetch_deliveries",
    "has_urgent",
    "mark_again",
    "mark_committed",
    "mark_dead",
    "mark_lost",
    "mark_stored",
    "next_due",
    "postpone_commitment",
    "queue_result",
    "reclaim_interrupted",
    "transaction",
]

DELIVERY_STATES: Final = ("waiting", "sending", "stored", "committed", "dead")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row.

    Attributes
    ----------
    delivery_id, receipt_id : int, str
        Of the journal.
    kind : str
        seg, sc, gsps or sr.
    sop_class_uid, sop_instance_uid : str
        Of the result.
    result_name : str
        Its file, relative to the results' folder.
    destination : str
        Name of the configuration.
    state : str
        One of `DELIVERY_STATES`.
    attempts : int
        Transfers begun.
    not_before : float
        Seconds since the epoch: of a waiting one, when it may be sent, below 0 where a person asked for it; of a
        stored one, when its commitment is asked for again.
    error : str or None
        Why the last transfer did not succeed.
    transaction_uid : str or None
        Of the storage commitment that was asked for last.
    stored_at : float or None
        Seconds since the epoch.
    """

    delivery_id: int
    receipt_id: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    result_name: str
    destination: str
    state: str
    attempts: int
    not_before: float
    error: str | None = None
    transaction_uid: str | None = None
    stored_at: float | None = None


@dataclass(frozen=True, slots=True)
class QueuedResult:
    """A result that is to be sent; attributes as of `Delivery`."""

    receipt_id: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    result_name: str


_FIELDS: Final = frozenset(field.name for field in fields(Delivery))

#: Of the journal. A result is queued once for each destination, whatever happens: the last line holds it.
DELIVERIES_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS deliveries (
    delivery_id INTEGER PRIMARY KEY AUTOINCREMENT,
    receipt_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    result_name TEXT NOT NULL,
    destination TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'stored', 'committed', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    error TEXT,
    transaction_uid TEXT,
    stored_at REAL,
    UNIQUE (receipt_id, kind, destination)
);
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (destination, state, not_before);
CREATE INDEX IF NOT EXISTS deliveries_transaction ON deliveries (transaction_uid) WHERE transaction_uid IS NOT NULL;
"""


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Let several changes happen together or not at all; inside another transaction, as part of it."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def fetch_deliveries(connection: sqlite3.Connection, statement: str, *values: object) -> list[Delivery]:
    """Run a statement whose rows have the columns of deliveries, and maybe others."""
    cursor = connection.execute(statement, values)
    rows = cursor.fetchall()
    names = [column[0] for column in cursor.description]
    return [
        Delivery(**{name: value for name, value in zip(names, row, strict=True) if name in _FIELDS}) for row in rows
    ]


def queue_result(connection: sqlite3.Connection, result: QueuedResult, destinations: Iterable[str]) -> None:
    """Queue one result for some destinations; in the transaction that says that its receipt is done.

    What is queued already stays as it is: work that was done twice is sent once.
    """
    connection.executemany(
        "INSERT INTO deliveries (receipt_id, kind, sop_class_uid, sop_instance_uid, result_name, destination) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (receipt_id, kind, destination) DO NOTHING",
        [
            (
                *(result.receipt_id, result.kind, result.sop_class_uid, result.sop_instance_uid),
                *(result.result_name, destination),
            )
            for destination in destinations
        ],
    )


def claim_delivery(connection: sqlite3.Connection, destination: str, now: float) -> Delivery | None:
    """Take the result that has waited longest for its turn; it is ``sending`` and one attempt older afterwards.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal, without a transaction of its own.
    destination : str
        For whom.
    now : float
        Seconds since the epoch.
    """
    claimed = fetch_deliveries(
        connection,
        "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE delivery_id = ("
        "SELECT delivery_id FROM deliveries WHERE destination = ? AND state = 'waiting' AND not_before <= ? "
        "ORDER BY not_before, delivery_id LIMIT 1) RETURNING *",
        destination,
        now,
    )
    return claimed[0] if claimed else None


def next_due(connection: sqlite3.Connection, destination: str) -> float | None:
    """When the next result of a destination may be sent, in seconds since the epoch; None where none waits."""
    due: float | None = connection.execute(
        "SELECT min(not_before) FROM deliveries WHERE destination = ? AND state = 'waiting'", (destination,)
    ).fetchone()[0]
    return due


def has_urgent(connection: sqlite3.Connection, destination: str) -> bool:
    """Whether a person asked for a result to be sent at once, whatever pause its destination is in."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM deliveries WHERE destination = ? AND state = 'waiting' AND not_before < 0)",
            (destination,),
        ).fetchone()[0]
    )


def mark_stored(connection: sqlite3.Connection, delivery: Delivery, now: float) -> None:
    """The destination has it."""
    connection.execute(
        "UPDATE deliveries SET state = 'stored', stored_at = ?, error = NULL, transaction_uid = NULL, not_before = 0 "
        "WHERE delivery_id = ? AND state = 'sending'",
        (now, delivery.delivery_id),
    )


def mark_again(connection: sqlite3.Connection, delivery: Delivery, not_before: float, error: str) -> None:
    """It is to be sent again, not before a time in seconds since the epoch."""
    connection.execute(
        "UPDATE deliveries SET state = 'waiting', not_before = ?, error = ? "
        "WHERE delivery_id = ? AND state = 'sending'",
        (not_before, error, delivery.delivery_id),
    )


def mark_dead(connection: sqlite3.Connection, delivery: Delivery, error: str) -> None:
    """It is not sent again until a person says so."""
    connection.execute(
        "UPDATE deliveries SET state = 'dead', error = ? WHERE delivery_id = ? AND state = 'sending'",
        (error, delivery.delivery_id),
    )


def reclaim_interrupted(connection: sqlite3.Connection, destination: str) -> int:
    """Let what was being sent when the last process died wait again; only a destination's one sender may ask.

    Returns
    -------
    int
        How many.
    """
    return connection.execute(
        "UPDATE deliveries SET state = 'waiting' WHERE destination = ? AND state = 'sending'", (destination,)
    ).rowcount


def claim_for_commitment(
    connection: sqlite3.Connection, destination: str, transaction_uid: str, *, now: float, again_at: float
) -> Sequence[Delivery]:
    """Take up to 100 stored results whose commitment was not asked for, or not answered in time.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal.
    destination : str
        Who stored them.
    transaction_uid : str
        Of the request that is made now.
    now, again_at : float
        Seconds since the epoch: now, and when it is asked for again.
    """
    return fetch_deliveries(
        connection,
        "UPDATE deliveries SET transaction_uid = ?, not_before = ? WHERE delivery_id IN ("
        "SELECT delivery_id FROM deliveries WHERE destination = ? AND state = 'stored' AND not_before <= ? "
        "ORDER BY delivery_id LIMIT 100) RETURNING *",
        *(transaction_uid, again_at, destination, now),
    )


def mark_committed(connection: sqlite3.Connection, transaction_uid: str, sop_instance_uid: str) -> list[Delivery]:
    """The destination keeps it; empty where the transaction did not ask for it."""
    return fetch_deliveries(
        connection,
        "UPDATE deliveries SET state = 'committed', error = NULL "
        "WHERE transaction_uid = ? AND sop_instance_uid = ? AND state = 'stored' RETURNING *",
        transaction_uid,
        sop_instance_uid,
    )


def mark_lost(
    connection: sqlite3.Connection, transaction_uid: str, sop_instance_uid: str, error: str
) -> list[Delivery]:
    """The destination has it not, and gets it again; empty where the transaction did not ask for it."""
    return fetch_deliveries(
        connection,
        "UPDATE deliveries SET state = 'waiting', not_before = 0, transaction_uid = NULL, stored_at = NULL, "
        "error = ? WHERE transaction_uid = ? AND sop_instance_uid = ? AND state = 'stored' RETURNING *",
        *(error, transaction_uid, sop_instance_uid),
    )


def postpone_commitment(connection: sqlite3.Connection, transaction_uid: str, again_at: float, error: str) -> None:
    """The request did not reach the destination: ask again at a time in seconds since the epoch."""
    connection.execute(
        "UPDATE deliveries SET not_before = ?, error = ? WHERE transaction_uid = ? AND state = 'stored'",
        (again_at, error, transaction_uid),
    )


def count_deliveries(connection: sqlite3.Connection) -> Mapping[tuple[str, str], int]:
    """How many there are by destination and state."""
    rows = connection.execute("SELECT destination, state, count(*) FROM deliveries GROUP BY destination, state")
    return {(destination, state): count for destination, state, count in rows}
