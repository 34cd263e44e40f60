"""The outbox: everything arrives exactly once, whoever dies in between, and nobody waits for another destination."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.node.audit_check import check_trail, read_records
from unetx_opt.node.commitment import add_commitment_context, report_handler
from unetx_opt.node.deliveries import claim_delivery, mark_stored
from unetx_opt.node.destinations import Destination, DicomPeer, RetryPolicy, StowPeer
from unetx_opt.node.outbox import OutboxPlan, delay_before_retry, take_report

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
# pynetdicom drops the socket of a connection that was refused without closing it; the collector does.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
QUICK = RetryPolicy(max_attempts=1000, first_delay_s=0.05, max_delay_s=0.2)


def to_orthanc(pacs, way="dicom", **more):
    peer = DicomPeer("127.0.0.1", pacs.dicom_port, "PACS", "NODE") if way == "dicom" else StowPeer(pacs.dicomweb_url)
    return Destination("pacs", **{way: peer}, **({"timeout_s": 5.0, "retry": QUICK} | more))


def to_port(port, name="pacs", **more):
    peer = DicomPeer("127.0.0.1", port, "ANY", "NODE")
    return Destination(name, dicom=peer, **({"timeout_s": 5.0, "retry": QUICK} | more))


@pytest.mark.parametrize("way", ["dicom", "stow"])
def test_a_pacs_that_is_killed_and_restarted_in_the_middle_has_everything_exactly_once(
    way, node, make_orthanc, peers
):
    pacs = make_orthanc({"NODE": ("127.0.0.1", 1)})
    uids = node.queue(40)
    rng = random.Random(1)
    with node.outbox(to_orthanc(pacs, way)):
        for _ in range(3):
            time.sleep(rng.random() * 0.3)
            pacs.kill()
            time.sleep(0.1)
            pacs.start()
        uids += node.queue(20, start=40)
        peers.wait_until(lambda: node.states() == {("pacs", "stored"): 60}, "everything is stored")
    assert set(pacs.instances()) == set(uids)


OUTBOX = """
import signal, sys, threading
from pathlib import Path
from unetx_opt.node.audit import AuditTrail
from unetx_opt.node.destinations import Destination, DicomPeer, RetryPolicy
from unetx_opt.node.journal import connect_journal
from unetx_opt.node.outbox import OutboxPlan, run_outbox
folder, port = Path(sys.argv[1]), int(sys.argv[2])
def connect():
    return connect_journal(folder / "journal.sqlite")
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
peer = DicomPeer("127.0.0.1", port, "PACS", "NODE")
there = Destination("pacs", dicom=peer, timeout_s=5.0, retry=RetryPolicy(1000, 0.05, 0.2))
print("ready", flush=True)
run_outbox(OutboxPlan(connect, folder / "results", (there,), AuditTrail(folder)), stop)
"""


def test_an_outbox_that_is_killed_at_random_times_has_everything_stored_exactly_once(node, make_orthanc, peers):
    pacs = make_orthanc({"NODE": ("127.0.0.1", 1)})
    uids = node.queue(60)
    command = [sys.executable, "-c", OUTBOX, str(node.folder), str(pacs.dicom_port)]
    rng = random.Random(2)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.1 + rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert node.states().get(("pacs", "stored"), 0) < 60, "all was sent before anything was killed"
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peers.wait_until(lambda: node.states() == {("pacs", "stored"): 60}, "everything is stored")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert set(pacs.instances()) == set(uids)
    assert check_trail(node.folder).problems == ()
    recorded = [record["sop_instance_uid"] for record, _ in read_records(node.folder) if record["kind"] == "stored"]
    assert set(recorded) == set(uids), "nothing is stored that is not recorded"


def test_a_destination_that_never_answers_delays_no_other(node, make_storescp, peers):
    peer = make_storescp()
    node.queue(10, ("deaf", "quick"))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        slow = to_port(deaf.getsockname()[1], "deaf", timeout_s=3.0)
        with node.outbox(slow, to_port(peer.port, "quick")):
            started = time.monotonic()
            peers.wait_until(lambda: node.states().get(("quick", "stored")) == 10, "the quick one has everything")
            assert time.monotonic() - started < slow.timeout_s
            assert ("deaf", "stored") not in node.states()
    assert len(peer.files()) == 10


def test_a_result_is_dead_after_its_attempts_and_one_that_is_never_taken_at_once(node, peers):
    node.queue(1)
    node.queue(1, start=1)
    (node.results / "1.seg.dcm").unlink()
    nobody = to_port(peers.free_port(), retry=RetryPolicy(3, 0.01, 0.02))
    with node.outbox(nobody):
        peers.wait_until(lambda: node.states() == {("pacs", "dead"): 2}, "both are dead")
    rows = {uid: (attempts, error) for uid, _, attempts, error in node.rows()}
    assert rows["2.25.1000"][0] == 3
    assert "no association" in rows["2.25.1000"][1]
    assert rows["2.25.1001"] == (1, "its file is gone")
    kinds = [(record["kind"], record["outcome"]) for record, _ in read_records(node.folder)]
    assert kinds == [("not-stored", 8)] * 2
    attempts = {labels: values[-2.0] for (name, labels), values in node.measures().items() if "attempts" in name}
    assert attempts == {("pacs", "absent"): 3, ("pacs", "refused"): 1}


def test_while_a_destination_is_away_it_is_asked_seldom_and_not_for_each_result(node, peers):
    node.queue(30)
    away = to_port(peers.free_port(), retry=RetryPolicy(1000, 0.5, 10.0))
    with node.outbox(away):
        time.sleep(1.2)
    assert 1 <= sum(attempts for _, _, attempts, _ in node.rows()) <= 4


def test_a_person_who_asks_for_it_ends_the_pause(node, make_storescp, peers):
    node.queue(1)
    peer = make_storescp()
    peer.stop()
    with node.outbox(to_port(peer.port, retry=RetryPolicy(1000, 600.0, 600.0))):
        peers.wait_until(lambda: node.rows()[0][3] is not None, "the first attempt failed")
        peer.start()
        with contextlib.closing(node.connect()) as journal:
            journal.execute("UPDATE deliveries SET not_before = -1")
        peers.wait_until(lambda: node.states() == {("pacs", "stored"): 1}, "it is sent at once")


def test_an_outbox_told_to_stop_ends_within_the_timeout_and_leaves_nothing_half_sent(node, make_storescp, peers):
    peer = make_storescp()
    node.queue(200)
    with node.outbox(to_port(peer.port)):
        peers.wait_until(lambda: node.states().get(("pacs", "stored"), 0) > 5, "some are stored")
    states = node.states()
    assert ("pacs", "sending") not in states
    assert len(peer.files()) == states["pacs", "stored"] < 200


@pytest.fixture
def receiver(node, peers):
    """An application entity of the node that takes reports of storage commitment; its port, and the plan to use."""
    plans = []
    entity = pynetdicom.AE("NODE")
    add_commitment_context(entity)
    handler = report_handler(lambda report: take_report(plans[-1], report))
    port = peers.free_port()
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(pynetdicom.evt.EVT_N_EVENT_REPORT, handler)]
    )
    yield port, plans
    server.shutdown()


def test_orthanc_commits_what_it_stored_and_gets_again_what_it_lost(node, make_orthanc, receiver, peers):
    port, plans = receiver
    pacs = make_orthanc({"NODE": ("127.0.0.1", port)})
    uids = node.queue(3) + node.queue(2, start=3, state="stored")  # the last two were stored and then lost
    with node.outbox(to_orthanc(pacs, commitment=True)) as plan:
        plans.append(plan)
        peers.wait_until(lambda: node.states() == {("pacs", "committed"): 5}, "everything is committed")
    assert set(pacs.instances()) == set(uids)
    results = {labels: values[-2.0] for (name, labels), values in node.measures().items() if "commitments" in name}
    assert results == {("pacs", "committed"): 5, ("pacs", "lost"): 2}
    kinds = [record["kind"] for record, _ in read_records(node.folder)]
    assert sorted(kinds) == ["committed"] * 5 + ["not-committed"] * 2 + ["stored"] * 5


def test_a_report_that_does_not_come_is_asked_for_again(node, make_orthanc, receiver, peers):
    port, plans = receiver
    pacs = make_orthanc({"NODE": ("127.0.0.1", peers.free_port())})  # it reports to where nobody listens
    node.queue(1)
    with node.outbox(to_orthanc(pacs, commitment=True, commitment_timeout_s=0.5)) as plan:
        plans.append(plan)
        peers.wait_until(lambda: node.states() == {("pacs", "stored"): 1}, "it is stored")
        pacs.kill()
        pacs.modalities = {"NODE": ("127.0.0.1", port)}
        pacs.start()
        peers.wait_until(lambda: node.states() == {("pacs", "committed"): 1}, "it is committed")


def test_a_report_that_nobody_asked_for_changes_nothing(node, receiver):
    port, plans = receiver
    node.queue(1, state="stored")
    plans.append(OutboxPlan(node.connect, node.results, ()))
    entity = pynetdicom.AE("LIAR")
    context = pynetdicom.build_context("1.2.840.10008.1.20.1")
    role = pynetdicom.build_role("1.2.840.10008.1.20.1", scp_role=True)
    association = entity.associate("127.0.0.1", port, contexts=[context], ext_neg=[role])
    assert association.is_established
    for transaction_uid in ("1.2.3", ""):
        information = pydicom.Dataset()
        information.TransactionUID = transaction_uid
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SEG, "2.25.1000"
        information.ReferencedSOPSequence = [item]
        status, _ = association.send_n_event_report(information, 1, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1")
        assert status.Status == 0x0115
    association.release()
    assert node.states() == {("pacs", "stored"): 1}


@pytest.mark.parametrize("name", ["../journal.sqlite", "/etc/passwd", "a/../../b", ""])
def test_a_name_that_leaves_the_results_is_not_sent(node, make_storescp, peers, name):
    node.queue(1)
    with contextlib.closing(node.connect()) as journal:
        journal.execute("UPDATE deliveries SET result_name = ?", (name,))
    with node.outbox(to_port(peers.free_port())):
        peers.wait_until(lambda: node.states() == {("pacs", "dead"): 1}, "it is dead")
    assert "unsafe" in node.rows()[0][3]


def test_a_claim_is_given_once_and_a_late_answer_overwrites_nobody(node):
    node.queue(1)
    with contextlib.closing(node.connect()) as first, contextlib.closing(node.connect()) as second:
        delivery = claim_delivery(first, "pacs", time.time())
        assert claim_delivery(second, "pacs", time.time()) is None
        second.execute("UPDATE deliveries SET state = 'waiting'")
        mark_stored(first, delivery, time.time())
    assert node.states() == {("pacs", "waiting"): 1}


@given(
    st.integers(1, 10_000),
    st.floats(0.01, 100),
    st.floats(1, 100),
    st.floats(0, 1, exclude_max=True),
)
def test_delays_rise_to_their_bound_and_never_beyond(attempts, first, factor, chance):
    policy = RetryPolicy(10, first, first * factor)
    delay = delay_before_retry(policy, attempts, chance)
    assert first / 2 <= delay <= policy.max_delay_s
    assert delay <= delay_before_retry(policy, attempts + 1, chance)
