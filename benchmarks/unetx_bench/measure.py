"""Latency of several contenders in one run: verified, warmed up, then timed in turns until the answer is sure enough.

The rules, in the order in which they apply:

1. Verify. A contender with a check is called once and its result is checked; a wrong one is not timed.
2. Warm up. Rounds of all contenders, in windows of `WARM_UP_WINDOW` rounds, until for every contender the median of
   the last window is at most 5 % below that of the one before, and `warmup_seconds` have passed; or until
   `warmup_maximum_seconds` have. The result says which.
3. Sample. In each round every contender runs once, in an order that is drawn anew: what disturbs the machine hits
   all alike, and who runs first is chance (see `unetx_bench.statistics`).
4. Stop when the interval of every median, and of every ratio that was asked for, is no wider than +- `half_width`,
   after `minimum_rounds` and `minimum_seconds`; or at `maximum_rounds` or `maximum_seconds`. Looks are `_GROWTH`
   apart, and they look at widths only, never at who is ahead.

Every sample is kept.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.clock import Clock, count_interruptions, get_clock, measure_clock
from unetx_bench.errors import MeasurementError
from unetx_bench.measurement import Contender, Measurement, MeasureOptions, Monitor, Quiet, WarmUp, pair_rounds
from unetx_bench.statistics import quantile_interval, ratio_interval

__all__ = [
    "Contender",
    "MeasureOptions",
    "Measurement",
    "Monitor",
    "Quiet",
    "WarmUp",
    "measure_interleaved",
]

WARM_UP_WINDOW: Final = 5
_WARM_UP_FALL: Final = 0.05
_GROWTH: Final = 1.25


@dataclass(slots=True)
class _Samples:
    """What grows while rounds are run; durations in nanoseconds."""

    durations: list[list[int]] = field(default_factory=list)
    interrupted: list[list[bool]] = field(default_factory=list)
    orders: list[NDArray[np.int64]] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    def by_contender(self) -> NDArray[np.float64]:
        return np.asarray(self.durations, dtype=np.float64).T / 1e6

    def interruptions(self) -> NDArray[np.bool_]:
        return np.asarray(self.interrupted, dtype=np.bool_).T


def measure_interleaved(
    contenders: Sequence[Contender],
    options: MeasureOptions | None = None,
    monitor: Monitor | None = None,
) -> Measurement:
    """Time contenders in turns; see the module for the rules.

    Parameters
    ----------
    contenders : sequence of Contender
        At least one.
    options : MeasureOptions, optional
        When to begin and when to stop.
    monitor : Monitor, optional
        Watches the machine.

    Returns
    -------
    Measurement
        Also where the time was up before the intervals were narrow: `stopped` says so.

    Raises
    ------
    MeasurementError
        Names repeat or are unknown, a clock cannot be read here, or a contender's result is wrong.
    """
    options = options or MeasureOptions()
    _check_names(contenders, options)
    clocks = [get_clock(contender.clock) for contender in contenders]
    first_call_ms = {
        contender.name: _verify(contender, clock) for contender, clock in zip(contenders, clocks, strict=True)
    }
    watch = Quiet() if monitor is None else monitor
    # Apart from one another: how long the warm-up takes must not change the order of the samples.
    generator, warming = (np.random.default_rng((options.seed, part)) for part in range(2))
    with _without_collection():
        warmup = _warm_up(contenders, clocks, warming, options, first_call_ms)
        figures = measure_clock()
        watch.start()
        try:
            samples, stopped = _sample(contenders, clocks, generator, options, watch)
        finally:
            disturbances = watch.stop()
    names = [contender.name for contender in contenders]
    started = np.asarray(samples.started)
    return Measurement(
        samples_ms=MappingProxyType(dict(zip(names, samples.by_contender(), strict=True))),
        interrupted=MappingProxyType(dict(zip(names, samples.interruptions(), strict=True))),
        order=np.asarray(samples.orders),
        started_s=started - started[0],
        warmup=warmup,
        stopped=stopped,
        disturbances=disturbances,
        clock=figures,
    )


def _check_names(contenders: Sequence[Contender], options: MeasureOptions) -> None:
    names = [contender.name for contender in contenders]
    if not names:
        raise MeasurementError("nothing was given to measure, expected at least one contender")
    if len(set(names)) != len(names):
        raise MeasurementError(f"two contenders have one name: {', '.join(names)}")
    unknown = sorted({name for pair in options.ratios for name in pair} - set(names))
    if unknown:
        raise MeasurementError(f"a ratio of {', '.join(unknown)} was asked for, expected one of {', '.join(names)}")


def _verify(contender: Contender, clock: Clock) -> float:
    """Call a contender for the first time, in ms, and check its result."""
    results: list[object] = []
    took_ns = clock.time_ns(lambda: results.append(contender.call()))
    problem = None if contender.check is None else contender.check(results[0])
    if problem is not None:
        raise MeasurementError(f"{contender.name} is not timed, because its result is wrong: {problem}")
    return took_ns / 1e6


@dataclass(frozen=True, slots=True)
class _Round:
    order: NDArray[np.int64]
    durations: list[int]
    interrupted: list[bool]


def _run_round(
    contenders: Sequence[Contender], clocks: Sequence[Clock], generator: np.random.Generator, gap_s: float
) -> _Round:
    order = generator.permutation(len(contenders))
    durations, interrupted = [0] * len(contenders), [False] * len(contenders)
    for index in order:
        if gap_s:
            time.sleep(gap_s)
        before = count_interruptions()
        durations[index] = clocks[index].time_ns(contenders[index].call)
        interrupted[index] = count_interruptions() != before
    return _Round(order, durations, interrupted)


def _warm_up(
    contenders: Sequence[Contender],
    clocks: Sequence[Clock],
    generator: np.random.Generator,
    options: MeasureOptions,
    first_call_ms: Mapping[str, float],
) -> WarmUp:
    start = time.perf_counter()
    before, rounds, stable, seconds = None, 0, False, 0.0
    while not (stable and seconds >= options.warmup_seconds) and seconds < options.warmup_maximum_seconds:
        window = [
            _run_round(contenders, clocks, generator, options.settle_s).durations for _ in range(WARM_UP_WINDOW)
        ]
        rounds += len(window)
        medians = np.median(np.asarray(window, dtype=np.float64), axis=0)
        stable = before is not None and bool((medians >= before * (1 - _WARM_UP_FALL)).all())
        before = medians
        seconds = time.perf_counter() - start
    return WarmUp(rounds, seconds, stable, MappingProxyType(dict(first_call_ms)))


def _sample(
    contenders: Sequence[Contender],
    clocks: Sequence[Clock],
    generator: np.random.Generator,
    options: MeasureOptions,
    watch: Monitor,
) -> tuple[_Samples, str]:
    samples = _Samples()
    names = [contender.name for contender in contenders]
    start = time.perf_counter()
    look = options.minimum_rounds
    while True:
        samples.started.append(time.perf_counter())
        done = _run_round(contenders, clocks, generator, max(options.settle_s, options.idle_gap_s))
        samples.orders.append(done.order)
        samples.durations.append(done.durations)
        samples.interrupted.append(done.interrupted)
        watch.between_rounds()
        rounds, seconds = len(samples.orders), time.perf_counter() - start
        if rounds >= look and seconds >= options.minimum_seconds:
            look = max(rounds + 1, round(rounds * _GROWTH))
            if _is_precise(names, samples, options):
                return samples, "precise"
        if rounds >= options.maximum_rounds:
            return samples, "rounds"
        if seconds >= options.maximum_seconds:
            return samples, "time"


def _is_precise(names: Sequence[str], samples: _Samples, options: MeasureOptions) -> bool:
    rows, interrupted = samples.by_contender(), samples.interruptions()
    for row in rows:
        median = quantile_interval(row, 0.5, options.confidence)
        if median is None or median.half_width > options.half_width:
            return False
    for pair in options.ratios:
        above, below = (names.index(name) for name in pair)
        paired = pair_rounds((rows[above], rows[below]), (interrupted[above], interrupted[below]))
        if ratio_interval(*paired, options.confidence).half_width > options.half_width:
            return False
    return True


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect garbage now and not in the middle of somebody's sample."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
