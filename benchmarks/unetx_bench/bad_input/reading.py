"""What the sandboxed reader makes of the corpus: an outcome for every file, and what it must never do."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unetx_bench.bad_input.corpus import BadFile, make_file
from unetx_bench.bad_input.valid import PATIENT, SHAPE, VALID, valid_bytes
from unetx_opt.dicom.read import ReadOptions
from unetx_opt.dicom.sandbox import DicomReader, ReaderLimits
from unetx_opt.errors import UnetxError

__all__ = ["Reading", "check_alive", "peak_memory_mib", "read_corpus", "summarize"]

#: What a message of the reader looks like -> the outcome that it is; what matches none is an ordinary refusal.
_OUTCOMES: Final = (
    (re.compile(r"reading it took more than"), "timed out"),
    (re.compile(r"broke the process that read it"), "crashed the sandbox"),
)
#: Seconds beyond the limit in which a process must have been ended and its end noticed.
_GRACE_S: Final = 2.0
_SLOWEST: Final = 10


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of one file.

    Attributes
    ----------
    name, kind : str
        As in `unetx_bench.bad_input.corpus.BadFile`.
    outcome : str
        "read", "refused", "timed out" or "crashed the sandbox".
    reason : str or None
        Message of the error.
    seconds : float
        With the start of a process where one was needed.
    faults : tuple of str
        What must not happen and did.
    """

    name: str
    kind: str
    outcome: str
    reason: str | None
    seconds: float
    faults: tuple[str, ...] = field(default=())


def read_corpus(places: Iterable[int], seed: int, folder: Path, reader: DicomReader) -> Iterator[Reading]:
    """Read files of the corpus one after the other; every second is forced, and all give their header for results.

    Parameters
    ----------
    places : iterable of int
        Numbers of the files.
    seed : int
        Of the corpus.
    folder : pathlib.Path
        Where each file lies while it is read.
    reader : DicomReader
        Serves all of them.
    """
    for place in places:
        file = make_file(place, seed)
        path = folder / file.name
        path.write_bytes(file.data)
        yield _read_one(path, file, ReadOptions(force=place % 2 == 1, with_source=True), reader)
        path.unlink()


def check_alive(reader: DicomReader, folder: Path) -> tuple[str, ...]:
    """Name the transfer syntaxes of which the reader no longer reads a valid file."""
    dead = []
    for name in VALID:
        path = folder / f"valid-{name}.dcm"
        path.write_bytes(valid_bytes(name))
        try:
            alive = reader.read(path).pixels.shape == SHAPE
        except UnetxError:
            alive = False
        path.unlink()
        if not alive:
            dead.append(name)
    return tuple(dead)


def peak_memory_mib(process_id: int | None) -> float | None:
    """Largest resident memory that a process of Linux has had, in MiB; None where it cannot be read."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return None if found is None else int(found[1]) / 1024


def summarize(readings: Iterable[Reading]) -> dict[str, Any]:
    """Count outcomes, in all and by kind; name the slowest files, and all that timed out, crashed or had faults."""
    rows = list(readings)
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        kinds.setdefault(row.kind, Counter())[row.outcome] += 1
    slowest = sorted(rows, key=lambda row: -row.seconds)[:_SLOWEST]
    return {
        "files": len(rows),
        "outcomes": dict(Counter(row.outcome for row in rows)),
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "slowest": [{"name": row.name, "seconds": round(row.seconds, 3), "outcome": row.outcome} for row in slowest],
        "ended": [
            {"name": row.name, "outcome": row.outcome, "reason": row.reason}
            for row in rows
            if row.outcome not in ("read", "refused")
        ],
        "faults": [{"name": row.name, "faults": list(row.faults)} for row in rows if row.faults],
    }


def _read_one(path: Path, file: BadFile, options: ReadOptions, reader: DicomReader) -> Reading:
    started = time.perf_counter()
    outcome, reason, faults = "read", None, []
    try:
        image = reader.read(path, options)
        if image.pixels.ndim != 2:
            faults.append(f"pixels of shape {image.pixels.shape}")
    except UnetxError as error:
        reason = str(error)
        outcome = next((name for pattern, name in _OUTCOMES if pattern.search(reason)), "refused")
    except Exception as error:
        # The one thing that may never happen: it would have ended the program that reads.
        faults.append(f"{type(error).__name__} escaped")
    seconds = time.perf_counter() - started
    faults += _faults_of(reason, seconds, reader.limits)
    return Reading(file.name, file.kind, outcome, reason, seconds, tuple(faults))


def _faults_of(reason: str | None, seconds: float, limits: ReaderLimits) -> Iterator[str]:
    if seconds > limits.timeout_s + _GRACE_S:
        yield f"it took {seconds:.1f} s, the limit is {limits.timeout_s:g} s"
    if reason is None:
        return
    if not reason.strip() or "\n" in reason or len(reason) > 1000:
        yield "its reason is not one line"
    if any(part.lower() in reason.lower() for name in PATIENT for part in (name, name.partition("^")[0])):
        yield "its reason names the patient"
