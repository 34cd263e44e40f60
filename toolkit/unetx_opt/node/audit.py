"""The audit trail: who sent what, what was sent to whom, and who was refused; each record seals the one before it.

``audit.jsonl`` has one JSON record in each line. Its last member is the SHA-256 of everything before it in the line,
and ``previous`` is that of the line before: no record can be altered, inserted or taken out without breaking every
seal after it. ``audit.head`` names the last record, so that a trail that was cut short is seen, too. Who can write
both files can still cut both: send the messages away as they come (`unetx_opt.node.audit_syslog`), or keep the head
that `unetx-opt queue audit` prints.

Records name AE titles, addresses and UIDs. Nothing of a patient has a member of its own, and free text is of this
program.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file

__all__ = ["EVENT_KINDS", "HEAD_NAME", "TRAIL_NAME", "AuditEvent", "AuditHead", "AuditTrail", "seal", "unseal"]

TRAIL_NAME: Final = "audit.jsonl"
HEAD_NAME: Final = "audit.head"
_LOCK_NAME: Final = "audit.lock"
#: Before the first record.
NOTHING: Final = "0" * 64
#: No record is longer; a line that is was not written here.
MAX_LINE_BYTES: Final = 8192
_MAX_TEXT: Final = 256
_SEAL: Final = b',"sha256":"'
_SEAL_BYTES: Final = len(_SEAL) + 64 + len(b'"}\n')

#: What can happen.
EVENT_KINDS: Final = (
    *("node-start", "node-stop", "received", "refused", "association-refused"),
    *("stored", "not-stored", "committed", "not-committed", "queue-retry", "queue-drop"),
    *("audit-repaired", "audit-damaged"),
)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened.

    Attributes
    ----------
    kind : str
        One of `EVENT_KINDS`.
    outcome : int
        0 success, 4 minor failure, 8 serious failure, 12 major failure (PS3.15 A.5.2).
    peer_ae_title, peer_address : str
        The other side, as far as it is known.
    study_instance_uid, sop_class_uid, sop_instance_uid : str
        The object, where there is one.
    subject : str
        Receipt or delivery of the journal.
    actor : str
        The person's account, where a person acted.
    detail : str
        More, in words of this program.
    """

    kind: str
    outcome: int = 0
    peer_ae_title: str = ""
    peer_address: str = ""
    study_instance_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    subject: str = ""
    actor: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.kind not in EVENT_KINDS:
            raise UnetxError(f"audit event is {self.kind!r}, expected one of {', '.join(EVENT_KINDS)}")
        if self.outcome not in (0, 4, 8, 12):
            raise UnetxError(f"audit outcome is {self.outcome}, expected 0, 4, 8 or 12")


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last record.

    Attributes
    ----------
    count : int
        Its number, which is how many there are.
    sha256 : str
        Its seal.
    """

    count: int = 0
    sha256: str = NOTHING


class AuditTrail:
    """The trail of one node; processes and threads may append to it at the same time.

    Parameters
    ----------
    folder : pathlib.Path
        Where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / TRAIL_NAME

    def append(self, event: AuditEvent) -> AuditHead:
        """Append one record; it is on the disk when this returns.

        Raises
        ------
        UnetxError
            The disk is full, or this system has no file locks.
        """
        with self._locked(), self._opened() as file:
            head = self._settle(file)
            return self._write(file, head, event)

    def repair(self) -> AuditHead:
        """Take off a last line that a crash left unfinished, and set aside a trail that was altered at its end.

        Both are recorded. Appending does the same; at a node's start it is done before anything happens.
        """
        with self._locked(), self._opened() as file:
            return self._settle(file)

    def measure(self) -> tuple[AuditHead | None, int]:
        """Read the head's file, and how many bytes the trail has, while nobody appends."""
        with self._locked():
            size = self.path.stat().st_size if self.path.exists() else 0
            return self.read_head(), size

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError as error:
            raise UnetxError("an audit trail needs file locks of POSIX: run the node on Linux") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _opened(self) -> IO[bytes]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "r+b", buffering=0)

    def _settle(self, file: IO[bytes]) -> AuditHead:
        """Make the end of the trail one that can be appended to, and return it."""
        size = file.seek(0, os.SEEK_END)
        tail = _read_tail(file, size)
        whole, torn = _split_torn(tail)
        last, anchor = _last_head(whole), self.read_head()
        if (
            last is None
            or anchor is None
            or last.count < anchor.count
            or (last.count == anchor.count and last.sha256 != anchor.sha256)
        ):
            return self._set_aside(file)
        if not torn:
            return last
        file.truncate(size - len(torn))
        detail = (
            f"an unfinished record of {len(torn)} bytes was taken off, SHA-256 {hashlib.sha256(torn).hexdigest()}"
        )
        return self._write(file, last, AuditEvent("audit-repaired", 4, detail=detail))

    def _set_aside(self, file: IO[bytes]) -> AuditHead:
        """Begin anew beside a trail whose end is not what its head says: evidence is neither lost nor continued."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        aside = self.folder / f"audit.damaged-{stamp}.jsonl"
        os.link(self.path, aside)
        write_file(self.path, b"")
        write_file(self.folder / HEAD_NAME, _head_bytes(AuditHead()))
        with self._opened() as fresh:
            event = AuditEvent("audit-damaged", 12, detail=f"the trail before this record is kept as {aside.name}")
            head = self._write(fresh, AuditHead(), event)
            os.dup2(fresh.fileno(), file.fileno(), inheritable=False)
        return head

    def _write(self, file: IO[bytes], head: AuditHead, event: AuditEvent) -> AuditHead:
        line, sealed = seal(head, event, datetime.now(UTC))
        start = file.seek(0, os.SEEK_END)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise UnetxError(f"cannot write {self.path}: {error}; free some space") from error
        write_file(self.folder / HEAD_NAME, _head_bytes(sealed))
        return sealed

    def read_head(self) -> AuditHead | None:
        """What the head's file says; `AuditHead()` where there is none, None where it is not one."""
        try:
            data = (self.folder / HEAD_NAME).read_bytes()
        except FileNotFoundError:
            return AuditHead()
        count, _, digest = data.decode("ascii", "replace").strip().partition(" ")
        if len(data) > 100 or not count.isdigit() or len(digest) != 64:
            return None
        return AuditHead(int(count), digest)


def seal(head: AuditHead, event: AuditEvent, when: datetime) -> tuple[bytes, AuditHead]:
    """Make the line of the record that follows `head`, and the head that it is."""
    record: dict[str, Any] = {"n": head.count + 1, "time": when.isoformat(timespec="milliseconds")}
    for field in fields(event):
        value = getattr(event, field.name)
        if value or field.name == "outcome":
            record[field.name] = _plain(value) if isinstance(value, str) else value
    record["previous"] = head.sha256
    body = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _SEAL + digest.encode("ascii") + b'"}\n', AuditHead(head.count + 1, digest)


def unseal(line: bytes) -> Mapping[str, Any] | None:
    """Read one line; None where its seal is not that of its content."""
    if not _SEAL_BYTES < len(line) <= MAX_LINE_BYTES or not line.endswith(b'"}\n'):
        return None
    body, end = line[:-_SEAL_BYTES] + b"}", line[-_SEAL_BYTES:]
    digest = hashlib.sha256(body).hexdigest()
    if end != _SEAL + digest.encode("ascii") + b'"}\n':
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(record, dict)
        or type(record.get("n")) is not int
        or not isinstance(record.get("previous"), str)
    ):
        return None
    return record | {"sha256": digest}


def _plain(text: str) -> str:
    # Of a character each: escapes of others could make a line longer than one may be.
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text[:_MAX_TEXT])


def _head_bytes(head: AuditHead) -> bytes:
    return f"{head.count} {head.sha256}\n".encode("ascii")


def _read_tail(file: IO[bytes], size: int) -> bytes:
    """The last two lines, or all that there is."""
    file.seek(max(0, size - 2 * MAX_LINE_BYTES))
    return file.read(2 * MAX_LINE_BYTES)


def _split_torn(tail: bytes) -> tuple[bytes, bytes]:
    end = tail.rfind(b"\n") + 1
    return tail[:end], tail[end:]


def _last_head(whole: bytes) -> AuditHead | None:
    if not whole:
        return AuditHead()
    record = unseal(whole[whole.rfind(b"\n", 0, -1) + 1 :])
    return None if record is None else AuditHead(record["n"], record["sha256"])
