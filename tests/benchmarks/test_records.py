"""The commands that leave records: the self-check, agreement with other tools, and the GPU record as far as here."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from unetx_bench import agreement, self_check
from unetx_bench.energy import COUNTERS, EnergyCounter, measure_energy
from unetx_bench.errors import MeasurementError
from unetx_bench.measure import measure_interleaved
from unetx_bench.measurement import Contender, MeasureOptions
from unetx_bench.profile import average_onnxruntime, profile_engine
from unetx_bench.tool_turns import ToolTurns
from unetx_exporters.onnxruntime.profile import read_profile
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.specs import EngineRecord


def test_a_slowed_call_takes_its_share_longer() -> None:
    start = time.perf_counter()
    self_check.slowed(lambda: time.sleep(0.02), 0.5)()
    assert time.perf_counter() - start >= 0.03


def test_the_self_check_records_every_trial_and_what_it_costs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unetx-opt[cpu]'")
    output = tmp_path / "check.json"
    arguments = ["--trials", "2", "--seconds", "1", "--simulated", "5", "--slowdown", "1.0", "-o", str(output)]
    result = CliRunner().invoke(self_check.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(output.read_text(encoding="ascii"))
    assert len(record["trials"]) == 2
    assert sum(record["counts"]["equal"].values()) == 2
    # Twice as long is found on any machine; whether two copies are equal is for the long run to say.
    assert record["counts"]["slowed"] == {"slower": 2}
    assert set(record["harness"]) == {"empty_call_us", "clock_overhead_us", "own_cost_us"}


def test_the_median_of_benchmark_app_is_read_from_what_it_prints() -> None:
    text = "[ INFO ] Latency:\n[ INFO ]    Median:        12.34 ms\n[ INFO ]    Average:       13.00 ms\n"
    assert agreement.read_median_ms(text) == 12.34
    with pytest.raises(MeasurementError, match="no such model"):
        agreement.read_median_ms("[ ERROR ] no such model\n")


@pytest.mark.parametrize(
    ("factor", "noise", "agrees"),
    [(1.01, 0.001, True), (1.1, 0.001, False), (1.01, 0.5, None)],
    ids=["same", "other", "too uncertain"],
)
def test_tools_agree_differ_or_are_too_uncertain_to_tell(factor: float, noise: float, agrees: bool | None) -> None:
    generator = np.random.default_rng(0)
    peer, harness = (np.exp(generator.normal(0, noise, 12)) for _ in range(2))
    row = agreement.agreement_row("engine", "peer", {"harness": factor * harness, "peer": peer})
    assert row["agrees"] is agrees


@pytest.mark.skipif(sys.platform == "win32", reason="programs cannot be stopped there")
@pytest.mark.parametrize("tool_first", [True, False], ids=["tool first", "harness first"])
def test_another_program_stands_still_while_the_harness_times(tmp_path: Path, tool_first: bool) -> None:
    program = """
import time
print("begin", flush=True)
stamps, end = [], time.monotonic() + 1.0
while time.monotonic() < end:
    stamps.append(time.monotonic())
    time.sleep(0.002)
print(*stamps)
"""
    command = [sys.executable, "-u", "-c", program]
    turns = ToolTurns(command, tmp_path, re.compile("begin"), turn_s=0.1, tool_first=tool_first)
    calls: list[tuple[float, float]] = []

    def call() -> None:
        start = time.monotonic()
        time.sleep(0.01)
        calls.append((start, time.monotonic()))

    options = MeasureOptions(minimum_seconds=0.8, maximum_seconds=0.8, half_width=1e-9, settle_s=0.0)
    measured = measure_interleaved((Contender("a call", call),), options, turns)
    stamps = np.array(turns.text.split()[1:], dtype=float)
    timed = calls[-measured.rounds :]
    assert turns.turns >= 2
    assert len(stamps) > 20
    # A signal needs its moment: the first call of a turn may begin before the program stands still.
    assert not any(((stamps > start + 0.005) & (stamps < end)).any() for start, end in timed)


def test_a_program_that_times_nothing_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model')"]
    with pytest.raises(MeasurementError, match="its last line is: no such model"):
        ToolTurns(command, tmp_path, re.compile("begin"), turn_s=0.1, tool_first=True).start()


def test_agreement_with_the_profiler_of_onnx_runtime_is_recorded_call_by_call(small_bundle: Path) -> None:
    from unetx_bench.bundles import open_engines

    with open_engines(small_bundle, threads=1) as opened:
        engine = next(engine for engine in opened.engines if engine.record.target == "onnxruntime-cpu")
        row = agreement.agreement_with_profiler(opened, engine, threads=1, seconds=1.0)
    harness, profiler = row["samples_ms"]["harness"], row["samples_ms"]["profiler"]
    assert len(harness) == len(profiler)
    # The profiler's stamps lie inside the harness's: to the microsecond that it rounds to.
    assert all(outer >= inner - 0.002 for outer, inner in zip(harness, profiler, strict=True))


def test_profiles_are_means_over_the_last_inferences_only() -> None:
    def node(name: str, took_us: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": took_us, "args": {"op_name": "Conv"}}

    events: list[dict[str, object]] = []
    for took_us in (9000, 1000, 3000):
        events += [node("a", took_us), node("b", 500), {"cat": "Session", "name": "model_run", "dur": took_us + 600}]
    profile = average_onnxruntime(read_profile(json.dumps(events)), inferences=2)
    assert [(layer.name, layer.mean_ms) for layer in profile.layers] == [("a", 2.0), ("b", 0.5)]
    assert profile.whole_ms == pytest.approx(2.6)


def test_layers_of_a_tensorrt_engine_are_means_over_its_profiled_inferences(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        """Reports one layer more slowly with every inference, once it has a profiler."""

        def __init__(self) -> None:
            self.profiler: Any = None
            self.calls = 0

        def infer(self, image: Any) -> None:
            self.calls += 1
            if self.profiler is not None:
                self.profiler.report_layer_time("stem", float(self.calls))

        def report_layers_to(self, profiler: Any) -> None:
            self.profiler = profiler

    class Package(ModuleType):
        IProfiler = object

    monkeypatch.setitem(sys.modules, "tensorrt", Package("tensorrt"))
    monkeypatch.setattr("unetx_opt.runtime.sessions.tensorrt.open_tensorrt", lambda _: nullcontext(Session()))
    request = OpenRequest(EngineRecord("tensorrt", ("engine.plan",)), lambda _: b"a plan")
    profile = profile_engine(request, np.zeros((1, 1, 4, 4), np.float32), inferences=3)
    assert [(layer.name, layer.mean_ms) for layer in profile.layers] == [("stem", 5.0)]  # calls 4, 5, 6
    assert profile.whole_ms is None


def test_energy_counts_joules_for_each_inference_also_where_the_counter_begins_again() -> None:
    readings = iter([95.0, 5.0])
    counter = EnergyCounter("double", "a double", lambda: None, lambda: next(readings), lambda: 100.0)
    figure = measure_energy(lambda: time.sleep(0.01), counter, seconds=0.05)
    assert figure.joules_per_inference * figure.inferences == pytest.approx(10.0)


def test_a_counter_that_cannot_be_read_says_why() -> None:
    for counter in COUNTERS.values():
        if counter.why_not() is not None:
            with pytest.raises(MeasurementError, match="cannot be read here"):
                measure_energy(int, counter)
            return
    pytest.skip("this machine has every counter")
