"""The whole node between real peers: storescu of dcmtk before it, Orthanc behind it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unetx_opt.node.audit_check import check_trail

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")


#: 2,000 where it is asked for: UNETX_NODE_SENDS=2000.
_SENDS = int(os.environ.get("UNETX_NODE_SENDS", "200"))


def to_orthanc(pacs, **more):
    settings = "".join(f"{name} = {value}\n" for name, value in more.items())
    return (
        f'[[destination]]\nname = "pacs"\n{settings}timeout_s = 5.0\n'
        "retry = { max_attempts = 1000, first_delay_s = 0.05, max_delay_s = 0.2 }\n"
        f'dicom = {{ host = "127.0.0.1", port = {pacs.dicom_port}, ae_title = "PACS", calling_ae_title = "NODE" }}\n'
    )


def store(peers, port, *paths, calling="CR1", called="NODE", arguments=()):
    """Send with dcmtk's storescu; its exit code."""
    command = [peers.dcmtk("storescu"), "-aet", calling, "-aec", called, *arguments, "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, check=False, timeout=60).returncode


def write_images(folder, peers, count, start=0):
    paths = {}
    for index in range(start, start + count):
        uid = f"1.2.3.{1000 + index}"
        paths[uid] = folder / f"{index}.dcm"
        paths[uid].write_bytes(peers.radiograph(uid, shape=(97, 83)))
    return paths


def test_a_sent_image_appears_as_a_segmentation_with_the_right_references(make_served, make_orthanc, peers, tmp_path):
    port = peers.free_port()
    pacs = make_orthanc({"NODE": ("127.0.0.1", port)})
    node = make_served(to_orthanc(pacs, commitment="true", results='["seg", "sr"]'), port=port)
    (uid, path), *_ = write_images(tmp_path, peers, 1).items()
    assert store(peers, node.port, path) == 0
    peers.wait_until(lambda: node.states() == {("pacs", "committed"): 2}, f"both are committed: {node.log}")
    stored = [pydicom.dcmread(io.BytesIO(pacs.file_of(name))) for name in pacs.instances()]
    (seg,) = [dataset for dataset in stored if dataset.Modality == "SEG"]
    assert {str(e.value) for e in seg.iterall() if e.keyword == "ReferencedSOPInstanceUID"} == {uid}
    assert (seg.Rows, seg.Columns, seg.StudyInstanceUID) == (97, 83, "1.2.3.1")
    assert node.get("/healthz") == {"healthy": True, "problems": []}
    status = node.get("/status.json")
    assert status["results"][0]["thumbnail"]
    assert node.stop() == 0
    assert "Fatal" not in node.log
    assert check_trail(node.state).problems == ()
    assert peers.PATIENT_ID not in node.log
    assert "Lovelace" not in node.log


@pytest.mark.timeout(max(300, 2 * _SENDS))
def test_nothing_that_was_acknowledged_is_lost_while_node_and_pacs_are_killed(
    make_served, make_orthanc, peers, tmp_path
):
    port = peers.free_port()
    pacs = make_orthanc({"NODE": ("127.0.0.1", port)})
    node = make_served(to_orthanc(pacs), port=port)
    images = write_images(tmp_path, peers, _SENDS)
    acknowledged: list[str] = []
    ended = threading.Event()

    def send():
        for uid, path in images.items():
            while store(peers, node.port, path) != 0:
                time.sleep(0.05)
            acknowledged.append(uid)
        ended.set()

    sender = threading.Thread(target=send)
    sender.start()
    rng = random.Random(3)
    kills = 0
    while not ended.wait(0.5 + rng.random() * _SENDS / 30) and kills < 1000:
        node.kill()
        node.start(peers=peers)
        kills += 1
        if kills % 2:
            pacs.kill()
            time.sleep(0.3)
            pacs.start()
    assert kills >= 3
    sender.join(120)
    assert len(acknowledged) == _SENDS

    def finished():
        return set(node.states()) == {("pacs", "stored")} and {state for _, state, _ in node.receipts()} == {"done"}

    peers.wait_until(finished, "everything is stored", 120.0)
    assert node.stop() == 0
    sources = []
    for orthanc_id in pacs.instances().values():
        dataset = pydicom.dcmread(io.BytesIO(pacs.download(f"/instances/{orthanc_id}/file")))
        sources += {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert sorted(sources) == sorted(images), "one result for each image"
    assert check_trail(node.state).problems == ()
    assert_no_patient(node, peers)


def assert_no_patient(node, peers):
    """Search every file that the node wrote for its operators: the log and the audit trail."""
    for path in (node.folder / "log", node.state / "audit.jsonl"):
        text = path.read_text(errors="replace")
        assert peers.PATIENT_ID not in text
        assert "Lovelace" not in text


@pytest.fixture(scope="module")
def quiet_node(make_shared, peers):
    """A node with small limits whose destination is never there; the tests of it use images of their own."""
    limits = "[limits]\nhandshake_s = 1.0\nmessage_s = 2.0\nidle_s = 2.0\npdu_bytes = 20000\nmessage_bytes = 100000\n"
    nobody = f'dicom = {{ host = "127.0.0.1", port = {peers.free_port()}, ae_title = "NOBODY" }}\n'
    return make_shared(f'[[destination]]\nname = "pacs"\n{nobody}', limits)


def test_wrong_titles_are_refused_and_logged(quiet_node, peers, tmp_path):
    (path,) = write_images(tmp_path, peers, 1).values()
    assert store(peers, quiet_node.port, path, calling="STRANGER") != 0
    assert store(peers, quiet_node.port, path, called="ELSEWHERE") != 0
    assert "'STRANGER'" in quiet_node.log
    assert "'ELSEWHERE'" in quiet_node.log
    assert quiet_node.state_of("1.2.3.1000") is None
    echo = [peers.dcmtk("echoscu"), "-aet", "CR1", "-aec", "NODE", "127.0.0.1", str(quiet_node.port)]
    assert subprocess.run(echo, capture_output=True, check=False).returncode == 0


def test_hostile_connections_end_and_the_node_goes_on(quiet_node, peers, tmp_path):
    (path,) = write_images(tmp_path, peers, 1).values()
    address = ("127.0.0.1", quiet_node.port)
    associate = struct.pack(">BBL", 1, 0, 0xFFFFFFFF)
    memory = Path(f"/proc/{quiet_node.process.pid}/status")
    with contextlib.ExitStack() as held:
        for first in (b"", associate, b"\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\x02\x00\x01"):
            connection = held.enter_context(socket.create_connection(address, 5))
            connection.sendall(first)
            if first is associate:
                with contextlib.suppress(OSError):
                    for _ in range(200):
                        connection.sendall(bytes(1 << 16))
        slow = held.enter_context(socket.create_connection(address, 5))
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 8:
                slow.sendall(b"\x01")  # a byte now and then, so that no single wait is long
                time.sleep(0.2)
        assert time.monotonic() - started < 6, "a connection that drips was not ended"
        assert store(peers, quiet_node.port, path) == 0
    peak = next(line for line in memory.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 400_000
    assert quiet_node.process.poll() is None


def test_an_image_over_the_limit_is_not_taken_and_the_next_one_is(quiet_node, peers, tmp_path):
    big = tmp_path / "big.dcm"
    big.write_bytes(peers.radiograph("1.2.3.9", shape=(600, 500)))
    assert store(peers, quiet_node.port, big) != 0
    (path,) = write_images(tmp_path, peers, 1, start=100).values()
    assert store(peers, quiet_node.port, path) == 0
    peers.wait_until(lambda: quiet_node.state_of("1.2.3.1100") == "done", "it is segmented")
    assert quiet_node.state_of("1.2.3.9") is None


def test_what_is_no_chest_or_no_image_is_refused_with_the_reason(quiet_node, peers, tmp_path):
    files = {"1.2.1": {"BodyPartExamined": "HAND"}, "1.2.2": {"Rows": 65535, "Columns": 65535}}
    for uid, attributes in files.items():
        path = tmp_path / f"{uid}.dcm"
        path.write_bytes(peers.radiograph(uid))
        dataset = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
        assert store(peers, quiet_node.port, path) == 0
    peers.wait_until(lambda: {quiet_node.state_of(uid) for uid in files} == {"refused"}, "both are refused")
    reasons = {uid: reason for uid, _, reason in quiet_node.receipts()}
    assert "HAND" in reasons["1.2.1"]
    assert reasons["1.2.2"]
    assert_no_patient(quiet_node, peers)


def test_an_image_sent_twice_is_one_result(make_served, make_orthanc, peers, tmp_path):
    port = peers.free_port()
    pacs = make_orthanc({"NODE": ("127.0.0.1", port)})
    node = make_served(to_orthanc(pacs), port=port)
    (path,) = write_images(tmp_path, peers, 1).values()
    assert store(peers, node.port, path, path) == 0
    peers.wait_until(lambda: node.states() == {("pacs", "stored"): 2}, "both are stored")
    assert len(pacs.instances()) == 1


@pytest.mark.parametrize("full", ["free_bytes = 4611686018427387904", "waiting_images = 1"])
def test_without_room_images_are_answered_with_a700(full, make_served, peers, tmp_path):
    nobody = f'dicom = {{ host = "127.0.0.1", port = {peers.free_port()}, ae_title = "NOBODY" }}\n'
    node = make_served(f'[[destination]]\nname = "pacs"\n{nobody}', f"[limits]\n{full}\n")
    if "waiting" in full:
        node.stop()
        from unetx_opt.node.journal import connect_journal

        with contextlib.closing(connect_journal(node.state / "journal.sqlite")) as journal:
            journal.execute(
                "INSERT INTO receipts (receipt_id, received_at, calling_ae, peer_address, sop_class_uid, "
                "sop_instance_uid, transfer_syntax_uid, spool_name, size_bytes, sha256, not_before) "
                "VALUES ('later', 0, '', '', '', '', '', 'later.dcm', 0, '', 1e12)"
            )
        node.start(peers=peers)
    (path,) = write_images(tmp_path, peers, 1).values()
    command = [peers.dcmtk("storescu"), "-v", "-aet", "CR1", "-aec", "NODE", "127.0.0.1", str(node.port), str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "OutOfResources" in answer.stdout + answer.stderr
    assert "1.2.3.1000" not in [row[0] for row in node.receipts()]


def test_over_tls_only_known_certificates_and_no_plain_text(make_served, peers, tmp_path):
    import hashlib
    import ssl

    authority, stranger = peers.Authority(tmp_path / "a"), peers.Authority(tmp_path / "b", "stranger")
    node_files, friend, other, alien = (
        authority.issue("node"),
        authority.issue("friend"),
        authority.issue("other"),
        stranger.issue("alien"),
    )
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(friend[0].read_text())).hexdigest()
    tls = (
        f'[tls]\ncertificate_file = "{node_files[0]}"\nkey_file = "{node_files[1]}"\n'
        f'client_ca_file = "{authority.certificate_file}"\nallowed_sha256 = ["{digest}"]\n'
        "[limits]\nhandshake_s = 2.0\n"
    )
    nobody = f'dicom = {{ host = "127.0.0.1", port = {peers.free_port()}, ae_title = "NOBODY" }}\n'
    node = make_served(f'[[destination]]\nname = "pacs"\n{nobody}', tls)
    (path,) = write_images(tmp_path, peers, 1).values()

    def send(files):
        arguments = ("+tls", str(files[1]), str(files[0]), "+cf", str(authority.certificate_file))
        return store(peers, node.port, path, arguments=arguments)

    with socket.create_connection(("127.0.0.1", node.port), 5):  # says nothing: nobody waits for it
        assert send(friend) == 0
    assert send(other) != 0
    assert send(alien) != 0
    assert store(peers, node.port, path) != 0
    assert len(node.receipts()) == 1
    assert node.log.count("refused: certificate") >= 3


def test_workers_that_die_in_the_middle_are_started_again_and_no_image_is_lost(quiet_node, peers, tmp_path):
    images = write_images(tmp_path, peers, 12, start=200)
    assert store(peers, quiet_node.port, *images.values()) == 0
    for _ in range(2):
        workers = peers.wait_until(lambda: quiet_node.children("worker"), "a worker runs")
        done = sum(quiet_node.state_of(uid) == "done" for uid in images)
        peers.wait_until(
            lambda done=done: sum(quiet_node.state_of(uid) == "done" for uid in images) > done, "it works", 30.0
        )
        os.kill(workers[0], signal.SIGKILL)
        peers.wait_until(lambda gone=workers[0]: gone not in quiet_node.children("worker"), "it is gone")
    peers.wait_until(lambda: {quiet_node.state_of(uid) for uid in images} == {"done"}, "all are done", 40.0)
    assert quiet_node.log.count('"message": "the worker ended by itself') == 2


def test_a_second_node_on_the_same_state_is_refused(quiet_node):
    command = [sys.executable, "-m", "unetx_opt.cli.main", "serve", str(quiet_node.bundle), "--config"]
    again = subprocess.run(
        [*command, str(quiet_node.folder / "node.toml")], capture_output=True, text=True, check=False, timeout=60
    )
    assert again.returncode == 1
    assert "another node runs" in again.stderr
