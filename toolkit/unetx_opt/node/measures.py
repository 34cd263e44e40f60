"""Counters and histograms that outlive a process: one table beside the journal's, written with what they count.

What can be counted from the journal's rows is not kept here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_opt.errors import SpecError

__all__ = ["MEASURES", "MEASURES_SCHEMA", "Measure", "count", "observe", "read_measures"]

_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)

MEASURES_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS measures (
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    bucket REAL NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (name, labels, bucket)
) WITHOUT ROWID;
"""
#: Rows of a measure that are no bucket.
_SUM: Final = -1.0
_COUNT: Final = -2.0


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table of measures.

    Attributes
    ----------
    help : str
        As Prometheus shows it.
    labels : tuple of str
        Names of its labels.
    buckets : tuple of float
        Upper bounds of a histogram, in its unit; empty where it is a counter.
    """

    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


#: Name, without Prometheus' suffix -> row.
MEASURES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        "unetx_received_images": Measure("Images that were acknowledged", ("calling_ae",)),
        "unetx_refusals": Measure("Images and associations that were refused", ("reason",)),
        "unetx_delivery_attempts": Measure("Transfers that were tried", ("destination", "verdict")),
        "unetx_delivery_transfer_seconds": Measure("Time of one transfer", ("destination",), _SECONDS),
        "unetx_received_to_stored_seconds": Measure(
            "Time from the receipt of an image to its result being stored", ("destination",), _SECONDS
        ),
        "unetx_commitments": Measure("Reports of storage commitment by result", ("destination", "result")),
        "unetx_processing_seconds": Measure("Time of reading, segmenting and writing one image", (), _SECONDS),
        "unetx_worker_restarts": Measure("Processes and threads that ended by themselves", ("part",)),
    }
)


def count(connection: sqlite3.Connection, name: str, *labels: str, by: float = 1.0) -> None:
    """Add to a counter.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of the journal; in a transaction, it is counted with what the transaction does, or not at all.
    name : str
        Key of `MEASURES`.
    *labels : str
        Values, in the order of the row.
    by : float
        How much.

    Raises
    ------
    SpecError
        There is no such counter, or it has other labels.
    """
    measure = _row(name, labels)
    if measure.buckets:
        raise SpecError(f"{name} is a histogram: call observe")
    _add(connection, name, labels, [(_COUNT, by)])


def observe(connection: sqlite3.Connection, name: str, value: float, *labels: str) -> None:
    """Add one value to a histogram; parameters and errors as in `count`."""
    measure = _row(name, labels)
    if not measure.buckets:
        raise SpecError(f"{name} is a counter: call count")
    bucket = next((bound for bound in measure.buckets if value <= bound), float("inf"))
    _add(connection, name, labels, [(_SUM, value), (_COUNT, 1.0), (bucket, 1.0)])


def read_measures(connection: sqlite3.Connection) -> Mapping[tuple[str, tuple[str, ...]], Mapping[float, float]]:
    """Read all: (name, values of its labels) -> bucket -> value, where -1 is the sum and -2 the count."""
    found: dict[tuple[str, tuple[str, ...]], dict[float, float]] = {}
    for name, labels, bucket, value in connection.execute("SELECT name, labels, bucket, value FROM measures"):
        found.setdefault((name, tuple(json.loads(labels))), {})[bucket] = value
    return found


def _row(name: str, labels: tuple[str, ...]) -> Measure:
    if name not in MEASURES:
        raise SpecError(f"measure is {name!r}, expected one of {', '.join(MEASURES)}")
    if len(labels) != len(MEASURES[name].labels):
        raise SpecError(f"{name} has the labels {MEASURES[name].labels}, found {len(labels)} values")
    return MEASURES[name]


def _add(
    connection: sqlite3.Connection, name: str, labels: tuple[str, ...], changes: list[tuple[float, float]]
) -> None:
    text = json.dumps(labels)
    connection.executemany(
        "INSERT INTO measures (name, labels, bucket, value) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (name, labels, bucket) DO UPDATE SET value = value + excluded.value",
        [(name, text, bucket, value) for bucket, value in changes],
    )
