"""What is seen of other processes, with a real one that is started in the middle, and of the machine's state."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unetx_bench.environment import capture_environment, capture_state, state_changes
from unetx_bench.load import CORES_LIMIT, LoadMonitor, LoadWindow, Reading, judge_load
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Contender, MeasureOptions


@contextmanager
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_stress_process_in_the_middle_marks_the_run_and_is_named() -> None:
    monitor = LoadMonitor()
    state: dict[str, object] = {}
    started = time.perf_counter()

    def work() -> None:
        """Measure quietly for a second, then beside the stress."""
        if "stress" not in state and time.perf_counter() - started > 1.5:
            state["stress"] = True
            process = state["context"].__enter__()  # type: ignore[attr-defined]
            state["pid"] = process.pid
        time.sleep(0.02)

    context = busy_process()
    state["context"] = context
    options = MeasureOptions(minimum_seconds=5.0, maximum_seconds=5.0, warmup_seconds=0.0, settle_s=0.0)
    try:
        found = measure_interleaved([Contender("work", work)], options, monitor)
    finally:
        if "pid" in state:
            context.__exit__(None, None, None)
    assert any("other processes used up to" in text for text in found.disturbances)
    assert state["pid"] in {process.pid for process in monitor.others}
    assert max(window.others_cores for window in monitor.windows) > CORES_LIMIT


def test_what_this_process_does_itself_is_no_disturbance() -> None:
    readings = iter(
        Reading(at_s=float(second), busy_s=10.0 + 2 * second, own_s=1.0 + 1.95 * second, stolen_s=0.0)
        for second in range(10)
    )
    monitor = LoadMonitor(lambda: next(readings), window_s=0.0)
    monitor.start()
    for _ in range(3):
        monitor.between_rounds()
    assert all(window.others_cores == pytest.approx(0.05) for window in monitor.windows)
    assert judge_load(monitor.windows) == ()


@pytest.mark.parametrize(
    ("others", "stolen", "words"),
    [(0.5, 0.0, "other processes used up to 0.50"), (0.0, 0.3, "other guests of this computer used up to 0.30")],
)
def test_the_judgement_says_who_how_much_and_when(others: float, stolen: float, words: str) -> None:
    quiet = LoadWindow(0.0, 1.0, 0.1, 1.0, 0.0)
    loud = LoadWindow(1.0, 2.0, others, 1.0, stolen)
    (text,) = judge_load([quiet, loud, replace(quiet, start_s=2.0, end_s=3.0)])
    assert words in text
    assert "in 1 of 3 windows, between 1 s and 2 s" in text


def test_a_quiet_run_has_no_judgement() -> None:
    assert judge_load([LoadWindow(0.0, 1.0, CORES_LIMIT, 1.0, 0.0)]) == ()


def test_states_that_differ_say_what_moved() -> None:
    before = replace(capture_state(), cpu_mhz=3000.0, throttle_events=2, on_battery=False, speed_us=100.0)
    after = replace(before, cpu_mhz=2000.0, throttle_events=5, on_battery=True, speed_us=150.0)
    assert state_changes(before, before) == ()
    text = "; ".join(state_changes(before, after))
    for words in ("+50%", "-33%", "throttled 3 times", "between mains and battery"):
        assert words in text


def test_the_environment_is_json_and_names_no_person_and_no_folder() -> None:
    environment = capture_environment()
    text = json.dumps(asdict(environment), allow_nan=False)
    assert environment.packages["numpy"]
    assert environment.memory_bytes > 0
    assert environment.usable_cpus or sys.platform != "linux"
    for secret in (f'"{platform.node()}"', str(Path.cwd()), f"/{getpass.getuser()}/"):
        assert secret not in text
