"""Refused connections: recorded one by one while they are few, together when they are many."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.node.audit import TRAIL_NAME, AuditTrail
from unetx_opt.node.audit_check import check_trail
from unetx_opt.node.receiver import ReceiverPlan
from unetx_opt.node.refusals import MOST_RECORDED, PERIOD_S, Refusals


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(steps=st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 90.0)), max_size=120))
def test_every_refusal_is_recorded_or_told_as_left_out(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    refusals = Refusals(clock)
    recorded = told = 0
    for address, pause_s in steps:
        clock.now_s += pause_s if pause_s > 60 else pause_s / 100
        is_recorded, left_out = refusals.take(address)
        recorded, told = recorded + is_recorded, told + sum(left_out.values())
    told += sum(refusals.left_out().values())
    assert recorded + told == len(steps)


def test_an_address_is_recorded_ten_times_in_a_minute_and_anew_in_the_next() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    assert [refusals.take("a")[0] for _ in range(MOST_RECORDED + 3)] == [True] * MOST_RECORDED + [False] * 3
    assert refusals.take("b") == (True, {})
    clock.now_s += PERIOD_S
    assert refusals.take("b") == (True, {"a": 3})
    assert refusals.left_out() == {}


def test_a_flood_from_ever_new_addresses_takes_no_ever_growing_memory() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    recorded = sum(refusals.take(f"10.0.{index // 256}.{index % 256}")[0] for index in range(20_000))
    assert recorded == 1024 + MOST_RECORDED
    clock.now_s += PERIOD_S
    assert refusals.take("10.9.9.9") == (True, {"": 20_000 - recorded})
    assert all(refusals.take(f"10.9.9.{index}") == (True, {}) for index in range(10, 200))


@pytest.mark.parametrize(("address", "named"), [("10.1.2.3", "10.1.2.3"), ("", "other addresses")])
def test_whom_a_flood_came_from_is_logged_also_where_they_are_not_told_apart(
    address: str, named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing but the trail is used; the rest must not be.
    plan = ReceiverPlan(config=None, connect=None, audit=AuditTrail(tmp_path), on_report=None)
    plan.tell_left_out(address, 7)
    assert caplog.messages == [f"refused: 7 more from {named}, not recorded one by one"]


def test_a_live_node_tells_a_flood_in_one_record_and_its_trail_holds(make_served, peers) -> None:
    nobody = f'dicom = {{ host = "127.0.0.1", port = {peers.free_port()}, ae_title = "NOBODY" }}\n'
    node = make_served(f'[[destination]]\nname = "pacs"\n{nobody}')
    command = [peers.dcmtk("echoscu"), "-aet", "STRANGER", "-aec", "NODE", "127.0.0.1", str(node.port)]
    for _ in range(MOST_RECORDED + 15):
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
    assert node.stop() == 0
    trail = (node.state / TRAIL_NAME).read_text("utf-8").splitlines()
    details = [json.loads(line).get("detail", "") for line in trail if "association-refused" in line]
    assert len(details) == MOST_RECORDED + 1
    assert details[-1] == "15 more, not recorded one by one"
    assert check_trail(node.state).problems == ()
    assert node.log.count("refused: ") == MOST_RECORDED + 1
