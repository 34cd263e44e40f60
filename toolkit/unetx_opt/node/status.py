"""What the status page shows, as JSON: the queue, the last results, throughput and errors; nothing of a patient."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_opt import __version__
from unetx_opt.node.deliveries import DELIVERY_STATES, count_deliveries
from unetx_opt.node.thumbnails import thumbnail_path

__all__ = ["StatusSource", "describe_status"]

_HOUR_S: Final = 3600
_HOURS: Final = 24
_LAST_RESULTS: Final = 24
_LAST_ERRORS: Final = 20
#: Rows looked at, the newest: a journal of years must not slow a page that is drawn every few seconds.
_LOOKED_AT: Final = 5000


@dataclass(frozen=True, slots=True)
class StatusSource:
    """What a status is made from.

    Attributes
    ----------
    node : str
        AE title.
    thumbnails : pathlib.Path
        Folder of small pictures.
    """

    node: str
    thumbnails: Path


def describe_status(journal: sqlite3.Connection, source: StatusSource) -> dict[str, Any]:
    """Describe the node now.

    Parameters
    ----------
    journal : sqlite3.Connection
        Read, never written.
    source : StatusSource
        What else it is made from.
    """
    now = time.time()
    counts = count_deliveries(journal)
    receipts = dict(journal.execute("SELECT state, count(*) FROM receipts GROUP BY state").fetchall())
    return {
        "node": source.node,
        "version": __version__,
        "now": now,
        "receipts": receipts,
        "destinations": [
            {"name": name} | {state: counts.get((name, state), 0) for state in DELIVERY_STATES}
            for name in sorted({name for name, _ in counts})
        ],
        "per_hour": _per_hour(journal, now),
        "results": _last_results(journal, source.thumbnails),
        "errors": _errors(journal),
    }


def _per_hour(journal: sqlite3.Connection, now: float) -> list[int]:
    """Images finished in each of the last hours, the oldest first, the running hour last."""
    bars = [0] * _HOURS
    rows = journal.execute(
        "SELECT CAST((? - finished_at) / ? AS INTEGER), count(*) FROM receipts "
        "WHERE state = 'done' AND finished_at > ? GROUP BY 1",
        (now, _HOUR_S, now - _HOURS * _HOUR_S),
    )
    for age, number in rows:
        if 0 <= age < _HOURS:
            bars[_HOURS - 1 - age] = number
    return bars


def _last_results(journal: sqlite3.Connection, thumbnails: Path) -> list[dict[str, Any]]:
    rows = journal.execute(
        "SELECT receipt_id, calling_ae, received_at, finished_at FROM receipts WHERE state = 'done' "
        "ORDER BY finished_at DESC LIMIT ?",
        (_LAST_RESULTS,),
    ).fetchall()
    found = []
    for receipt_id, calling_ae, received_at, finished_at in rows:
        path = thumbnail_path(thumbnails, receipt_id)
        deliveries = journal.execute(
            "SELECT destination, kind, state FROM deliveries WHERE receipt_id = ? ORDER BY delivery_id", (receipt_id,)
        )
        found.append(
            {
                "receipt": receipt_id,
                "from": calling_ae,
                "received_at": received_at,
                "seconds": finished_at - received_at,
                "thumbnail": path is not None and path.exists(),
                "deliveries": [
                    {"destination": name, "kind": kind, "state": state} for name, kind, state in deliveries
                ],
            }
        )
    return found


def _errors(journal: sqlite3.Connection) -> list[dict[str, Any]]:
    """The newest of what was refused, died, or waits after a failure."""
    images = journal.execute(
        "SELECT received_at, state, calling_ae, reason FROM receipts "
        "WHERE state IN ('refused', 'dead') OR (state = 'received' AND reason IS NOT NULL) "
        "ORDER BY received_at DESC LIMIT ?",
        (_LAST_ERRORS,),
    )
    found = [
        {
            "at": at,
            "what": f"image {'waits' if state == 'received' else state}",
            "where": calling_ae,
            "why": reason or "",
        }
        for at, state, calling_ae, reason in images
    ]
    deliveries = journal.execute(
        "SELECT r.received_at, d.state, d.destination, d.kind, d.attempts, d.error FROM "
        "(SELECT * FROM deliveries ORDER BY delivery_id DESC LIMIT ?) d JOIN receipts r USING (receipt_id) "
        "WHERE d.error IS NOT NULL AND d.state IN ('waiting', 'sending', 'dead') "
        "ORDER BY r.received_at DESC LIMIT ?",
        (_LOOKED_AT, _LAST_ERRORS),
    )
    found += [
        {"at": at, "what": f"{kind} {state} after {attempts} attempts", "where": destination, "why": error}
        for at, state, destination, kind, attempts, error in deliveries
    ]
    return sorted(found, key=lambda row: float(row["at"]), reverse=True)[:_LAST_ERRORS]
