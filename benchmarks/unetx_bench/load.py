"""What other processes did while something was measured: processor time that was neither ours nor idle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from unetx_bench.environment import State, capture_state, state_changes
from unetx_opt.optional import require

__all__ = ["CORES_LIMIT", "LoadMonitor", "LoadWindow", "OtherProcess", "Reading", "judge_load", "read_cpu"]

#: Processor time of others, in cores, from which a window is disturbed.
CORES_LIMIT: Final = 0.2
#: Processor time that the hypervisor gave to others, in cores, from which a window is disturbed.
STOLEN_LIMIT: Final = 0.05
_WINDOW_S: Final = 1.0
_NAMED: Final = 3
_NAMED_FROM_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Reading:
    """Processor time that has passed, in seconds summed over all processors, at one moment.

    Attributes
    ----------
    at_s : float
        The moment.
    busy_s, own_s, stolen_s : float
        Of all processes (that of the hypervisor's other guests excluded), of this process and the children that it
        has waited for, and of the hypervisor's other guests.
    """

    at_s: float
    busy_s: float
    own_s: float
    stolen_s: float


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """A stretch of the run.

    Attributes
    ----------
    start_s, end_s : float
        Since the run began.
    others_cores, own_cores, stolen_cores : float
        Mean number of processors that were busy for other processes, for this one, and for other guests.
    """

    start_s: float
    end_s: float
    others_cores: float
    own_cores: float
    stolen_cores: float

    @property
    def is_disturbed(self) -> bool:
        """Whether others took so much that the samples of this stretch are doubtful."""
        return self.others_cores > CORES_LIMIT or self.stolen_cores > STOLEN_LIMIT


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """A process that ran besides the measurement: its name, its id, and the processor time it took meanwhile."""

    name: str
    pid: int
    cpu_s: float


def judge_load(windows: Sequence[LoadWindow]) -> tuple[str, ...]:
    """Say in words what others did in a run; empty where it was quiet."""
    found = []
    for what, limit, values in (
        ("other processes used", CORES_LIMIT, [window.others_cores for window in windows]),
        ("other guests of this computer used", STOLEN_LIMIT, [window.stolen_cores for window in windows]),
    ):
        beyond = [index for index, value in enumerate(values) if value > limit]
        if beyond:
            first, last = windows[beyond[0]], windows[beyond[-1]]
            found.append(
                f"{what} up to {max(values):.2f} processors (limit {limit:g}) in {len(beyond)} of {len(windows)} "
                f"windows, between {first.start_s:.0f} s and {last.end_s:.0f} s of the run"
            )
    return tuple(found)


def read_cpu() -> Reading:
    """Read the processor time of the machine and of this process."""
    psutil = require("psutil", purpose="watching the load of other processes")
    times, own = psutil.cpu_times(), os.times()
    fields = ("user", "nice", "system", "irq", "softirq")
    return Reading(
        at_s=time.perf_counter(),
        busy_s=sum(float(getattr(times, name, 0.0)) for name in fields),
        own_s=own.user + own.system + own.children_user + own.children_system,
        stolen_s=float(getattr(times, "steal", 0.0)),
    )


class LoadMonitor:
    """Watches a measurement, for `measure_interleaved`; use a new one for each run.

    Parameters
    ----------
    read : callable
        Gives a `Reading`.
    window_s : float
        Least length of a window. The system counts in hundredths of a second: a shorter one sees steps.
    """

    def __init__(self, read: Callable[[], Reading] = read_cpu, window_s: float = _WINDOW_S) -> None:
        self._read, self._window_s = read, window_s
        self._windows: list[LoadWindow] = []
        self._first: Reading | None = None
        self._last: Reading | None = None
        self._processes: Mapping[int, tuple[str, float]] = {}
        self._others: dict[int, OtherProcess] = {}
        self.before: State | None = None
        self.after: State | None = None

    @property
    def windows(self) -> tuple[LoadWindow, ...]:
        """The stretches of the run so far."""
        return tuple(self._windows)

    @property
    def others(self) -> tuple[OtherProcess, ...]:
        """Processes that took time in disturbed stretches, the busiest first."""
        return tuple(sorted(self._others.values(), key=lambda process: -process.cpu_s))

    def start(self) -> None:
        """Begin."""
        self.before = capture_state()
        self._processes = _process_times()
        self._first = self._last = self._read()

    def between_rounds(self) -> None:
        """Close the current window if it is long enough."""
        if self._last is not None and time.perf_counter() - self._last.at_s >= self._window_s:
            self._close_window()

    def stop(self) -> tuple[str, ...]:
        """End, and say what disturbed the run."""
        # A remainder that is much shorter than a window says more about the counter's steps than about the load.
        if self._last is not None and (
            not self._windows or time.perf_counter() - self._last.at_s >= self._window_s / 2
        ):
            self._close_window()
        self.after = capture_state()
        changes = () if self.before is None else state_changes(self.before, self.after)
        busiest = ", ".join(f"{process.name} {process.cpu_s:.1f} s" for process in self.others[:_NAMED])
        return (*judge_load(self._windows), *((f"busiest others: {busiest}",) if busiest else ()), *changes)

    def _close_window(self) -> None:
        assert self._first is not None  # noqa: S101  (start comes first)
        assert self._last is not None  # noqa: S101
        now, last = self._read(), self._last
        seconds = max(now.at_s - last.at_s, 1e-9)
        own, stolen = now.own_s - last.own_s, now.stolen_s - last.stolen_s
        # The two counters do not step at the same moment: a little less than nothing is nothing.
        others = max(0.0, now.busy_s - last.busy_s - own)
        window = LoadWindow(
            start_s=last.at_s - self._first.at_s,
            end_s=now.at_s - self._first.at_s,
            others_cores=others / seconds,
            own_cores=own / seconds,
            stolen_cores=stolen / seconds,
        )
        self._windows.append(window)
        if window.is_disturbed:
            self._note_processes()
        self._last = self._read()

    def _note_processes(self) -> None:
        for pid, (name, cpu_s) in _process_times().items():
            took = cpu_s - self._processes.get(pid, (name, 0.0))[1]
            if pid != os.getpid() and took >= _NAMED_FROM_S:
                self._others[pid] = OtherProcess(name, pid, took)


def _process_times() -> dict[int, tuple[str, float]]:
    """Process id -> name and processor time so far, of every process that can be seen."""
    psutil: Any = require("psutil", purpose="watching the load of other processes")
    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid] = (str(process.info["name"]), float(times.user + times.system))
    return found
