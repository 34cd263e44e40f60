"""Receipts: one worker each, taken up again after a death, counted attempts, and files that go when they may."""

from __future__ import annotations

import contextlib
import time

import pytest

from unetx_opt.node.deliveries import QueuedResult, claim_delivery, mark_stored
from unetx_opt.node.journal import RESULTS_FOLDER, SPOOL_FOLDER
from unetx_opt.node.receipts import (
    ReceivedImage,
    claim_receipt,
    forget_finished,
    mark_done,
    mark_failed,
    mark_hindered,
    mark_refused,
    record_receipt,
    recover_receipts,
    remove_strays,
    spool_image,
)

IMAGE = ReceivedImage("CR1", "127.0.0.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.3", "1.2.840.10008.1.2.1")


@pytest.fixture
def journal(node):
    with contextlib.closing(node.connect()) as connection:
        yield connection


def receive(node, journal, now=None):
    receipt_id, sha256 = spool_image(node.folder, b"image")
    record_receipt(journal, receipt_id, IMAGE, (5, sha256), now or time.time())
    return receipt_id


def states(journal):
    return dict(journal.execute("SELECT receipt_id, state FROM receipts").fetchall())


def test_an_image_is_given_to_one_worker_and_the_oldest_first(node, journal):
    first, second = receive(node, journal, 100.0), receive(node, journal, 200.0)
    with contextlib.closing(node.connect()) as other:
        assert claim_receipt(journal, 0, 300.0).receipt_id == first
        assert claim_receipt(other, 1, 300.0).receipt_id == second
        assert claim_receipt(journal, 0, 300.0) is None


def test_a_worker_that_died_takes_up_its_own_image_and_no_other(node, journal):
    mine, other = receive(node, journal, 100.0), receive(node, journal, 200.0)
    claim_receipt(journal, 0, 300.0)
    claim_receipt(journal, 1, 300.0)
    recover_receipts(journal, 3, worker=0)
    assert states(journal) == {mine: "received", other: "working"}
    recover_receipts(journal, 3)
    assert states(journal) == {mine: "received", other: "received"}


def test_an_image_that_ends_every_worker_is_dead_after_its_attempts(node, journal):
    receipt_id = receive(node, journal)
    for attempt in (1, 2, 3):
        assert claim_receipt(journal, 0, time.time() + 1).attempts == attempt
        recover_receipts(journal, 3, worker=0)
    assert states(journal) == {receipt_id: "dead"}


def test_defects_count_and_hindrances_do_not(node, journal):
    receipt_id = receive(node, journal)
    for _ in range(5):
        mark_hindered(journal, claim_receipt(journal, 0, 1e11), "disk full", again_at=0.0)
    assert states(journal) == {receipt_id: "received"}
    assert mark_failed(journal, claim_receipt(journal, 0, 1e11), "a defect", attempts=2, again_at=5e9) == "received"
    assert claim_receipt(journal, 0, 4e9) is None, "not before its time"
    assert mark_failed(journal, claim_receipt(journal, 0, 1e11), "a defect", attempts=2, again_at=5e9) == "dead"


def finish(node, journal, destinations, at):
    """Work on the next image: done, with one result on the disk."""
    receipt = claim_receipt(journal, 0, 1e11)
    name = f"{receipt.receipt_id}.seg.dcm"
    (node.folder / RESULTS_FOLDER / name).write_bytes(b"result")
    mark_done(journal, receipt, [(QueuedResult(receipt.receipt_id, "seg", "1.2", "2.25.1", name), destinations)], at)
    return receipt.receipt_id


def files(node):
    return {path.name for folder in (SPOOL_FOLDER, RESULTS_FOLDER) for path in (node.folder / folder).iterdir()}


def test_images_and_results_go_once_every_destination_has_them_for_long_enough(node, journal):
    receive(node, journal)
    receipt_id = finish(node, journal, ["pacs", "archive"], 100.0)
    both = {f"{receipt_id}.dcm", f"{receipt_id}.seg.dcm"}
    mark_stored(journal, claim_delivery(journal, "pacs", 1e11), 100.0)
    assert forget_finished(journal, node.folder, 200.0) == 0, "the archive has it not"
    mark_stored(journal, claim_delivery(journal, "archive", 1e11), 100.0)
    assert forget_finished(journal, node.folder, 50.0) == 0, "it is too young"
    assert forget_finished(journal, node.folder, 200.0, ["archive"]) == 0, "the archive did not commit it"
    assert files(node) == both
    assert forget_finished(journal, node.folder, 200.0) == 1
    assert files(node) == set()
    assert forget_finished(journal, node.folder, 200.0) == 0
    assert states(journal) == {receipt_id: "done"}


def test_what_was_refused_goes_and_what_is_dead_stays(node, journal):
    refused, dead = receive(node, journal, 1.0), receive(node, journal, 2.0)
    mark_refused(journal, claim_receipt(journal, 0, 1e11), "no chest", 100.0)
    mark_failed(journal, claim_receipt(journal, 0, 1e11), "a defect", attempts=1, again_at=0.0)
    assert forget_finished(journal, node.folder, 200.0) == 1
    assert files(node) == {f"{dead}.dcm"}
    assert states(journal)[refused] == "refused"


def test_files_that_no_row_names_are_removed_at_a_start_and_nothing_of_others(node, journal):
    kept = receive(node, journal)
    stray, _ = spool_image(node.folder, b"never acknowledged")
    (node.folder / SPOOL_FOLDER / f".{stray}.dcm.partial-0123456789ab-12-deadbeef").write_bytes(b"half")
    (node.folder / SPOOL_FOLDER / "mail").write_text("somebody else's")
    (node.folder / SPOOL_FOLDER / "cups").mkdir()
    assert remove_strays(journal, node.folder) == 2
    assert files(node) == {f"{kept}.dcm", "mail", "cups"}


def test_work_done_twice_is_queued_once(node, journal):
    receive(node, journal)
    receipt = claim_receipt(journal, 0, 1e11)
    result = QueuedResult(receipt.receipt_id, "seg", "1.2", "2.25.1", "a.dcm")
    for _ in range(2):
        mark_done(journal, receipt, [(result, ["pacs"])], 100.0)
    assert node.states() == {("pacs", "waiting"): 1}
