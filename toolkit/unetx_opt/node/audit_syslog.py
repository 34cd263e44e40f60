"""The audit trail to a collector over TLS syslog (RFC 5425), from where the collector last had it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_opt.errors import SpecError
from unetx_opt.files import write_file
from unetx_opt.node.audit import MAX_LINE_BYTES, TRAIL_NAME, unseal
from unetx_opt.node.audit_check import read_records
from unetx_opt.node.audit_message import AuditSource, audit_message, syslog_frame
from unetx_opt.node.destinations import TlsFiles, client_tls

__all__ = ["CURSOR_NAME", "SyslogCollector", "forward_audit", "forward_once"]

CURSOR_NAME: Final = "audit.forwarded"
_BATCH: Final = 500
_TIMEOUT_S: Final = 10.0
_INTERVAL_S: Final = 2.0
_MAX_DELAY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class SyslogCollector:
    """Where audit messages go.

    Attributes
    ----------
    host, port : str, int
        Where it listens; 6514 is the port of RFC 5425.
    tls : TlsFiles
        Its authority, and what the node shows of itself.
    """

    host: str
    tls: TlsFiles
    port: int = 6514

    def __post_init__(self) -> None:
        if not self.host or not 0 < self.port < 65536:
            raise SpecError(f"syslog is {self.host!r} port {self.port}, expected a host and a port of 1 to 65535")


def forward_once(folder: Path, collector: SyslogCollector, source: AuditSource) -> int:
    """Send what the collector has not had yet, at most a batch.

    A record counts as had when the collector has read to the end of the connection: what a connection broke off
    with is sent again, and may arrive twice.

    Returns
    -------
    int
        How many records were sent.

    Raises
    ------
    OSError
        The collector was not reached, did not prove who it is, or broke off.
    SpecError
        The TLS settings are unusable.
    """
    batch = list(itertools.islice(read_records(folder, _read_cursor(folder)), _BATCH))
    if not batch:
        return 0
    frames = [syslog_frame(audit_message(record, source), record, source) for record, _ in batch]
    with _connected(collector) as connection:
        connection.sendall(b"".join(frames))
    last, end = batch[-1]
    write_file(folder / CURSOR_NAME, f"{end} {last['sha256']}\n".encode("ascii"))
    return len(batch)


def forward_audit(folder: Path, collector: SyslogCollector, source: AuditSource, stop: threading.Event) -> None:
    """Send records as they come until `stop` is set, with growing delays while the collector is away."""
    delay_s = _INTERVAL_S
    while not stop.wait(delay_s):
        try:
            full = forward_once(folder, collector, source) == _BATCH
            delay_s = 0.0 if full else _INTERVAL_S
        except OSError:
            delay_s = min(max(delay_s, _INTERVAL_S) * 2, _MAX_DELAY_S)


@contextlib.contextmanager
def _connected(collector: SyslogCollector) -> Iterator[socket.socket]:
    context = client_tls(collector.tls)
    with (
        socket.create_connection((collector.host, collector.port), _TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=collector.host) as secured,
    ):
        yield secured
        # Syslog has no answers: that the collector ends the connection after us says that it read all of it.
        # Some end it without the alert that TLS asks for; had they left anything unread, it would have been reset.
        with contextlib.suppress(ssl.SSLEOFError):
            secured.unwrap()


def _read_cursor(folder: Path) -> int:
    """Byte of the trail to go on from: behind the record that was sent last, or 0 in a trail that has it not."""
    try:
        text = (folder / CURSOR_NAME).read_text(encoding="ascii", errors="replace")
        end, _, digest = text.strip().partition(" ")
        with (folder / TRAIL_NAME).open("rb") as file:
            file.seek(max(0, int(end) - MAX_LINE_BYTES))
            before = file.read(min(int(end), MAX_LINE_BYTES))
    except (FileNotFoundError, ValueError):
        return 0
    record = unseal(before[before.rfind(b"\n", 0, -1) + 1 :])
    return int(end) if record is not None and record["sha256"] == digest else 0
