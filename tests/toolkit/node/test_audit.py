"""The audit trail: no alteration is missed, no crash breaks it, and nothing of a patient is in it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.errors import UnetxError
from unetx_opt.node.audit import EVENT_KINDS, AuditEvent, AuditHead, AuditTrail, unseal
from unetx_opt.node.audit_check import check_trail, read_records


def fill(folder, count=5):
    trail = AuditTrail(folder)
    for index in range(count):
        trail.append(
            AuditEvent("received", peer_ae_title="CR1", sop_instance_uid=f"1.2.{index}", subject=f"r{index}")
        )
    return trail


def test_records_come_back_as_they_were_written(tmp_path):
    fill(tmp_path)
    check = check_trail(tmp_path)
    assert check.problems == ()
    assert check.head.count == 5
    assert [record["sop_instance_uid"] for record, _ in read_records(tmp_path)] == [f"1.2.{i}" for i in range(5)]


def test_no_trail_is_an_empty_trail(tmp_path):
    assert check_trail(tmp_path) == check_trail(tmp_path / "none")
    assert check_trail(tmp_path).head == AuditHead()
    assert check_trail(tmp_path).problems == ()


@given(st.data())
def test_every_changed_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("trail")
    path = fill(folder, 3).path
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert check_trail(folder).problems


@pytest.mark.parametrize("last", range(5))
def test_a_trail_that_was_cut_short_is_found(tmp_path, last):
    path = fill(tmp_path).path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:last]))
    assert "cut short" in check_trail(tmp_path).problems[0]


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2], [0, 0, 1, 2], [0, 1, 1, 2]], ids=str)
def test_records_that_moved_vanished_or_came_twice_are_found(tmp_path, order):
    path = fill(tmp_path, 3).path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[index] for index in order))
    assert check_trail(tmp_path).problems


def test_a_trail_made_anew_with_its_head_is_found_by_a_head_that_was_kept(tmp_path):
    kept = fill(tmp_path / "a").append(AuditEvent("node-stop"))
    fill(tmp_path / "b", 9)
    assert check_trail(tmp_path / "b").problems == ()
    assert "made anew" in check_trail(tmp_path / "b", kept).problems[0]
    assert check_trail(tmp_path / "a", kept).problems == ()


def test_an_unfinished_record_of_any_length_is_taken_off_and_the_chain_goes_on(tmp_path):
    for length in (1, 20, 150, -1):
        folder = tmp_path / str(length)
        trail = fill(folder, 2)
        line = trail.path.read_bytes().splitlines(keepends=True)[-1]
        with trail.path.open("ab") as file:
            file.write(line[:length])
        assert "unfinished" in check_trail(folder).problems[0]
        trail.append(AuditEvent("node-start"))
        assert check_trail(folder).problems == ()
        assert [record["kind"] for record, _ in read_records(folder)][2:] == ["audit-repaired", "node-start"]


def test_a_crash_between_record_and_head_is_no_damage(tmp_path):
    trail = fill(tmp_path, 2)
    head = (tmp_path / "audit.head").read_bytes()
    trail.append(AuditEvent("received"))
    (tmp_path / "audit.head").write_bytes(head)
    assert check_trail(tmp_path).problems == ()
    assert trail.append(AuditEvent("received")).count == 4
    assert check_trail(tmp_path).problems == ()


@pytest.mark.parametrize("harm", ["cut", "altered", "head lost"])
def test_a_trail_that_was_harmed_at_its_end_is_kept_aside_and_stays_a_problem(tmp_path, harm):
    trail = fill(tmp_path, 3)
    content = trail.path.read_bytes()
    if harm == "cut":
        trail.path.write_bytes(content[: content.index(b"\n") + 1])
    elif harm == "altered":
        trail.path.write_bytes(content.replace(b"1.2.2", b"1.2.3"))
    else:
        (tmp_path / "audit.head").write_bytes(b"")
    harmed = trail.path.read_bytes()
    assert trail.append(AuditEvent("node-start")).count == 2
    aside = list(tmp_path.glob("audit.damaged-*.jsonl"))
    assert [path.read_bytes() for path in aside] == [harmed]
    assert [record["kind"] for record, _ in read_records(tmp_path)] == ["audit-damaged", "node-start"]
    assert "set aside" in check_trail(tmp_path).problems[0]


APPENDER = """
import sys
from pathlib import Path
from unetx_opt.node.audit import AuditEvent, AuditTrail
trail, count = AuditTrail(Path(sys.argv[1])), int(sys.argv[2])
for index in range(count):
    trail.append(AuditEvent("received", subject=str(index)))
    print(index, flush=True)
"""


def test_processes_append_at_the_same_time_to_one_chain(tmp_path):
    command = [sys.executable, "-c", APPENDER, str(tmp_path), "40"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    check = check_trail(tmp_path)
    assert (check.problems, check.head.count) == ((), 120)


def test_sigkill_at_random_times_loses_no_record_that_was_reported(tmp_path):
    rng = random.Random(5)
    reported = 0
    for _ in range(4):
        command = [sys.executable, "-c", APPENDER, str(tmp_path), "100000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.15)
        os.kill(process.pid, signal.SIGKILL)
        reported += 1 + len(process.stdout.read().splitlines())
        process.wait()
        process.stdout.close()
        AuditTrail(tmp_path).repair()
    check = check_trail(tmp_path)
    assert check.problems == ()
    assert check.head.count >= reported


def test_a_full_disk_is_an_error_and_leaves_a_whole_trail(tmp_path):
    script = APPENDER.replace("trail, count", "import resource, signal\ntrail, count").replace(
        "for index",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nfor index",
    )
    command = [sys.executable, "-c", script, str(tmp_path), "100"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "free some space" in result.stderr
    check = check_trail(tmp_path)
    assert check.problems == ()
    assert check.head.count == len(result.stdout.splitlines()) > 0


@given(st.sampled_from(EVENT_KINDS), st.text(max_size=400), st.text(max_size=400))
def test_whatever_a_peer_calls_itself_makes_one_whole_line(tmp_path_factory, kind, title, detail):
    folder = tmp_path_factory.mktemp("trail")
    AuditTrail(folder).append(AuditEvent(kind, peer_ae_title=title, subject='"}\n' * 50, detail=detail))
    line = (folder / "audit.jsonl").read_bytes()
    assert line.count(b"\n") == 1
    assert unseal(line) is not None
    assert check_trail(folder).problems == ()


def test_an_event_of_no_known_kind_is_refused():
    with pytest.raises(UnetxError, match="expected one of"):
        AuditEvent("something")
    with pytest.raises(UnetxError, match="0, 4, 8 or 12"):
        AuditEvent("received", outcome=1)


def test_only_the_owner_can_read_the_trail(tmp_path):
    assert fill(tmp_path, 1).path.stat().st_mode & 0o077 == 0
