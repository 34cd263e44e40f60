"""`unetx-opt queue` and the journal that it reads: what a person sees and may change, while an outbox runs or not."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time

import pytest

from unetx_opt.cli.main import main
from unetx_opt.errors import UnetxError
from unetx_opt.node.audit_check import read_records
from unetx_opt.node.destinations import Destination, DicomPeer, RetryPolicy
from unetx_opt.node.journal import JOURNAL_NAME, connect_journal, create_journal

# pynetdicom drops the socket of a connection that was refused without closing it; the collector does.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def queue(node, capsys):
    """Run ``unetx-opt queue COMMAND NODE ... --json`` and give its exit code and document."""

    def run(command, *arguments, where=None):
        code = main(["queue", command, str(where or node.folder), *arguments, "--json"])
        output = capsys.readouterr()
        return code, json.loads(output.out) if output.out else output.err

    return run


@pytest.fixture
def mixed(node):
    """Two results for two destinations in several states, a refused and a dead image."""
    node.queue(2, ("pacs", "archive"))
    (node.folder / "spool").mkdir()
    (node.folder / "spool" / "x2.dcm").write_bytes(b"image")
    with contextlib.closing(node.connect()) as journal:
        journal.execute("UPDATE deliveries SET state = 'stored' WHERE delivery_id = 1")
        journal.execute("UPDATE deliveries SET state = 'dead', attempts = 9, error = 'no' WHERE delivery_id = 2")
        journal.execute("UPDATE deliveries SET state = 'sending' WHERE delivery_id = 3")
        node.receive(journal, "x1", "refused", reason="several frames")
        node.receive(journal, "x2", "dead", reason="no worker")
    return node


def names(found):
    return [row["receipt_id"] for row in found["receipts"]], [row["entry"] for row in found["deliveries"]]


def test_it_lists_what_is_not_finished_or_what_is_asked_for(mixed, queue):
    code, found = queue("list")
    assert code == 0
    assert names(found) == (["x2", "x1"], ["d4", "d3", "d2"])
    assert found["counts"] == {
        "receipts": {"done": 2, "refused": 1, "dead": 1},
        "deliveries": {"pacs": {"stored": 1, "sending": 1}, "archive": {"dead": 1, "waiting": 1}},
    }
    assert names(queue("list", "--state", "dead")[1]) == (["x2"], ["d2"])
    assert names(queue("list", "--destination", "pacs", "--state", "stored")[1]) == ([], ["d1"])
    assert names(queue("list", "--limit", "1")[1]) == (["x2"], ["d4"])
    code, text = queue("list", "--state", "lost")
    assert code == 1
    assert "expected one of received" in text


def test_it_shows_a_receipt_with_its_deliveries(mixed, queue):
    _, found = queue("show", "d2")
    assert found["receipt"]["receipt_id"] == "r0"
    assert [row["entry"] for row in found["deliveries"]] == ["d1", "d2"]
    assert found["deliveries"][1]["error"] == "no"
    assert queue("show", "x1")[1]["receipt"]["reason"] == "several frames"
    for unknown in ("d99", "nothing", "' OR 1=1 --"):
        assert queue("show", unknown)[0] == 1


def test_lines_for_people_name_every_entry(mixed, capsys):
    assert main(["queue", "list", str(mixed.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["x2", "x1", "d4", "d3", "d2"]
    assert "several frames" in lines[1]
    assert main(["queue", "show", str(mixed.folder), "d2"]) == 0
    assert time.strftime("%Y-") in capsys.readouterr().out


def test_what_is_dead_or_waits_is_tried_again_and_nothing_else(mixed, queue):
    code, found = queue("retry", "d1", "d2", "d3", "d4", "x1", "x2", "d2")
    assert code == 1
    assert {row["entry"]: (row["changed"], row["why"]) for row in found["entries"]} == {
        "d1": (False, "it is stored"),
        "d2": (True, ""),
        "d3": (False, "it is sending"),
        "d4": (True, ""),
        "x1": (False, "it is refused"),
        "x2": (True, ""),
    }
    rows = {row["entry"]: row for row in queue("show", "d2")[1]["deliveries"]}
    assert (rows["d2"]["state"], rows["d2"]["attempts"], rows["d2"]["error"]) == ("waiting", 0, None)
    assert queue("show", "x2")[1]["receipt"]["state"] == "received"


def test_everything_that_is_dead_can_be_named_at_once(mixed, queue):
    code, found = queue("retry", "--dead", "--destination", "archive")
    assert (code, [row["entry"] for row in found["entries"]]) == (0, ["d2"])
    code, found = queue("retry", "--dead")
    assert (code, [row["entry"] for row in found["entries"]]) == (0, ["x2"])
    assert queue("retry", "--dead") == (0, {"entries": []})


def test_what_is_dropped_is_gone_with_its_image_and_recorded(mixed, queue):
    assert queue("drop", "--dead")[0] == 2, "it needs --yes"
    code, found = queue("drop", "d1", "d2", "x2")
    assert code == 1
    assert [row["changed"] for row in found["entries"]] == [False, True, True]
    assert names(queue("list")[1]) == (["x1"], ["d4", "d3"])
    assert not (mixed.folder / "spool" / "x2.dcm").exists()
    records = [(record["kind"], record["subject"]) for record, _ in read_records(mixed.folder)]
    assert records == [("queue-drop", "d2"), ("queue-drop", "x2")]
    assert all(record["actor"] for record, _ in read_records(mixed.folder))


def test_a_name_in_the_journal_that_leaves_the_spool_removes_nothing(mixed, queue):
    (mixed.folder / "precious").write_text("kept")
    with contextlib.closing(mixed.connect()) as journal:
        journal.execute("UPDATE receipts SET spool_name = '../precious' WHERE receipt_id = 'x2'")
    assert queue("drop", "x2")[0] == 0
    assert (mixed.folder / "precious").exists()


def test_a_dead_result_is_sent_by_a_running_outbox_once_a_person_asks(node, queue, make_storescp, peers):
    peer = make_storescp()
    peer.stop()
    node.queue(1)
    there = Destination(
        "pacs", dicom=DicomPeer("127.0.0.1", peer.port, "ANY"), timeout_s=5.0, retry=RetryPolicy(1, 300.0, 300.0)
    )
    with node.outbox(there):
        peers.wait_until(lambda: node.states() == {("pacs", "dead"): 1}, "it is dead")
        peer.start()
        assert queue("retry", "--dead")[0] == 0
        peers.wait_until(lambda: node.states() == {("pacs", "stored"): 1}, "it is stored, whatever the pause")
    assert len(peer.files()) == 1


def test_a_configuration_file_names_the_folder(mixed, queue, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(f'state = "{mixed.folder}"\n')
    assert queue("list", where=config)[0] == 0
    config.write_text("state = 7\n")
    assert "expected state" in queue("list", where=config)[1]
    config.write_text("[[[\n")
    assert queue("list", where=config)[0] == 1
    assert queue("list", where=tmp_path / "none")[0] == 1


def test_usage_that_cannot_be_meant_is_2(node, queue):
    assert queue("retry")[0] == 2
    assert queue("retry", "d1", "--dead")[0] == 2
    assert queue("retry", "d1", "--destination", "pacs")[0] == 2
    assert queue("audit", "--expect", "abc")[0] == 2


def test_the_audit_trail_is_checked(mixed, queue):
    queue("retry", "d2")
    code, found = queue("audit")
    assert (code, found["ok"], found["records"]) == (0, True, 1)
    assert queue("audit", "--expect", found["head"])[0] == 0
    assert queue("audit", "--expect", f"1:{'0' * 64}")[0] == 1
    path = mixed.folder / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"d2", b"d3"))
    code, found = queue("audit")
    assert code == 1
    assert not found["ok"]


def test_a_file_that_is_no_journal_or_of_another_version_is_refused(tmp_path):
    with pytest.raises(UnetxError, match="start the node once"):
        connect_journal(tmp_path / JOURNAL_NAME)
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(b"no database at all" * 100)
    for opening in (lambda: connect_journal(path), lambda: create_journal(tmp_path)):
        with pytest.raises(UnetxError, match="no journal"):
            opening()
    path.unlink()
    create_journal(tmp_path)
    create_journal(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 7")
    for opening in (lambda: connect_journal(path), lambda: create_journal(tmp_path)):
        with pytest.raises(UnetxError, match="version 7"):
            opening()


def test_a_foreign_database_is_not_written_to(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_NAME)) as other:
        other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(UnetxError, match="version 0"):
        create_journal(tmp_path)
