"""Results over C-STORE, as many as come over one association."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from pathlib import Path
from typing import Any, Final

from unetx_opt.node.destinations import DicomPeer, client_tls
from unetx_opt.node.outcome import Outcome, Verdict, judge_status
from unetx_opt.node.sender import Sender
from unetx_opt.optional import require

__all__ = ["DicomSender", "answer_promptly", "associate", "quiet_dicom_logs"]

_PURPOSE: Final = "sending over C-STORE"
#: Of the connection alone: a host that is off does not answer, and all that waits for it waits with it.
_CONNECT_S: Final = 10.0
_LITTLE_ENDIAN: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def quiet_dicom_logs() -> None:
    """Let pydicom and pynetdicom say nothing: they quote names of patients."""
    for name in ("pydicom", "pynetdicom"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False


def associate(
    peer: DicomPeer, contexts: list[Any], *, timeout_s: float, tls: ssl.SSLContext | None, **more: Any
) -> tuple[Any, Outcome | None]:
    """Ask a peer for an association.

    Parameters
    ----------
    peer : DicomPeer
        Whom to ask.
    contexts : list of pynetdicom.presentation.PresentationContext
        What for.
    timeout_s : float
        Of every answer.
    tls : ssl.SSLContext or None
        As `client_tls` makes it.
    **more
        Further arguments of pynetdicom's ``AE.associate``.

    Returns
    -------
    association, outcome
        An established association and None, or None and why there is none.
    """
    pynetdicom: Any = require("pynetdicom", purpose=_PURPOSE)
    entity = pynetdicom.AE(ae_title=peer.calling_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.connection_timeout = min(timeout_s, _CONNECT_S)
    handlers = [
        (pynetdicom.evt.EVT_CONN_OPEN, lambda event: answer_promptly(event.assoc, timeout_s)),
        *more.pop("evt_handlers", ()),
    ]
    try:
        association = entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            max_pdu=128 * 1024,
            tls_args=None if tls is None else (tls, peer.host),
            evt_handlers=handlers,
            **more,
        )
    except (OSError, RuntimeError) as error:
        return None, Outcome(Verdict.ABSENT, f"no association: {type(error).__name__}")
    if association.is_established:
        return association, None
    if association.is_rejected:
        answer = association.acceptor.primitive
        reason = getattr(answer, "reason_str", "no reason given")
        return None, Outcome(Verdict.ABSENT, f"association rejected: {reason}")
    return None, Outcome(Verdict.ABSENT, f"no association with {peer.ae_title} at {peer.host} port {peer.port}")


def answer_promptly(association: Any, timeout_s: float) -> None:
    """Keep an association from waiting 40 ms for every message, and from waiting for ever for the rest of one.

    A peer that writes the head of a message and then the rest waits for the ACK of the head (Nagle), which this
    system sends 40 ms later (delayed ACK): dcmtk and Orthanc answer a C-STORE so. Here small packets go out at once,
    and on Linux whatever was read is acknowledged at once, which the kernel asks to be told every time.

    Parameters
    ----------
    association : pynetdicom.association.Association
        One whose connection is open.
    timeout_s : float
        Longest wait for the next bytes of a message that has begun, or for room to send; the library has none.
    """
    carrier = association.dul.socket
    receive, quick = carrier.recv, getattr(socket, "TCP_QUICKACK", None)

    def set_option(option: int) -> None:
        with contextlib.suppress(OSError, AttributeError):  # lost meanwhile: the transfer will say so
            carrier.socket.setsockopt(socket.IPPROTO_TCP, option, 1)

    def receive_and_acknowledge(count: int) -> Any:
        data = receive(count)
        if quick is not None:
            set_option(quick)
        return data

    carrier.socket.settimeout(timeout_s)
    set_option(socket.TCP_NODELAY)
    carrier.recv = receive_and_acknowledge


class DicomSender(Sender):
    """Results over C-STORE.

    Parameters
    ----------
    peer : DicomPeer
        Where they go.
    timeout_s : float
        How long an answer is waited for.
    """

    def __init__(self, peer: DicomPeer, *, timeout_s: float) -> None:
        require("pynetdicom", purpose=_PURPOSE)
        quiet_dicom_logs()
        self._peer = peer
        self._timeout_s = timeout_s
        self._tls = None if peer.tls is None else client_tls(peer.tls)
        self._contexts: dict[str, set[str]] = {}  # SOP class -> transfer syntaxes proposed
        self._association: Any = None

    def send(self, path: Path) -> Outcome:
        """Send one file in the encoding that it has, or in another little endian where only that is accepted."""
        dataset = _read(path)
        if isinstance(dataset, Outcome):
            return dataset
        if (absent := self._connect(str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID))) is not None:
            return absent
        try:
            answer = self._association.send_c_store(dataset)
        except ValueError:  # no context of its SOP class, or none that it can be encoded in
            return Outcome(Verdict.REFUSED, f"the destination does not accept the SOP class {dataset.SOPClassUID}")
        except (RuntimeError, OSError, AttributeError) as error:
            self._drop()
            return Outcome(Verdict.ABSENT, f"association lost ({type(error).__name__})")
        if "Status" not in answer:
            self._drop()
            return Outcome(Verdict.ABSENT, "association lost before the answer")
        return judge_status(int(answer.Status))

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _drop(self) -> None:
        association, self._association = self._association, None
        if association is not None and not (association.is_released or association.is_aborted):
            association.abort()

    def _connect(self, sop_class: str, syntax: str) -> Outcome | None:
        offered = syntax in self._contexts.get(sop_class, ())
        if offered and self._association is not None and self._association.is_established:
            return None
        self.close()
        self._contexts.setdefault(sop_class, set(_LITTLE_ENDIAN)).add(syntax)
        presentation: Any = require("pynetdicom.presentation", purpose=_PURPOSE)
        # One context for each pair: in one with several, the peer would choose, and a file be encoded anew.
        contexts = [
            presentation.build_context(name, [each])
            for name, syntaxes in sorted(self._contexts.items())
            for each in sorted(syntaxes)
        ]
        self._association, outcome = associate(self._peer, contexts, timeout_s=self._timeout_s, tls=self._tls)
        return outcome


def _read(path: Path) -> Any:
    """The data set of a file that has what a transfer needs, or why there is none."""
    pydicom: Any = require("pydicom", purpose=_PURPOSE)
    try:
        dataset = pydicom.dcmread(path)
        complete = all((dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.file_meta.TransferSyntaxUID))
    except FileNotFoundError:
        return Outcome(Verdict.REFUSED, "its file is gone")
    except Exception as error:  # pydicom raises nearly everything, and quotes what it read
        return Outcome(Verdict.REFUSED, f"its file cannot be read ({type(error).__name__})")
    return dataset if complete else Outcome(Verdict.REFUSED, "its file has no identity")
