"""Records of the audit trail as messages of PS3.15 A.5, in the frames of syslog (RFC 5424 in RFC 5425)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["AuditSource", "MessageRow", "audit_message", "syslog_frame"]

# Facility 10, security and authorization messages; severity 5, normal but significant.
_PRIORITY: Final = 10 * 8 + 5
_OWN: Final = "99UNETX"


@dataclass(frozen=True, slots=True)
class AuditSource:
    """Who reports.

    Attributes
    ----------
    ae_title : str
        Of the node.
    host : str
        Name of its machine.
    process_id : int
        Of the node.
    """

    ae_title: str
    host: str
    process_id: int


@dataclass(frozen=True, slots=True)
class MessageRow:
    """How one kind of event is told.

    Attributes
    ----------
    code, text : str
        Event ID; codes of digits alone are DICOM's, others of this program.
    action : str
        C create, R read, U update, D delete, E execute.
    type_code, type_text : str
        Event Type Code, where there is one.
    source, destination : str
        Which side sent objects and which got them: ``node`` or ``peer``; empty where none were.
    """

    code: str
    text: str
    action: str
    type_code: str = ""
    type_text: str = ""
    source: str = ""
    destination: str = ""


_TRANSFER: Final = ("110104", "DICOM Instances Transferred")
_ACTIVITY: Final = ("110100", "Application Activity")
_ALERT: Final = ("110113", "Security Alert")

#: Kind of event -> its message.
MESSAGES: Final[Mapping[str, MessageRow]] = MappingProxyType(
    {
        "node-start": MessageRow(*_ACTIVITY, "E", "110120", "Application Start"),
        "node-stop": MessageRow(*_ACTIVITY, "E", "110121", "Application Stop"),
        "received": MessageRow(*_TRANSFER, "C", source="peer", destination="node"),
        "refused": MessageRow(*_TRANSFER, "C", source="peer", destination="node"),
        "association-refused": MessageRow(*_ALERT, "E", "110126", "Node Authentication"),
        "stored": MessageRow(*_TRANSFER, "C", source="node", destination="peer"),
        "not-stored": MessageRow(*_TRANSFER, "C", source="node", destination="peer"),
        "committed": MessageRow("commitment", "Storage Commitment", "R", source="node", destination="peer"),
        "not-committed": MessageRow("commitment", "Storage Commitment", "R", source="node", destination="peer"),
        "queue-retry": MessageRow("queue", "Queue Changed", "U", "queue-retry", "Sent Again"),
        "queue-drop": MessageRow("queue", "Queue Changed", "D", "queue-drop", "Dropped"),
        "audit-repaired": MessageRow(*_ALERT, "E", "audit-repaired", "Unfinished Audit Record Removed"),
        "audit-damaged": MessageRow(*_ALERT, "E", "audit-damaged", "Audit Trail Damaged"),
    }
)


def audit_message(record: Mapping[str, Any], source: AuditSource) -> bytes:
    """Make the XML of one record (PS3.15 A.5.1); of patients it has nothing, which the trail does not know.

    Parameters
    ----------
    record : mapping
        As `unetx_opt.node.audit.unseal` gives it.
    source : AuditSource
        Who reports.
    """
    row = MESSAGES[record["kind"]]
    message = ET.Element("AuditMessage")
    event = ET.SubElement(
        message,
        "EventIdentification",
        EventActionCode=row.action,
        EventDateTime=record["time"],
        EventOutcomeIndicator=str(record["outcome"]),
    )
    _code(event, "EventID", row.code, row.text)
    if row.type_code:
        _code(event, "EventTypeCode", row.type_code, row.type_text)
    if "detail" in record:
        ET.SubElement(event, "EventOutcomeDescription").text = record["detail"]
    _add_node(message, row, source)
    if "peer_ae_title" in record or "peer_address" in record:
        _add_peer(message, row, record)
    if "actor" in record:
        ET.SubElement(message, "ActiveParticipant", UserID=record["actor"], UserIsRequestor="true")
    audit_source = ET.SubElement(
        message, "AuditSourceIdentification", AuditSourceID=f"{source.ae_title}@{source.host}"
    )
    ET.SubElement(audit_source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    _add_object(message, record)
    text: bytes = ET.tostring(message, encoding="utf-8", xml_declaration=True)
    return text


def syslog_frame(message: bytes, record: Mapping[str, Any], source: AuditSource) -> bytes:
    """Wrap a message as RFC 5424 has it, behind the count of its octets (RFC 5425 4.3)."""
    host = re.sub(r"[^A-Za-z0-9.-]", "", source.host)[:255] or "-"
    head = f"<{_PRIORITY}>1 {record['time']} {host} unetx-opt {source.process_id} DICOM+RFC3881 - "
    body = head.encode("ascii") + b"\xef\xbb\xbf" + message
    return str(len(body)).encode("ascii") + b" " + body


def _code(parent: ET.Element, name: str, code: str, text: str) -> None:
    scheme = "DCM" if code.isdigit() else _OWN
    ET.SubElement(parent, name, {"csd-code": code, "codeSystemName": scheme, "originalText": text})


def _add_node(message: ET.Element, row: MessageRow, source: AuditSource) -> None:
    node = ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=source.ae_title,
        AlternativeUserID=str(source.process_id),
        UserIsRequestor=str(row.source == "node").lower(),
        NetworkAccessPointID=source.host,
        NetworkAccessPointTypeCode="1",  # a machine's name
    )
    _add_role(node, row, "node")


def _add_peer(message: ET.Element, row: MessageRow, record: Mapping[str, Any]) -> None:
    address = record.get("peer_address", "")
    point = {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"} if address else {}
    peer = ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=record.get("peer_ae_title", address),
        UserIsRequestor=str(row.source != "node").lower(),
        **point,
    )
    _add_role(peer, row, "peer")


def _add_role(participant: ET.Element, row: MessageRow, side: str) -> None:
    if row.source == side:
        _code(participant, "RoleIDCode", "110153", "Source Role ID")
    elif row.destination == side:
        _code(participant, "RoleIDCode", "110152", "Destination Role ID")
    elif side == "node":
        _code(participant, "RoleIDCode", "110150", "Application")


def _add_object(message: ET.Element, record: Mapping[str, Any]) -> None:
    """The object as part of its study (PS3.15 A.5.3.7), or by its SOP class where the study is not known."""
    sop_class = record.get("sop_class_uid", "")
    study = record.get("study_instance_uid", "")
    if not (study or sop_class):
        return
    item = ET.SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=study or sop_class,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="3",
    )
    kind = ("110180", "Study Instance UID") if study else ("110181", "SOP Class UID")
    _code(item, "ParticipantObjectIDTypeCode", *kind)
    if sop_class:
        objects = ET.SubElement(item, "SOPClass", UID=sop_class, NumberOfInstances="1")
        if "sop_instance_uid" in record:
            ET.SubElement(objects, "Instance", UID=record["sop_instance_uid"])
