"""The clocks: what they measure of themselves, and which of them a machine has."""

from __future__ import annotations

import itertools
import time

import pytest

from unetx_bench.clock import CLOCKS, get_clock, measure_clock
from unetx_bench.errors import MeasurementError


def test_figures_of_a_clock_that_is_known() -> None:
    # Readings 0, 30, 60, 60, 60, 90: the differences within the pairs are 30, 0, 30.
    readings = itertools.chain([0, 30, 60, 60, 60, 90])
    figures = measure_clock(3, lambda: next(readings))
    assert (figures.overhead_ns, figures.resolution_ns) == (30.0, 30)


def test_a_clock_that_goes_back_is_refused() -> None:
    readings = iter([100, 90])
    with pytest.raises(MeasurementError, match="went back by 10 ns"):
        measure_clock(1, lambda: next(readings))


def test_a_clock_that_stands_still_is_refused() -> None:
    with pytest.raises(MeasurementError, match="did not advance"):
        measure_clock(100, lambda: 7)


def test_the_host_clock_counts_a_sleep_in_nanoseconds() -> None:
    took_ns = get_clock("monotonic").time_ns(lambda: time.sleep(0.02))
    assert took_ns >= 20_000_000


def test_the_call_runs_once_for_each_timing() -> None:
    calls: list[int] = []
    get_clock("monotonic").time_ns(lambda: calls.append(1))
    assert calls == [1]


def test_cuda_events_say_why_they_cannot_be_read_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MeasurementError, match=r"cuda-events cannot be read here: PyTorch sees no CUDA device"):
        get_clock("cuda-events")


def test_an_unknown_clock_lists_the_known_ones() -> None:
    with pytest.raises(MeasurementError, match=", ".join(CLOCKS)):
        get_clock("sundial")
