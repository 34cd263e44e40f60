"""Storage commitment (PS3.4 J): asking a destination whether it keeps what it stored, and taking its report."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from unetx_opt.node.deliveries import Delivery, mark_committed, mark_lost, transaction
from unetx_opt.node.destinations import Destination, DicomPeer, client_tls
from unetx_opt.node.dicom_sender import associate, quiet_dicom_logs
from unetx_opt.node.outcome import Outcome, Verdict, judge_status
from unetx_opt.optional import require

__all__ = [
    "COMMITMENT_CLASS",
    "CommitmentReport",
    "add_commitment_context",
    "apply_report",
    "new_transaction_uid",
    "parse_report",
    "report_handler",
    "request_commitment",
]

_PURPOSE: Final = "storage commitment"
COMMITMENT_CLASS: Final = "1.2.840.10008.1.20.1"
_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
_REQUEST: Final = 1
_MAX_REFERENCES: Final = 10_000
#: Statuses of N-EVENT-REPORT (PS3.7 10.1.1.1.8).
_DONE, _PROCESSING_FAILURE, _INVALID = 0x0000, 0x0110, 0x0115


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a destination says of one request.

    Attributes
    ----------
    transaction_uid : str
        Of the request.
    committed : tuple of str
        SOP Instance UIDs that it keeps.
    failed : mapping of str to int
        SOP Instance UID -> Failure Reason (PS3.3 C.14) of those that it does not.
    """

    transaction_uid: str
    committed: tuple[str, ...] = ()
    failed: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def new_transaction_uid() -> str:
    """A UID that nobody can guess: a report is believed by it."""
    return f"2.25.{uuid.uuid4().int}"


def request_commitment(
    destination: Destination, transaction_uid: str, deliveries: Sequence[Delivery], on_report: Callable[[Any], Any]
) -> Outcome:
    """Ask for the commitment of some results (N-ACTION, PS3.4 J.3.2).

    Parameters
    ----------
    destination : Destination
        One of C-STORE.
    transaction_uid : str
        Of this request.
    deliveries : sequence of Delivery
        What was stored.
    on_report : callable
        As `report_handler` makes it, for a peer that reports on the association of the request.

    Returns
    -------
    Outcome
        STORED where the request was taken; the report comes on its own.
    """
    pydicom: Any = require("pydicom", purpose=_PURPOSE)
    pynetdicom: Any = require("pynetdicom", purpose=_PURPOSE)
    quiet_dicom_logs()
    peer = destination.peer
    if not isinstance(peer, DicomPeer):
        return Outcome(Verdict.REFUSED, "only destinations of C-STORE commit")
    information = pydicom.Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_reference(pydicom, delivery) for delivery in deliveries]
    association, absent = associate(
        peer,
        [pynetdicom.build_context(COMMITMENT_CLASS)],
        timeout_s=destination.timeout_s,
        tls=None if peer.tls is None else client_tls(peer.tls),
        evt_handlers=[(pynetdicom.evt.EVT_N_EVENT_REPORT, on_report)],
    )
    if absent is not None:
        return absent
    try:
        answer, _ = association.send_n_action(information, _REQUEST, COMMITMENT_CLASS, _INSTANCE)
        if "Status" in answer and int(answer.Status) == 0 and destination.commitment_linger_s:
            time.sleep(destination.commitment_linger_s)
    except (ValueError, RuntimeError, OSError, AttributeError) as error:
        return Outcome(Verdict.AGAIN, f"storage commitment not asked for ({type(error).__name__})")
    finally:
        association.release()
    if "Status" not in answer:
        return Outcome(Verdict.ABSENT, "association lost before the answer")
    return judge_status(int(answer.Status))


def _reference(pydicom: Any, delivery: Delivery) -> Any:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = delivery.sop_class_uid
    item.ReferencedSOPInstanceUID = delivery.sop_instance_uid
    return item


def add_commitment_context(entity: Any) -> None:
    """Let an application entity take reports: its peer is the provider then, on an association that it opens.

    Parameters
    ----------
    entity : pynetdicom.AE
        Of the node's receiver.
    """
    entity.add_supported_context(COMMITMENT_CLASS, scu_role=False, scp_role=True)


def parse_report(information: Any) -> CommitmentReport | None:
    """Read the Event Information of a report (PS3.4 J.3.3); None where it is not one.

    Parameters
    ----------
    information : pydicom.dataset.Dataset
        Of unknown origin.
    """
    try:
        committed = [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or []]
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or _PROCESSING_FAILURE)
            for item in information.get("FailedSOPSequence") or []
        }
        transaction_uid = str(information.TransactionUID)
    except Exception:  # pydicom raises nearly everything on what it cannot read
        return None
    if not transaction_uid or len(committed) + len(failed) > _MAX_REFERENCES:
        return None
    return CommitmentReport(transaction_uid, tuple(committed), MappingProxyType(failed))


def apply_report(connection: sqlite3.Connection, report: CommitmentReport) -> tuple[list[Delivery], list[Delivery]]:
    """Write a report into the journal; what the destination lost is sent again.

    Returns
    -------
    committed, lost : list of Delivery
        Those whose state changed; both empty where nobody asked.
    """
    committed: list[Delivery] = []
    lost: list[Delivery] = []
    with transaction(connection):
        for uid in report.committed:
            committed += mark_committed(connection, report.transaction_uid, uid)
        for uid, reason in report.failed.items():
            lost += mark_lost(connection, report.transaction_uid, uid, f"not committed, reason 0x{reason:04X}")
    return committed, lost


def report_handler(apply: Callable[[CommitmentReport], bool]) -> Callable[[Any], tuple[int, None]]:
    """Make the handler of ``evt.EVT_N_EVENT_REPORT``.

    Parameters
    ----------
    apply : callable
        f(report) -> whether somebody asked for it. It is called in the thread of the association.
    """

    def handle(event: Any) -> tuple[int, None]:
        try:
            report = parse_report(event.event_information)
        except Exception:  # what cannot be decoded
            report = None
        if report is None:
            return _INVALID, None
        try:
            known = apply(report)
        except sqlite3.Error:  # it is reported again, or asked for again
            return _PROCESSING_FAILURE, None
        return (_DONE if known else _INVALID), None

    return handle
