"""Audit messages: their XML, their frames, and their way to a collector over TLS that is away now and then."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import xml.etree.ElementTree as ET

import pytest

from unetx_opt.node.audit import EVENT_KINDS, AuditEvent, AuditTrail
from unetx_opt.node.audit_check import read_records
from unetx_opt.node.audit_message import MESSAGES, AuditSource, audit_message
from unetx_opt.node.audit_syslog import SyslogCollector, forward_audit, forward_once
from unetx_opt.node.destinations import TlsFiles

SOURCE = AuditSource("UNETX", "workstation-7", 4711)
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def test_every_kind_of_event_has_a_message():
    assert set(MESSAGES) == set(EVENT_KINDS)


def tell(tmp_path, **event):
    AuditTrail(tmp_path).append(AuditEvent(**event))
    record, _ = list(read_records(tmp_path))[-1]
    return ET.fromstring(audit_message(record, SOURCE)), record


def test_a_transfer_is_told_as_dicom_asks_for(tmp_path):
    message, record = tell(
        tmp_path,
        kind="stored",
        peer_ae_title="PACS",
        peer_address="10.0.0.7",
        study_instance_uid="1.2.3.1",
        sop_class_uid=SEG,
        sop_instance_uid="2.25.9",
    )
    assert [child.tag for child in message] == [
        "EventIdentification",
        *["ActiveParticipant"] * 2,
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
    ], "the order of the schema"
    event = message.find("EventIdentification")
    assert event.attrib == {
        "EventActionCode": "C",
        "EventDateTime": record["time"],
        "EventOutcomeIndicator": "0",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"])
    assert event.find("EventID").attrib == {
        "csd-code": "110104",
        "codeSystemName": "DCM",
        "originalText": "DICOM Instances Transferred",
    }
    node, peer = message.findall("ActiveParticipant")
    assert (node.get("UserID"), node.get("UserIsRequestor"), node.find("RoleIDCode").get("csd-code")) == (
        "UNETX",
        "true",
        "110153",
    )
    assert (peer.get("UserID"), peer.get("NetworkAccessPointID"), peer.find("RoleIDCode").get("csd-code")) == (
        "PACS",
        "10.0.0.7",
        "110152",
    )
    item = message.find("ParticipantObjectIdentification")
    assert item.get("ParticipantObjectID") == "1.2.3.1"
    assert item.find("ParticipantObjectIDTypeCode").get("csd-code") == "110180"
    assert item.find("SOPClass").attrib == {"UID": SEG, "NumberOfInstances": "1"}
    assert item.find("SOPClass/Instance").get("UID") == "2.25.9"


def test_what_a_peer_calls_itself_stays_text(tmp_path):
    message, _ = tell(tmp_path, kind="association-refused", peer_ae_title='"><x/>&amp;', outcome=8)
    assert message.findall("ActiveParticipant")[1].get("UserID") == '"><x/>&amp;'
    assert message.find(".//x") is None
    assert message.find("EventIdentification").get("EventOutcomeIndicator") == "8"


class Collector:
    """A collector of syslog over TLS that counts octets."""

    def __init__(self, authority, certificate_files, *, polite):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate_files)
        context.load_verify_locations(authority.certificate_file)
        context.verify_mode = ssl.CERT_REQUIRED
        self._context, self._polite = context, polite
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.data = b""
        self.break_off = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                self._read(plain)
            except OSError:
                plain.close()

    def _read(self, plain):
        with self._context.wrap_socket(plain, server_side=True) as connection:
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
                if self.break_off:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return
            self.data += received
            if self._polite:
                connection.unwrap()

    def messages(self):
        found, rest = [], self.data
        while rest:
            length, _, rest = rest.partition(b" ")
            found.append(rest[: int(length)])
            rest = rest[int(length) :]
        return found

    def close(self):
        self._socket.close()


@pytest.fixture
def authority(peers, tmp_path):
    return peers.Authority(tmp_path / "ca")


@pytest.fixture(params=[True, False], ids=["closes as TLS asks", "just closes"])
def collector(request, authority):
    running = Collector(authority, authority.issue("collector"), polite=request.param)
    yield running
    running.close()


def settings(authority, port):
    return SyslogCollector("127.0.0.1", TlsFiles(authority.certificate_file, *authority.issue("node")), port)


def test_records_reach_the_collector_once_and_in_order(tmp_path, collector, authority):
    there = settings(authority, collector.port)
    trail = AuditTrail(tmp_path / "trail")
    for index in range(3):
        trail.append(AuditEvent("received", sop_instance_uid=f"1.{index}", sop_class_uid="1.2"))
    assert forward_once(trail.folder, there, SOURCE) == 3
    assert forward_once(trail.folder, there, SOURCE) == 0
    trail.append(AuditEvent("node-stop"))
    assert forward_once(trail.folder, there, SOURCE) == 1
    messages = collector.messages()
    assert len(messages) == 4
    header = messages[0].partition(b"\xef\xbb\xbf")[0]
    assert re.fullmatch(rb"<85>1 \S+ workstation-7 unetx-opt 4711 DICOM\+RFC3881 - ", header)
    ids = [ET.fromstring(text.partition(b"\xef\xbb\xbf")[2]).find(".//Instance") for text in messages[:3]]
    assert [instance.get("UID") for instance in ids] == ["1.0", "1.1", "1.2"]


def test_what_a_connection_broke_off_with_is_sent_again(tmp_path, collector, authority):
    there = settings(authority, collector.port)
    trail = AuditTrail(tmp_path / "trail")
    trail.append(AuditEvent("node-start"))
    collector.break_off = True
    with pytest.raises(OSError, match=r"reset|EOF|closed"):
        forward_once(trail.folder, there, SOURCE)
    collector.break_off = False
    assert forward_once(trail.folder, there, SOURCE) == 1
    assert len(collector.messages()) == 1


def test_a_collector_that_another_authority_vouches_for_gets_nothing(tmp_path, collector, peers, authority):
    stranger = peers.Authority(tmp_path / "other", "stranger")
    trail = AuditTrail(tmp_path / "trail")
    trail.append(AuditEvent("node-start"))
    trusting_others = SyslogCollector("127.0.0.1", TlsFiles(stranger.certificate_file), collector.port)
    with pytest.raises(ssl.SSLError):
        forward_once(trail.folder, trusting_others, SOURCE)
    assert collector.data == b""


def test_a_trail_that_began_anew_is_sent_from_its_start(tmp_path, collector, authority):
    there = settings(authority, collector.port)
    trail = AuditTrail(tmp_path / "trail")
    for _ in range(3):
        trail.append(AuditEvent("received"))
    forward_once(trail.folder, there, SOURCE)
    trail.path.write_bytes(b"")
    for _ in range(9):
        trail.append(AuditEvent("received"))
    assert forward_once(trail.folder, there, SOURCE) == 10, "nine and the one that tells of the damage"


def test_the_forwarder_goes_on_by_itself_and_ends_when_told(tmp_path, collector, authority, peers):
    trail = AuditTrail(tmp_path / "trail")
    trail.append(AuditEvent("node-start"))
    stop = threading.Event()
    thread = threading.Thread(
        target=forward_audit, args=(trail.folder, settings(authority, collector.port), SOURCE, stop)
    )
    thread.start()
    peers.wait_until(lambda: len(collector.messages()) == 1, "the record arrives")
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
