"""Simulated latencies of a disturbed machine, to know how often the statistics are right where the truth is known.

Every model gives two contenders that take turns in random order within each round; what disturbs the machine goes on
through both, so that samples depend on one another in time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.errors import MeasurementError
from unetx_bench.ratios import same_or_different

__all__ = ["NOISES", "error_rates", "simulate_pair"]

_QUIET_MS: Final = 10.0

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]


def _independent(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    return np.asarray(np.exp(generator.normal(0, 0.05, count)))


def _autoregressive(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    steps = generator.normal(0, 0.02, count)
    level = np.empty(count)
    value = generator.normal(0, 0.02 / np.sqrt(1 - 0.98**2))
    for index in range(count):
        value = 0.98 * value + steps[index]
        level[index] = value
    return np.asarray(np.exp(level + generator.normal(0, 0.03, count)))


def _bursts(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Other programs come and go: for a tenth of the time everything takes up to twice as long."""
    busy = np.empty(count, dtype=bool)
    state = generator.random() < 0.1
    for index in range(count):
        state = generator.random() >= 0.02 if state else generator.random() < 0.0022
        busy[index] = state
    factors = np.where(busy, generator.uniform(1.3, 2.0, count), 1.0)
    return np.asarray(factors * np.exp(generator.normal(0, 0.03, count)))


def _drift(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """The machine heats up and slows down by a fifth while it is measured."""
    return np.asarray(np.linspace(1.0, 1.2, count) * np.exp(generator.normal(0, 0.03, count)))


def _heavy_tails(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Single calls that the system interrupts: the excess has no variance."""
    return np.asarray(1 + 0.02 * generator.pareto(1.5, count))


def _time_slices(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Other programs take whole time slices: half of the calls take twice or three times as long."""
    slices = generator.choice(3, size=count, p=(0.5, 0.3, 0.2))
    return np.asarray((1 + slices) * np.exp(generator.normal(0, 0.01, count)))


#: Name -> factors (count,) on the quiet latency, in the order of time.
NOISES: Final[Mapping[str, Noise]] = MappingProxyType(
    {
        "independent": _independent,
        "autoregressive": _autoregressive,
        "bursts": _bursts,
        "drift": _drift,
        "heavy tails": _heavy_tails,
        "time slices": _time_slices,
    }
)


def simulate_pair(
    noise: str, rounds: int, slowdown: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulate a contender and one that takes (1 + slowdown) times as long.

    Parameters
    ----------
    noise : str
        Key of `NOISES`.
    rounds : int
        Samples of each.
    slowdown : float
        0 for two equal ones.
    seed : int
        Of everything that is drawn.

    Returns
    -------
    slower_ms, plain_ms : numpy.ndarray
        float64 (rounds,).
    """
    if noise not in NOISES:
        raise MeasurementError(f"unknown noise {noise!r}, expected one of {', '.join(NOISES)}")
    generator = np.random.default_rng(seed)
    calls = _QUIET_MS * NOISES[noise](generator, 2 * rounds).reshape(rounds, 2)
    first = generator.integers(2, size=rounds)
    rows = np.arange(rounds)
    return calls[rows, first] * (1 + slowdown), calls[rows, 1 - first]


def error_rates(rounds: int, trials: int, slowdown: float = 0.05, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Count how often the decision is right under each noise.

    Returns
    -------
    dict
        Noise -> trials, how often equal contenders were called the same, how often the slower one was found, and how
        often the ratio's interval held the true ratio.
    """
    rates = {}
    for number, noise in enumerate(NOISES):
        same = found = covered = 0
        for trial in range(trials):
            first = 2 * ((seed * len(NOISES) + number) * trials + trial)
            numerator, denominator = simulate_pair(noise, rounds, 0.0, first)
            equal = same_or_different(numerator, denominator)
            numerator, denominator = simulate_pair(noise, rounds, slowdown, first + 1)
            slower = same_or_different(numerator, denominator)
            same += equal.verdict == "no difference"
            found += slower.verdict == "slower"
            covered += slower.ratio.low <= 1 + slowdown <= slower.ratio.high
        rates[noise] = {
            "rounds": rounds,
            "trials": trials,
            "equal_called_same": same,
            "slowdown_found": found,
            "interval_covers": covered,
        }
    return rates
