"""The rules of a measurement: verification, order, stopping, what is kept, and what is done between rounds."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unetx_bench.errors import MeasurementError
from unetx_bench.measure import _is_precise, _Samples, measure_interleaved
from unetx_bench.measurement import Contender, MeasureOptions, Quiet, pair_rounds
from unetx_bench.pinning import pinned

QUICK = MeasureOptions(
    minimum_rounds=12,
    maximum_rounds=12,
    minimum_seconds=0.0,
    warmup_seconds=0.0,
    settle_s=0.0,
    warmup_maximum_seconds=0.5,
)


def test_every_contender_runs_once_in_every_round_in_the_order_that_is_kept() -> None:
    called: list[str] = []
    contenders = [Contender(name, lambda name=name: called.append(name)) for name in "abc"]
    found = measure_interleaved(contenders, QUICK)
    assert {name: len(row) for name, row in found.samples_ms.items()} == {"a": 12, "b": 12, "c": 12}
    timed = called[-36:]
    assert ["".join(timed[start : start + 3]) for start in range(0, 36, 3)] == [
        "".join("abc"[index] for index in order) for order in found.order
    ]
    assert len({tuple(order) for order in found.order}) > 1


def test_the_order_is_drawn_from_the_seed() -> None:
    contenders = [Contender(name, int) for name in "abc"]
    first, again, other = (measure_interleaved(contenders, replace(QUICK, seed=seed)).order for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_wrong_result_is_not_timed() -> None:
    called: list[int] = []
    wrong = Contender("wrong", lambda: called.append(1), lambda result: "it is empty")
    with pytest.raises(MeasurementError, match="wrong is not timed, because its result is wrong: it is empty"):
        measure_interleaved([wrong], QUICK)
    assert called == [1]


def test_the_first_call_is_told_apart_from_later_ones() -> None:
    lengths = iter([0.05])
    found = measure_interleaved([Contender("slow start", lambda: time.sleep(next(lengths, 0.0)))], QUICK)
    assert found.warmup.first_call_ms["slow start"] >= 50
    assert np.median(found.samples_ms["slow start"]) < 50


def test_it_stops_when_the_median_is_precise_and_not_before_the_least_rounds() -> None:
    options = replace(QUICK, maximum_rounds=10_000, half_width=0.5, maximum_seconds=60.0)
    found = measure_interleaved([Contender("steady", lambda: time.sleep(0.001))], options)
    assert found.stopped == "precise"
    assert 12 <= found.rounds < 10_000


def test_it_stops_at_the_most_rounds_where_it_never_is_precise() -> None:
    found = measure_interleaved([Contender("steady", int)], replace(QUICK, half_width=1e-12))
    assert (found.stopped, found.rounds) == ("rounds", 12)


def test_it_stops_when_the_time_is_up() -> None:
    options = replace(QUICK, minimum_rounds=1000, maximum_rounds=1000, maximum_seconds=0.05)
    found = measure_interleaved([Contender("slow", lambda: time.sleep(0.01))], options)
    assert found.stopped == "time"
    assert 1 <= found.rounds < 1000


def test_a_ratio_that_is_asked_for_must_be_precise_too() -> None:
    """Either takes 1 or 1.25 ms, the one when the other does not: each median is within 15 %, their ratio is not."""
    slow = np.random.default_rng(0).random(60) < 0.5
    rows = np.stack([np.where(slow, 1.25e6, 1.0e6), np.where(slow, 1.0e6, 1.25e6)], axis=1).astype(int)
    samples = _Samples(durations=rows.tolist(), interrupted=np.zeros(rows.shape, dtype=bool).tolist())
    options = replace(QUICK, half_width=0.15)
    assert _is_precise(("a", "b"), samples, options)
    assert not _is_precise(("a", "b"), samples, replace(options, ratios=(("a", "b"),)))
    assert _is_precise(("a", "b"), samples, replace(options, ratios=(("a", "a"),)))


def test_an_idle_gap_lies_before_every_call_and_outside_of_its_time() -> None:
    found = measure_interleaved(
        [Contender("short", int)], replace(QUICK, idle_gap_s=0.02, minimum_rounds=3, maximum_rounds=3)
    )
    assert (np.diff(found.started_s) >= 0.02).all()
    assert found.samples_ms["short"].min() < 20


def test_no_garbage_is_collected_inside_a_sample_and_collection_goes_on_afterwards() -> None:
    seen: list[bool] = []
    measure_interleaved([Contender("looks", lambda: seen.append(gc.isenabled()))], QUICK)
    assert not any(seen[1:])  # the first call is the verification
    assert gc.isenabled()


def test_the_monitor_looks_between_rounds_and_its_findings_are_kept() -> None:
    class Counting(Quiet):
        def __init__(self) -> None:
            self.calls: Counter[str] = Counter()

        def start(self) -> None:
            self.calls["start"] += 1

        def between_rounds(self) -> None:
            self.calls["between"] += 1

        def stop(self) -> tuple[str, ...]:
            self.calls["stop"] += 1
            return ("somebody was there",)

    monitor = Counting()
    found = measure_interleaved([Contender("a", int)], QUICK, monitor)
    assert monitor.calls == {"start": 1, "between": 12, "stop": 1}
    assert found.disturbances == ("somebody was there",)


def test_a_monitor_stops_also_where_a_contender_fails() -> None:
    stopped: list[bool] = []

    class Noting(Quiet):
        def stop(self) -> tuple[str, ...]:
            stopped.append(True)
            return ()

    calls = iter(range(8))

    def fail_later() -> None:
        if next(calls, None) is None:
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        measure_interleaved([Contender("fails", fail_later)], replace(QUICK, warmup_maximum_seconds=0.0), Noting())
    assert stopped == [True]


@pytest.mark.parametrize(
    ("contenders", "options", "reason"),
    [
        ([], QUICK, "nothing was given"),
        ([Contender("a", int), Contender("a", int)], QUICK, "one name"),
        ([Contender("a", int)], replace(QUICK, ratios=(("a", "b"),)), "a ratio of b"),
        ([Contender("a", int, clock="sundial")], QUICK, "unknown clock"),
    ],
    ids=["none", "twice", "unknown ratio", "unknown clock"],
)
def test_what_cannot_be_measured_is_refused(
    contenders: list[Contender], options: MeasureOptions, reason: str
) -> None:
    with pytest.raises(MeasurementError, match=reason):
        measure_interleaved(contenders, options)


def test_contradictory_rounds_are_refused() -> None:
    with pytest.raises(MeasurementError, match="rounds are 40 to 12"):
        replace(QUICK, minimum_rounds=40)


def test_ratios_leave_out_rounds_in_which_a_call_was_interrupted() -> None:
    samples = np.arange(1.0, 41.0), np.arange(101.0, 141.0)
    interrupted = np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)
    interrupted[0][:4], interrupted[1][2:8] = True, True
    first, second = pair_rounds(samples, interrupted)
    assert first.tolist() == list(range(9, 41))
    assert second.tolist() == list(range(109, 141))


def test_ratios_keep_every_round_where_too_few_would_remain() -> None:
    samples = np.ones(40), np.ones(40)
    interrupted = np.arange(40) >= 29, np.zeros(40, dtype=bool)
    assert len(pair_rounds(samples, interrupted)[0]) == 40


def test_pinning_moves_every_thread_and_gives_back_what_was() -> None:
    os = pytest.importorskip("os")
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin")
    before = os.sched_getaffinity(0)
    done, seen = threading.Event(), []
    started = threading.Event()

    def wait() -> None:
        started.set()
        done.wait(10)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait(10)
    one = min(before)
    with pinned([one]) as cpus:
        assert cpus == (one,)
        done.set()
        thread.join()
    assert seen == [{one}]
    assert os.sched_getaffinity(0) == before


def test_a_processor_that_is_not_there_is_refused() -> None:
    with pytest.raises(MeasurementError, match="processors"), pinned([100_000]):
        pass
