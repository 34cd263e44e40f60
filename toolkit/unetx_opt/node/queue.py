"""What a person may look at and change in the journal, while the node runs and while it does not."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from unetx_opt.errors import DataError
from unetx_opt.files import relative_name
from unetx_opt.node.audit import AuditEvent, AuditTrail
from unetx_opt.node.deliveries import DELIVERY_STATES, count_deliveries, transaction
from unetx_opt.node.journal import RECEIPT_STATES, SPOOL_FOLDER

__all__ = [
    "QueueChange",
    "QueueFilter",
    "drop_entries",
    "find_dead",
    "list_queue",
    "retry_entries",
    "show_entry",
    "state_folder",
]

_DELIVERY_ID: Final = re.compile(r"d(\d{1,18})")
_UNFINISHED: Final = ("received", "working", "refused", "dead", "waiting", "sending")


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """What of the queue is asked for.

    Attributes
    ----------
    states : tuple of str
        Of receipts or deliveries; by default what is not finished.
    destination : str or None
        Deliveries of one alone, and no receipts.
    limit : int
        The newest so many of each.
    """

    states: tuple[str, ...] = _UNFINISHED
    destination: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class QueueChange:
    """What became of one entry that a person named.

    Attributes
    ----------
    entry : str
        As it was named.
    changed : bool
        Whether anything was.
    why : str
        Why not.
    """

    entry: str
    changed: bool
    why: str = ""


def list_queue(journal: sqlite3.Connection, wanted: QueueFilter) -> dict[str, Any]:
    """List receipts and deliveries, the newest first, with the counts of all.

    Raises
    ------
    DataError
        A state is unknown.
    """
    known = (*RECEIPT_STATES, *DELIVERY_STATES)
    if unknown := set(wanted.states) - set(known):
        raise DataError(f"state is {min(unknown)!r}, expected one of {', '.join(dict.fromkeys(known))}")
    receipts = [] if wanted.destination is not None else _newest(journal, "receipts", "received_at", wanted)
    counts: dict[str, dict[str, int]] = {}
    for (destination, state), number in count_deliveries(journal).items():
        counts.setdefault(destination, {})[state] = number
    return {
        "counts": {
            "receipts": dict(journal.execute("SELECT state, count(*) FROM receipts GROUP BY state").fetchall()),
            "deliveries": counts,
        },
        "receipts": receipts,
        "deliveries": [_named(row) for row in _newest(journal, "deliveries", "delivery_id", wanted)],
    }


def show_entry(journal: sqlite3.Connection, entry: str) -> dict[str, Any]:
    """Give all that the journal has of a receipt and its deliveries.

    Parameters
    ----------
    journal : sqlite3.Connection
        Of the node.
    entry : str
        A receipt, or ``d`` and the number of a delivery, whose receipt is shown.

    Raises
    ------
    DataError
        There is no such entry.
    """
    receipt_id = entry
    if (delivery_id := _delivery_id(entry)) is not None:
        found = _rows(journal, "SELECT receipt_id FROM deliveries WHERE delivery_id = ?", delivery_id)
        receipt_id = found[0]["receipt_id"] if found else ""
    receipts = _rows(journal, "SELECT * FROM receipts WHERE receipt_id = ?", receipt_id)
    if not receipts:
        raise DataError(f"the journal has no {entry!r}: see unetx-opt queue list")
    deliveries = _rows(journal, "SELECT * FROM deliveries WHERE receipt_id = ? ORDER BY delivery_id", receipt_id)
    return {"receipt": receipts[0], "deliveries": [_named(row) for row in deliveries]}


def find_dead(journal: sqlite3.Connection, destination: str | None = None) -> list[str]:
    """Name every dead delivery, of one destination alone or of all with the dead receipts."""
    if destination is not None:
        rows = journal.execute(
            "SELECT 'd' || delivery_id FROM deliveries WHERE state = 'dead' AND destination = ? ORDER BY delivery_id",
            (destination,),
        )
    else:
        rows = journal.execute(
            "SELECT receipt_id FROM receipts WHERE state = 'dead' "
            "UNION ALL SELECT 'd' || delivery_id FROM deliveries WHERE state = 'dead'"
        )
    return [name for (name,) in rows]


def retry_entries(
    journal: sqlite3.Connection, entries: Sequence[str], actor: str, audit: AuditTrail
) -> list[QueueChange]:
    """Let dead deliveries and receipts be tried again from the first attempt, and waiting ones at once.

    Parameters
    ----------
    journal : sqlite3.Connection
        Of the node.
    entries : sequence of str
        Receipts, or ``d`` and the number of a delivery.
    actor : str
        Who does it.
    audit : AuditTrail
        Where it is recorded.
    """

    def record(entry: str) -> None:
        audit.append(AuditEvent("queue-retry", subject=entry, actor=actor))

    return [_change(journal, entry, _RETRY, record) for entry in entries]


def drop_entries(
    journal: sqlite3.Connection, entries: Sequence[str], actor: str, audit: AuditTrail
) -> list[QueueChange]:
    """Forget deliveries that wait or are dead, and receipts that were refused or are dead with their images.

    Parameters and results as of `retry_entries`. What was stored anywhere stays there.
    """

    def record_and_remove_image(entry: str) -> None:
        audit.append(AuditEvent("queue-drop", subject=entry, actor=actor))
        spooled = journal.execute("SELECT spool_name FROM receipts WHERE receipt_id = ?", (entry,)).fetchone()
        name = None if spooled is None else relative_name(spooled[0])
        if name is not None:
            (audit.folder / SPOOL_FOLDER / name).unlink(missing_ok=True)

    return [_change(journal, entry, _DROP, record_and_remove_image) for entry in entries]


@dataclass(frozen=True, slots=True)
class _Action:
    """What is done with an entry of one table, and from which states."""

    states: tuple[str, ...]
    statement: str


_STATE_OF: Final = MappingProxyType(
    {
        "delivery": "SELECT state FROM deliveries WHERE delivery_id = ?",
        "receipt": "SELECT state FROM receipts WHERE receipt_id = ?",
    }
)
_RETRY: Final[Mapping[str, _Action]] = MappingProxyType(
    {
        "delivery": _Action(
            ("waiting", "dead"),
            "UPDATE deliveries SET state = 'waiting', attempts = 0, not_before = -1, error = NULL "
            "WHERE delivery_id = ?",
        ),
        "receipt": _Action(
            ("received", "dead"),
            "UPDATE receipts SET state = 'received', attempts = 0, not_before = 0, reason = NULL, "
            "finished_at = NULL WHERE receipt_id = ?",
        ),
    }
)
_DROP: Final[Mapping[str, _Action]] = MappingProxyType(
    {
        "delivery": _Action(("waiting", "dead"), "DELETE FROM deliveries WHERE delivery_id = ?"),
        "receipt": _Action(("refused", "dead"), "DELETE FROM receipts WHERE receipt_id = ?"),
    }
)


def _change(
    journal: sqlite3.Connection, entry: str, actions: Mapping[str, _Action], before: Callable[[str], None]
) -> QueueChange:
    """Change one entry; a crash after `before` leaves a row without an image, and never an image without a row."""
    delivery_id = _delivery_id(entry)
    table, key = ("receipt", entry) if delivery_id is None else ("delivery", delivery_id)
    with transaction(journal):
        state = journal.execute(_STATE_OF[table], (key,)).fetchone()
        if state is not None and state[0] in actions[table].states:
            before(entry)
            journal.execute(actions[table].statement, (key,))
            return QueueChange(entry, changed=True)
    return QueueChange(entry, changed=False, why="no such entry" if state is None else f"it is {state[0]}")


def _delivery_id(entry: str) -> int | None:
    match = _DELIVERY_ID.fullmatch(entry)
    return int(match[1]) if match else None


def _newest(journal: sqlite3.Connection, table: str, order: str, wanted: QueueFilter) -> list[dict[str, Any]]:
    marks = ", ".join("?" * len(wanted.states))
    condition, values = f"state IN ({marks})", [*wanted.states]
    if wanted.destination is not None:
        condition, values = f"{condition} AND destination = ?", [*values, wanted.destination]
    # Only names that this module wrote are part of the statement.
    statement = f"SELECT * FROM {table} WHERE {condition} ORDER BY {order} DESC LIMIT ?"  # noqa: S608
    return _rows(journal, statement, *values, wanted.limit)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"entry": f"d{row['delivery_id']}"} | dict(row)


def _rows(journal: sqlite3.Connection, statement: str, *values: object) -> list[dict[str, Any]]:
    cursor = journal.execute(statement, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def state_folder(path: Path) -> Path:
    """Find the folder of a node's state.

    Parameters
    ----------
    path : pathlib.Path
        The folder itself, or a configuration file that names it.

    Raises
    ------
    DataError
        It is neither.
    """
    if path.is_dir():
        return path
    import tomllib

    try:
        named = tomllib.loads(path.read_text(encoding="utf-8")).get("state")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is no folder of a node's state and no configuration: {error}") from error
    if not isinstance(named, str):
        raise DataError(f'{path} names no folder of state: expected state = "PATH"')
    return path.parent / named
