"""Connections of senders within limits: pynetdicom reads whatever a peer claims, for as long as it takes."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, Final

from unetx_opt.node.config import Limits

__all__ = ["limit_association"]

_CHUNK: Final = 1 << 18
_ASSOCIATE_BYTES: Final = 1 << 17


def limit_association(association: Any, limits: Limits) -> None:
    """Replace how an association reads from its connection.

    A PDU has a greatest length, a message a greatest length and duration, whatever is claimed, and however slowly it
    drips. What goes beyond is an error of the connection, which ends it. What was read is acknowledged at once (see
    `unetx_opt.node.dicom_sender.answer_promptly`).

    Parameters
    ----------
    association : pynetdicom.association.Association
        An acceptor whose connection has just been opened.
    limits : Limits
        What a sender may use up.
    """
    carrier = association.dul.socket
    meter = _Meter(limits)
    quick = getattr(socket, "TCP_QUICKACK", None)

    def receive(count: int) -> bytearray:
        connection = carrier.socket
        deadline = meter.admit(count, established=bool(association.is_established))
        data, filled = bytearray(min(count, _CHUNK)), 0
        while filled < count:
            if filled == len(data):  # as much as came, and not as much as was claimed
                data.extend(bytes(min(count - filled, _CHUNK)))
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            got = connection.recv_into(memoryview(data)[filled:])
            if quick is not None:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, quick, 1)
            if not got or time.monotonic() > deadline:
                raise ConnectionResetError("it ended or took too long")
            filled += got
        return data

    association.message_ended = meter.restart
    carrier.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carrier.recv = receive


class _Meter:
    """What one message has used up so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._deadline = time.monotonic() + limits.handshake_s
        self._began = True

    def restart(self) -> None:
        """A message has ended."""
        self._bytes, self._began = 0, False

    def admit(self, count: int, *, established: bool) -> float:
        """Let `count` bytes be read, until a time."""
        limits = self._limits
        if not self._began:
            self._began, self._deadline = True, time.monotonic() + limits.message_s
        self._bytes += count
        if count > (limits.pdu_bytes if established else _ASSOCIATE_BYTES) or self._bytes > limits.message_bytes:
            raise ConnectionResetError("it is longer than it may be")
        return self._deadline
