"""Energy of one inference, where the processor (RAPL) or the GPU (NVML) counts it.

The counters see the whole chip: what other processes and the idle chip take is in the figure. It is measured in a
block of its own, one contender alone, because interleaved contenders cannot be told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_bench.errors import MeasurementError
from unetx_bench.nvml import open_nvml, read_gpu

__all__ = ["COUNTERS", "EnergyCounter", "EnergyFigure", "measure_energy"]

_RAPL: Final = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """One counter.

    Attributes
    ----------
    name : str
        Key of `COUNTERS`.
    describes : str
        What it counts.
    why_not : callable
        No arguments; gives the reason why it cannot be read here, or None.
    read_j : callable
        No arguments; gives joules since some fixed moment.
    wrap_j : callable
        No arguments; gives the reading at which the counter begins again at 0, or None.
    """

    name: str
    describes: str
    why_not: Callable[[], str | None]
    read_j: Callable[[], float]
    wrap_j: Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class EnergyFigure:
    """Energy of a block of inferences.

    Attributes
    ----------
    counter : str
        Key of `COUNTERS`.
    inferences : int
        In the block.
    seconds : float
        Length of the block.
    joules_per_inference : float
        Whole chip, idle power included.
    watts : float
        Mean power over the block.
    """

    counter: str
    inferences: int
    seconds: float
    joules_per_inference: float
    watts: float


def measure_energy(call: Callable[[], object], counter: EnergyCounter, seconds: float = 5.0) -> EnergyFigure:
    """Run a call again and again and read a counter before and after.

    Parameters
    ----------
    call : callable
        One complete inference, warmed up.
    counter : EnergyCounter
        One that can be read here.
    seconds : float
        Least length of the block; counters step every millisecond (RAPL) to some 100 ms (NVML).

    Raises
    ------
    MeasurementError
        The counter cannot be read, or did not advance.
    """
    reason = counter.why_not()
    if reason is not None:
        raise MeasurementError(f"the energy counter {counter.name} cannot be read here: {reason}")
    before, start, inferences = counter.read_j(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        inferences += 1
    joules, took_s = counter.read_j() - before, time.perf_counter() - start
    if joules < 0:
        joules += counter.wrap_j() or 0.0
    if joules <= 0:
        raise MeasurementError(f"the energy counter {counter.name} did not advance in {took_s:.1f} s")
    return EnergyFigure(counter.name, inferences, took_s, joules / inferences, joules / took_s)


def _packages() -> list[Path]:
    # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it and would be counted twice.
    return sorted(path for path in _RAPL.glob("*rapl:*") if path.name.count(":") == 1)


def _why_not_rapl() -> str | None:
    if not _packages():
        return "the system offers no RAPL counter, as in most virtual machines"
    try:
        _read_rapl_j()
    except OSError:
        return "the RAPL counter can be read by root only: make energy_uj readable"
    return None


def _read_rapl_j() -> float:
    return sum(int((path / "energy_uj").read_text()) for path in _packages()) / 1e6


def _wrap_rapl_j() -> float | None:
    # Packages wrap one at a time, and all at the same reading.
    try:
        return int((_packages()[0] / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, IndexError, ValueError):
        return None


def _why_not_nvml() -> str | None:
    with open_nvml() as (nvml, reason):
        if nvml is None:
            return reason
        gpu = read_gpu(nvml)
    return "this GPU does not count its energy" if gpu is None or gpu.energy_mj is None else None


def _read_nvml_j() -> float:
    with open_nvml() as (nvml, _):
        gpu = read_gpu(nvml)
    return 0.0 if gpu is None or gpu.energy_mj is None else gpu.energy_mj / 1e3


#: Energy counter by name.
COUNTERS: Final[Mapping[str, EnergyCounter]] = MappingProxyType(
    {
        counter.name: counter
        for counter in (
            EnergyCounter("rapl", "the processor packages", _why_not_rapl, _read_rapl_j, _wrap_rapl_j),
            EnergyCounter("nvml", "the first GPU's board", _why_not_nvml, _read_nvml_j, lambda: None),
        )
    }
)
