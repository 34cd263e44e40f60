"""What is measured, when to stop, and what comes out: the data of `unetx_bench.measure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from unetx_bench.clock import ClockFigures
from unetx_bench.errors import MeasurementError

__all__ = ["Contender", "MeasureOptions", "Measurement", "Monitor", "Quiet", "WarmUp", "pair_rounds"]

MINIMUM_UNINTERRUPTED: Final = 30


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is timed.

    Attributes
    ----------
    name : str
        Unique within a measurement.
    call : callable
        One complete inference: it returns when its result is there.
    check : callable or None
        Takes the result of a call; gives what is wrong with it, or None.
    clock : str
        Key of `unetx_bench.clock.CLOCKS`.
    """

    name: str
    call: Callable[[], object]
    check: Callable[[object], str | None] | None = None
    clock: str = "monotonic"


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """When to begin and when to stop.

    Attributes
    ----------
    confidence : float
        Of the intervals that stopping looks at.
    half_width : float
        Relative: 0.01 stops when every median and every ratio asked for is known to +- 1 %.
    ratios : tuple of (str, str)
        Names of numerator and denominator.
    minimum_rounds, maximum_rounds : int
        Samples of each contender.
    minimum_seconds, maximum_seconds : float
        Of sampling, warm-up excluded.
    warmup_seconds, warmup_maximum_seconds : float
        Least and most time for warming up.
    settle_s : float
        Sleep before every call. Worker threads of the contender before, which spin for some milliseconds in the hope
        of more work, then sleep as well, and the system owes the call a fresh time slice.
    idle_gap_s : float
        Pause before every call: 0 is a stream of images; with a gap caches, clocks and threads have gone to sleep,
        as they have at a scanner that sends one image a minute.
    seed : int
        Of the order of the contenders.
    """

    confidence: float = 0.95
    half_width: float = 0.01
    ratios: tuple[tuple[str, str], ...] = ()
    minimum_rounds: int = 30
    maximum_rounds: int = 100_000
    minimum_seconds: float = 1.0
    maximum_seconds: float = 60.0
    warmup_seconds: float = 0.5
    warmup_maximum_seconds: float = 20.0
    settle_s: float = 0.005
    idle_gap_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum_rounds <= self.maximum_rounds:
            raise MeasurementError(
                f"rounds are {self.minimum_rounds} to {self.maximum_rounds}, expected 1 or more, the least first"
            )
        if self.half_width <= 0 or min(self.settle_s, self.idle_gap_s) < 0:
            raise MeasurementError(
                f"half_width is {self.half_width}, settle_s {self.settle_s} and idle_gap_s {self.idle_gap_s}, "
                "expected above 0, and 0 or more for both pauses"
            )


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What happened before the first sample.

    Attributes
    ----------
    rounds : int
        Calls of each contender.
    seconds : float
        Time that they took.
    stable : bool
        Whether the rule was met, or the time was up.
    first_call_ms : mapping of str to float
        The very first call of each contender, which in most engines allocates memory or compiles.
    """

    rounds: int
    seconds: float
    stable: bool
    first_call_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that was measured.

    Attributes
    ----------
    samples_ms : mapping of str to numpy.ndarray
        Contender -> float64 (rounds,); the same index is the same round.
    interrupted : mapping of str to numpy.ndarray
        Contender -> bool (rounds,): the system took a processor from this process during the call; False throughout
        where the system does not count that.
    order : numpy.ndarray
        int (rounds, contenders): who ran when, as indices into the names.
    started_s : numpy.ndarray
        float64 (rounds,): when each round began, in seconds since the first.
    warmup : WarmUp
        Before the first sample.
    stopped : str
        "precise" or "rounds" or "time": the rule that ended it.
    disturbances : tuple of str
        What else the machine did, in words; empty for a quiet run, and where nothing watched.
    clock : ClockFigures
        The host's clock on this machine, measured before the first sample.
    """

    samples_ms: Mapping[str, NDArray[np.float64]]
    interrupted: Mapping[str, NDArray[np.bool_]]
    order: NDArray[np.int64]
    started_s: NDArray[np.float64]
    warmup: WarmUp
    stopped: str
    disturbances: tuple[str, ...]
    clock: ClockFigures

    @property
    def rounds(self) -> int:
        """Samples of each contender."""
        return len(self.order)

    def paired(self, numerator: str, denominator: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take the samples of two contenders that their ratio is estimated from, see `pair_rounds`."""
        return pair_rounds(
            (self.samples_ms[numerator], self.samples_ms[denominator]),
            (self.interrupted[numerator], self.interrupted[denominator]),
        )


Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def pair_rounds(samples_ms: Pair, interrupted: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> Pair:
    """Keep the rounds in which the system interrupted neither call, or all where fewer than 30 remain.

    An interrupted call says how long other programs were let run, not how fast the contender is. Under the hypothesis
    that both are equally fast, either is as likely to be interrupted, so that the choice favours none. Medians and
    percentiles keep every sample: there the interruptions belong to what a user sees.
    """
    kept = ~(interrupted[0] | interrupted[1])
    if np.count_nonzero(kept) < MINIMUM_UNINTERRUPTED:
        return samples_ms
    return samples_ms[0][kept], samples_ms[1][kept]


class Monitor(Protocol):
    """What watches the machine while it is measured; never called inside a sample."""

    def start(self) -> None:
        """Begin."""
        ...

    def between_rounds(self) -> None:
        """Look, if it is time to."""
        ...

    def stop(self) -> tuple[str, ...]:
        """End, and say what disturbed the run."""
        ...


class Quiet:
    """A monitor that watches nothing."""

    def start(self) -> None:
        """Do nothing."""

    def between_rounds(self) -> None:
        """Do nothing."""

    def stop(self) -> tuple[str, ...]:
        """Find nothing."""
        return ()
