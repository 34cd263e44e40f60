"""Senders against real peers: Orthanc over C-STORE and STOW-RS, storescp with and without TLS."""

from __future__ import annotations

import io
import logging
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from unetx_opt.errors import SpecError
from unetx_opt.node.destinations import Destination, DicomPeer, RetryPolicy, StowPeer, TlsFiles
from unetx_opt.node.outcome import Verdict, judge_status
from unetx_opt.node.sender import open_sender

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
# pynetdicom drops the socket of a connection that was refused without closing it; the collector does.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
KINDS = ("seg", "sc", "gsps", "sr")


def destination(peer, **more):
    which = "dicom" if isinstance(peer, DicomPeer) else "stow"
    return Destination("pacs", **{which: peer}, timeout_s=5.0, **more)


@pytest.fixture
def results(peers, tmp_path):
    """Every kind of result of one radiograph, as files."""
    written = {}
    for name, data in peers.segmentation(peers.radiograph(), KINDS).items():
        written[name] = tmp_path / f"{name}.dcm"
        written[name].write_bytes(data)
    return written


def references(dataset):
    """Every SOP Instance UID that a data set refers to, however deep."""
    return {str(item.value) for item in dataset.iterall() if item.keyword == "ReferencedSOPInstanceUID"}


@pytest.mark.parametrize("way", ["dicom", "stow"])
def test_every_result_arrives_in_orthanc_once_and_refers_to_its_source(way, make_orthanc, peers, results):
    pacs = make_orthanc({"NODE": ("127.0.0.1", 1)})
    peer = DicomPeer("127.0.0.1", pacs.dicom_port, "PACS", "NODE") if way == "dicom" else StowPeer(pacs.dicomweb_url)
    with open_sender(destination(peer)) as sender:
        for _ in range(2):
            outcomes = {name: sender.send(path) for name, path in results.items()}
            assert {name: outcome.verdict for name, outcome in outcomes.items()} == dict.fromkeys(
                KINDS, Verdict.STORED
            )
    sent = {name: pydicom.dcmread(path) for name, path in results.items()}
    assert set(pacs.instances()) == {str(dataset.SOPInstanceUID) for dataset in sent.values()}
    stored = pydicom.dcmread(io.BytesIO(pacs.file_of(str(sent["seg"].SOPInstanceUID))))
    assert stored.PixelData == sent["seg"].PixelData
    assert stored.StudyInstanceUID == "1.2.3.1"
    assert references(stored) == {"1.2.3.4.5"}
    assert references(pydicom.dcmread(io.BytesIO(pacs.file_of(str(sent["sr"].SOPInstanceUID))))) == {
        "1.2.3.4.5",
        str(sent["seg"].SOPInstanceUID),
    }


def test_a_peer_that_is_off_and_on_again_gets_the_next_result_over_the_same_sender(make_storescp, results):
    peer = make_storescp()
    with open_sender(destination(DicomPeer("127.0.0.1", peer.port, "ANY"))) as sender:
        assert sender.send(results["seg"]).verdict is Verdict.STORED
        peer.stop()
        assert sender.send(results["sc"]).verdict is Verdict.ABSENT
        peer.start()
        assert sender.send(results["sc"]).verdict is Verdict.STORED
    assert len(peer.files()) == 2


def test_a_peer_that_aborts_in_the_middle_is_absent_and_not_refused(make_storescp, results):
    peer = make_storescp("--abort-during")
    with open_sender(destination(DicomPeer("127.0.0.1", peer.port, "ANY"))) as sender:
        assert sender.send(results["sc"]).verdict is Verdict.ABSENT


def test_a_stranger_is_told_so_and_results_wait(make_orthanc, results):
    pacs = make_orthanc({"OTHER": ("127.0.0.1", 1)})
    with open_sender(destination(DicomPeer("127.0.0.1", pacs.dicom_port, "PACS", "NODE"))) as sender:
        outcome = sender.send(results["seg"])
    assert outcome.verdict is Verdict.ABSENT
    assert "rejected" in outcome.detail


@pytest.mark.parametrize("peer", ["dicom", "stow"])
def test_a_peer_that_accepts_and_never_answers_costs_the_timeout_and_no_more(peer, results):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        where = DicomPeer("127.0.0.1", port, "DEAF") if peer == "dicom" else StowPeer(f"http://127.0.0.1:{port}/")
        which = {"dicom": where} if peer == "dicom" else {"stow": where}
        with open_sender(Destination("deaf", **which, timeout_s=0.3)) as sender:
            assert sender.send(results["seg"]).verdict is Verdict.ABSENT


ASSOCIATE_AC = b"\x02\x00\x00\x00\x01\x00" + bytes(90)  # the first part of one that claims 256 bytes


@pytest.mark.parametrize(
    "first",
    [b"", ASSOCIATE_AC[:3], ASSOCIATE_AC, b"\x04\x00\xff\xff\xff\xff", b"HTTP/1.1 400 Bad"],
    ids=["nothing", "part of a head", "part of an acceptance", "a claim of 4 GiB", "another protocol"],
)
def test_half_an_answer_costs_the_timeout_and_no_more(first, results):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(first)
                finished.wait(20)

        finished = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        peer = DicomPeer("127.0.0.1", server.getsockname()[1], "HALF")
        started = time.monotonic()
        with open_sender(Destination("half", dicom=peer, timeout_s=0.5)) as sender:
            assert sender.send(results["seg"]).verdict is Verdict.ABSENT
        assert time.monotonic() - started < 5
        finished.set()
        thread.join()


def test_a_peer_that_stops_in_the_middle_of_its_answer_costs_the_timeout_and_no_more(make_storescp, results):
    peer = make_storescp()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        stopped = threading.Event()

        def forward():
            """Pass everything on, and of the answer to the C-STORE the first 10 bytes."""
            ours, _ = proxy.accept()
            with ours, socket.create_connection(("127.0.0.1", peer.port)) as theirs:
                while not stopped.is_set():
                    for source in select.select([ours, theirs], [], [], 0.05)[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        if source is ours:
                            theirs.sendall(data)
                        else:
                            ours.sendall(data if data[0] == 2 else data[:10])
                            if data[0] != 2:
                                stopped.wait(20)

        thread = threading.Thread(target=forward)
        thread.start()
        there = Destination("half", dicom=DicomPeer("127.0.0.1", proxy.getsockname()[1], "ANY"), timeout_s=0.5)
        started = time.monotonic()
        with open_sender(there) as sender:
            assert sender.send(results["seg"]).verdict is Verdict.ABSENT
        assert time.monotonic() - started < 5
        stopped.set()
        thread.join()


def test_a_file_that_is_gone_or_no_dicom_is_refused_without_asking_the_peer(tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    with open_sender(destination(DicomPeer("127.0.0.1", 9, "NOBODY"))) as sender:
        assert sender.send(tmp_path / "gone.dcm").verdict is Verdict.REFUSED
        assert sender.send(broken).verdict is Verdict.REFUSED
    with open_sender(destination(StowPeer("http://127.0.0.1:9/"))) as sender:
        assert sender.send(tmp_path / "gone.dcm").verdict is Verdict.REFUSED


def test_over_tls_both_sides_prove_who_they_are(make_storescp, peers, tmp_path, results):
    authority, stranger = peers.Authority(tmp_path / "a"), peers.Authority(tmp_path / "b", "stranger")
    certificate, key = authority.issue("pacs")
    peer = make_storescp("+tls", str(key), str(certificate), "+cf", str(authority.certificate_file), "-rc")

    def send(trusted, ours):
        tls = TlsFiles(trusted, *ours)
        with open_sender(destination(DicomPeer("127.0.0.1", peer.port, "ANY", tls=tls))) as sender:
            return sender.send(results["seg"]).verdict

    assert send(authority.certificate_file, authority.issue("node")) is Verdict.STORED
    assert send(stranger.certificate_file, authority.issue("node")) is Verdict.ABSENT, (
        "the peer's is not ours to trust"
    )
    assert send(authority.certificate_file, stranger.issue("node")) is Verdict.ABSENT, "the peer does not trust ours"
    with open_sender(destination(DicomPeer("127.0.0.1", peer.port, "ANY"))) as sender:
        assert sender.send(results["seg"]).verdict is Verdict.ABSENT, "plain text to a TLS port"
    assert len(peer.files()) == 1


def test_nothing_of_a_patient_is_logged_by_sending(make_storescp, peers, results, caplog):
    peer = make_storescp()
    there = destination(DicomPeer("127.0.0.1", peer.port, "ANY"))
    with caplog.at_level(logging.DEBUG), open_sender(there) as sender:
        for path in results.values():
            sender.send(path)
    assert peers.PATIENT_ID not in caplog.text
    assert "Lovelace" not in caplog.text


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, Verdict.STORED),
        (0x0111, Verdict.STORED),
        (0xB006, Verdict.STORED),
        (0xA700, Verdict.AGAIN),
        (0x0110, Verdict.AGAIN),
        (0x0124, Verdict.AGAIN),
        (0x1234, Verdict.AGAIN),
        (0xA901, Verdict.REFUSED),
        (0xC123, Verdict.REFUSED),
        (0x0122, Verdict.REFUSED),
    ],
)
def test_a_status_means_what_the_standard_says(status, verdict):
    assert judge_status(status).verdict is verdict


@pytest.fixture
def web():
    """A web server that gives a prepared answer to every request."""
    answers: list[tuple[int, dict[str, str], bytes]] = []
    seen: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, dict(self.headers), body))
            status, headers, text = answers[-1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/web", answers, seen
        server.shutdown()
        thread.join()


FAILED = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [%d]}}]}}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, {}, b""), (Verdict.STORED, 0)),
        ((200, {}, b"<NativeDicomModel/>"), (Verdict.STORED, 0)),
        ((202, {}, b"{}"), (Verdict.STORED, 0)),
        ((202, {}, b"<NativeDicomModel/>"), (Verdict.AGAIN, 0)),
        ((202, {}, FAILED % 0xA700), (Verdict.AGAIN, 0)),
        ((200, {}, b'{"00081198": {"Value": [{}]}}'), (Verdict.AGAIN, 0)),
        ((409, {}, FAILED % 0x0122), (Verdict.REFUSED, 0)),
        ((409, {}, FAILED % 0x0111), (Verdict.STORED, 0)),
        ((409, {}, b"[" * 100_000), (Verdict.AGAIN, 0)),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), (Verdict.AGAIN, 0)),
        ((401, {}, b""), (Verdict.ABSENT, 0)),
        ((503, {"Retry-After": "120"}, b""), (Verdict.ABSENT, 120)),
        ((503, {"Retry-After": "9" * 400}, b""), (Verdict.ABSENT, 0)),
        ((500, {}, b"x" * (3 << 20)), (Verdict.AGAIN, 0)),
        ((413, {}, b""), (Verdict.REFUSED, 0)),
    ],
)
def test_a_web_answer_means_what_the_standard_says(web, results, answer, expected):
    url, answers, _ = web
    answers.append(answer)
    with open_sender(destination(StowPeer(url))) as sender:
        outcome = sender.send(results["seg"])
    assert (outcome.verdict, outcome.not_before_s) == expected


def test_stow_sends_the_bytes_of_the_file_and_the_token_of_the_moment(web, results, tmp_path):
    url, answers, seen = web
    answers.append((200, {}, b"{}"))
    token = tmp_path / "token"
    token.write_text("first\n")
    with open_sender(destination(StowPeer(url, token_file=token))) as sender:
        sender.send(results["seg"])
        token.write_text("second")
        sender.send(results["seg"])
    assert [headers["Authorization"] for _, headers, _ in seen] == ["Bearer first", "Bearer second"]
    path, headers, body = seen[0]
    assert path == "/web/studies"
    boundary = headers["Content-Type"].partition("boundary=")[2].encode()
    start, end = body.index(b"\r\n\r\n") + 4, body.index(b"\r\n--" + boundary + b"--\r\n")
    assert body[start:end] == results["seg"].read_bytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Destination("pacs"),
        lambda: Destination("PACS!", dicom=DicomPeer("h", 1, "A")),
        lambda: Destination("pacs", dicom=DicomPeer("h", 1, "A"), results=("seg", "seg")),
        lambda: Destination("pacs", dicom=DicomPeer("h", 1, "A"), results=("png",)),
        lambda: Destination("pacs", stow=StowPeer("http://h"), commitment=True),
        lambda: DicomPeer("h", 0, "A"),
        lambda: DicomPeer("h", 1, "A" * 17),
        lambda: DicomPeer("h", 1, "A\\B"),
        lambda: StowPeer("ftp://h/"),
        lambda: StowPeer("https://user:secret@h/"),
        lambda: StowPeer("http://far.example/", token_file=Path("t")),
        lambda: RetryPolicy(max_attempts=0),
        lambda: RetryPolicy(first_delay_s=10, max_delay_s=1),
        lambda: TlsFiles(Path("ca"), Path("crt")),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make):
    with pytest.raises(SpecError):
        make()


def test_a_missing_certificate_is_named(tmp_path):
    peer = DicomPeer("127.0.0.1", 9, "A", tls=TlsFiles(tmp_path / "none.crt"))
    with pytest.raises(SpecError, match=r"none\.crt"):
        open_sender(destination(peer))
