"""Whether an audit trail is whole: every seal, every link, and the head that was written last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetx_opt.node.audit import HEAD_NAME, MAX_LINE_BYTES, TRAIL_NAME, AuditHead, AuditTrail, unseal

__all__ = ["AuditCheck", "check_trail", "read_records"]


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """What a check found.

    Attributes
    ----------
    head : AuditHead
        The last record of the part that is whole.
    problems : tuple of str
        What is wrong, the first place first; empty where nothing is.
    """

    head: AuditHead
    problems: tuple[str, ...] = ()


def check_trail(folder: Path, expected: AuditHead | None = None) -> AuditCheck:
    """Check the trail of a folder, in constant memory.

    Parameters
    ----------
    folder : pathlib.Path
        Of the trail.
    expected : AuditHead, optional
        A head that was kept elsewhere: the trail must hold this record.

    Returns
    -------
    AuditCheck
        The node may go on appending meanwhile; a line that a crash left unfinished is a problem until it starts
        again.
    """
    problems = [f"{path.name} was set aside as damaged" for path in sorted(folder.glob("audit.damaged-*.jsonl"))]
    anchor, size = AuditTrail(folder).measure()
    wanted = [head for head in (anchor, expected) if head is not None and head.count]
    if anchor is None:
        problems.append(f"{HEAD_NAME} is no head of a trail")
    head = AuditHead()
    seen: dict[int, str] = {}
    for line in _lines(folder / TRAIL_NAME, size):
        record = unseal(line)
        if record is None or record["n"] != head.count + 1 or record["previous"] != head.sha256:
            problems.append(f"record {head.count + 1} {_blame(line, record, head)}")
            break
        head = AuditHead(record["n"], record["sha256"])
        if any(head.count == one.count for one in wanted):
            seen[head.count] = head.sha256
    for one in wanted:
        if one.count > head.count:
            problems.append(f"{one.count} records were written, {head.count} are whole: the trail was cut short")
        elif seen[one.count] != one.sha256:
            problems.append(f"record {one.count} is not the one that was written: the trail was made anew")
    return AuditCheck(head, tuple(dict.fromkeys(problems)))


def read_records(folder: Path, start: int = 0) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield records from a byte of the trail on, each with the byte after it, up to the first that is not whole."""
    _, size = AuditTrail(folder).measure()
    for line in _lines(folder / TRAIL_NAME, size, start):
        record = unseal(line)
        if record is None:
            return
        start += len(line)
        yield record, start


def _lines(path: Path, size: int, start: int = 0) -> Iterator[bytes]:
    if size == 0:
        return
    with path.open("rb") as file:
        file.seek(start)
        while start < size:
            line = file.readline(min(MAX_LINE_BYTES + 1, size - start))
            if not line:  # it was set aside meanwhile
                return
            start += len(line)
            yield line


def _blame(line: bytes, record: Mapping[str, Any] | None, head: AuditHead) -> str:
    if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        return "is unfinished: start the node, which takes it off"
    if record is None:
        return "was altered: its seal does not fit"
    return f"does not follow: it says number {record['n']}, and another record before it than {head.sha256[:16]}"
