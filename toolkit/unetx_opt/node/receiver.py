"""The receiver: C-ECHO and C-STORE for those who may, and reports of storage commitment."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socketserver
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from unetx_opt.dicom.decode import TRANSFER_SYNTAXES
from unetx_opt.dicom.suitability import SOP_CLASSES
from unetx_opt.errors import UnetxError
from unetx_opt.node.audit import AuditEvent, AuditTrail
from unetx_opt.node.carrier import limit_association
from unetx_opt.node.commitment import CommitmentReport, add_commitment_context, report_handler
from unetx_opt.node.config import NodeConfig
from unetx_opt.node.deliveries import transaction
from unetx_opt.node.dicom_sender import quiet_dicom_logs
from unetx_opt.node.door import Door, make_server_class
from unetx_opt.node.measures import count
from unetx_opt.node.receipts import ReceivedImage, count_waiting, record_receipt, spool_image
from unetx_opt.node.refusals import Refusals
from unetx_opt.optional import require

__all__ = ["ReceiverPlan", "receiving"]

_LOG: Final = logging.getLogger(__name__)
_PURPOSE: Final = "receiving images"
#: How long those who are sending may go on once the node stops.
_FAREWELL_S: Final = 5.0
_VERIFICATION: Final = "1.2.840.10008.1.1"
_DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
#: Statuses of C-STORE (PS3.4 B.2.3).
_STORED, _NO_ROOM, _INVALID = 0x0000, 0xA700, 0x0117


@dataclass(frozen=True, slots=True)
class ReceiverPlan:
    """What a receiver works with.

    Attributes
    ----------
    config : NodeConfig
        Of the node.
    connect : callable
        f() -> a connection of its own to the journal.
    audit : AuditTrail
        Where transfers and refusals are recorded.
    on_report : callable
        f(report) -> whether this node asked for it.
    refusals : Refusals
        Which of those who are not let in are recorded one by one.
    """

    config: NodeConfig
    connect: Callable[[], sqlite3.Connection]
    audit: AuditTrail
    on_report: Callable[[CommitmentReport], bool]
    refusals: Refusals = field(default_factory=Refusals)

    def refuse(self, reason: str, address: str, calling_ae: str = "", detail: str = "") -> None:
        """Log, count and record that somebody was not let in or an image not taken.

        All are counted. Of those who are not let in, an address is recorded a few times in a minute, and then once
        for all the others.
        """
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self.connect()) as journal:
            count(journal, "unetx_refusals", reason)
        kind = "refused" if reason in ("space", "queue", "object") else "association-refused"
        if kind == "association-refused":
            is_recorded, left_out = self.refusals.take(address)
            for other, number in left_out.items():
                self.tell_left_out(other, number)
            if not is_recorded:
                return
        _LOG.warning("refused: %s, %s from %r: %s", reason, address, calling_ae, detail)
        self._record(
            AuditEvent(kind, 8, peer_ae_title=calling_ae, peer_address=address, detail=f"{reason}: {detail}")
        )

    def tell_left_out(self, address: str, number: int) -> None:
        """Log and record how many refusals of an address were not recorded one by one."""
        _LOG.warning("refused: %d more from %s, not recorded one by one", number, address or "other addresses")
        detail = f"{number} more, not recorded one by one"
        self._record(AuditEvent("association-refused", 8, peer_address=address, detail=detail))

    def _record(self, event: AuditEvent) -> None:
        with contextlib.suppress(UnetxError):  # a full disk is why, now and then
            self.audit.append(event)


@contextlib.contextmanager
def receiving(plan: ReceiverPlan) -> Iterator[Any]:
    """Receive images while the context lasts; at its end, associations have a moment to end, and are aborted.

    Raises
    ------
    SpecError
        The TLS settings are unusable.
    UnetxError
        The address or port is taken.
    """
    pynetdicom: Any = require("pynetdicom", purpose=_PURPOSE)
    quiet_dicom_logs()
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    entity = _make_entity(pynetdicom, plan.config)
    where = (plan.config.address, plan.config.port)
    server_class = make_server_class(Door(plan.config, plan.refuse))
    try:
        server = entity.make_server(where, evt_handlers=_handlers(pynetdicom.evt, plan), server_class=server_class)
    except OSError as error:
        raise UnetxError(
            f"cannot listen to port {where[1]} of {where[0]} ({error.strerror}): choose another"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="receiver", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        # Not the server's own `shutdown`, which breaks off what is being received.
        socketserver.BaseServer.shutdown(server)
        thread.join()
        deadline = time.monotonic() + _FAREWELL_S
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        for association in server.active_associations:
            association.abort()
        server.server_close()
        for address, number in plan.refusals.left_out().items():
            plan.tell_left_out(address, number)


def _make_entity(pynetdicom: Any, config: NodeConfig) -> Any:
    limits = config.limits
    entity = pynetdicom.AE(ae_title=config.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(config.calling_ae_titles)
    entity.maximum_associations = limits.associations
    entity.maximum_pdu_size = limits.pdu_bytes - 6
    entity.acse_timeout, entity.network_timeout, entity.dimse_timeout = (
        limits.handshake_s,
        limits.idle_s,
        limits.idle_s,
    )
    entity.add_supported_context(_VERIFICATION)
    for sop_class in (*SOP_CLASSES, _DX_FOR_PROCESSING):
        entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    add_commitment_context(entity)
    return entity


def _handlers(evt: Any, plan: ReceiverPlan) -> list[tuple[Any, Any]]:
    return [
        (evt.EVT_CONN_OPEN, lambda event: limit_association(event.assoc, plan.config.limits)),
        (evt.EVT_ACCEPTED, lambda event: event.assoc.message_ended()),
        (evt.EVT_DIMSE_RECV, lambda event: event.assoc.message_ended()),
        (evt.EVT_REJECTED, lambda event: _tell_rejection(event, plan)),
        (evt.EVT_C_ECHO, lambda event: _STORED),
        (evt.EVT_C_STORE, lambda event: _store(event, plan)),
        (evt.EVT_N_EVENT_REPORT, report_handler(plan.on_report)),
    ]


def _tell_rejection(event: Any, plan: ReceiverPlan) -> None:
    requestor = event.assoc.requestor.primitive
    plan.refuse(
        "association",
        str(event.assoc.requestor.address),
        str(getattr(requestor, "calling_ae_title", "")),
        f"called as {getattr(requestor, 'called_ae_title', '')!r}",
    )


def _store(event: Any, plan: ReceiverPlan) -> int:
    """Write an image to the spool and the journal, and only then acknowledge it."""
    image = ReceivedImage(
        calling_ae=str(event.assoc.requestor.ae_title).strip(),
        peer_address=str(event.assoc.requestor.address),
        sop_class_uid=str(event.request.AffectedSOPClassUID),
        sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
    )
    who = (image.peer_address, image.calling_ae)
    if not _is_uid(image.sop_instance_uid):
        plan.refuse("object", *who, "SOP Instance UID is no UID")
        return _INVALID
    try:
        with contextlib.closing(plan.connect()) as journal:
            if (full := _why_no_room(plan, journal)) is not None:
                plan.refuse(full[0], *who, full[1])
                return _NO_ROOM
            _take(plan, journal, image, event.encoded_dataset())
    except (OSError, sqlite3.Error, UnetxError) as error:
        plan.refuse("space", *who, type(error).__name__)
        return _NO_ROOM
    return _STORED


def _take(plan: ReceiverPlan, journal: sqlite3.Connection, image: ReceivedImage, data: bytes) -> None:
    receipt_id, sha256 = spool_image(plan.config.state, data)
    with transaction(journal):
        record_receipt(journal, receipt_id, image, (len(data), sha256), time.time())
        count(journal, "unetx_received_images", image.calling_ae)
        plan.audit.append(
            AuditEvent(
                "received",
                peer_ae_title=image.calling_ae,
                peer_address=image.peer_address,
                sop_class_uid=image.sop_class_uid,
                sop_instance_uid=image.sop_instance_uid,
                subject=receipt_id,
            )
        )
    _LOG.info("received %s as %s from %r", image.sop_instance_uid, receipt_id, image.calling_ae)


def _why_no_room(plan: ReceiverPlan, journal: sqlite3.Connection) -> tuple[str, str] | None:
    limits = plan.config.limits
    free = shutil.disk_usage(plan.config.state).free
    if free < limits.free_bytes:
        return "space", f"{free} bytes are free, {limits.free_bytes} are kept"
    waiting = count_waiting(journal)
    if waiting >= limits.waiting_images:
        return "queue", f"{waiting} images wait"
    return None


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and _UID.fullmatch(text) is not None
