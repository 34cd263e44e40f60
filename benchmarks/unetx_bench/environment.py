"""What the machine is, and in what state: taken before and after a measurement. No host name, user or path."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unetx_bench.nvml import GpuState, open_nvml, read_gpu
from unetx_opt.optional import require
from unetx_opt.runtime.host import probe_host

__all__ = ["Environment", "State", "capture_environment", "capture_state", "state_changes"]

_CPUINFO: Final = Path("/proc/cpuinfo")
_CPU_FOLDERS: Final = Path("/sys/devices/system/cpu")
_SPEED_LOOP: Final = 20_000
_SPEED_TRIALS: Final = 25
#: Relative change of the CPU's speed, and of a clock, between two states that counts as a disturbance.
_SPEED_CHANGE: Final = 0.05

#: CPU flags that decide which arithmetic an engine may use.
_ARITHMETIC_FLAGS: Final = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True, slots=True)
class State:
    """The machine at one moment.

    Attributes
    ----------
    taken : str
        UTC, ISO 8601.
    load_average : tuple of float or None
        Runnable processes over 1, 5 and 15 minutes.
    cpu_mhz : float or None
        Mean over the cores, as the system reports it.
    speed_us : float
        Least time of a fixed loop in microseconds: it tells a slower CPU also where no clock is reported.
    throttle_events : int or None
        Sum of the cores' thermal throttle counters.
    temperatures_c : mapping of str to float
        Hottest reading of each sensor.
    memory_available_bytes : int
        Without swapping.
    on_battery : bool or None
        None where there is no battery.
    gpu : GpuState or None
        The first GPU.
    """

    taken: str
    load_average: tuple[float, float, float] | None
    cpu_mhz: float | None
    speed_us: float
    throttle_events: int | None
    temperatures_c: Mapping[str, float]
    memory_available_bytes: int
    on_battery: bool | None
    gpu: GpuState | None


@dataclass(frozen=True, slots=True)
class Environment:
    """What does not change while a measurement runs, and the state in which it began.

    Attributes
    ----------
    system, machine, python : str
        "Linux", "x86_64", "3.11.2".
    kernel : str
        Version of the operating system's kernel, its first two numbers.
    cpu : str
        Model name.
    cpu_flags : tuple of str
        Those that decide on arithmetic.
    cores, physical_cores : int or None
        Logical and physical.
    usable_cpus : tuple of int
        Processors that this process may run on.
    memory_bytes : int
        Total.
    governor : str or None
        Linux's policy for the clock of core 0.
    virtual : bool or None
        Whether a hypervisor is announced.
    gpu, driver, compute_capability : str or None
        First CUDA device, version of the driver's API.
    packages : mapping of str to str
        Versions of the optional packages, and of numpy.
    thread_variables : mapping of str to str
        Environment variables that set thread counts.
    why_not : mapping of str to str
        What could not be read, and the reason.
    state : State
        When it was captured.
    """

    system: str
    machine: str
    python: str
    kernel: str
    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int | None
    physical_cores: int | None
    usable_cpus: tuple[int, ...]
    memory_bytes: int
    governor: str | None
    virtual: bool | None
    gpu: str | None
    driver: str | None
    compute_capability: str | None
    packages: Mapping[str, str]
    thread_variables: Mapping[str, str]
    state: State
    why_not: Mapping[str, str] = field(default_factory=dict)


_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")


def capture_environment() -> Environment:
    """Look at this machine; `dataclasses.asdict` of the result is JSON.

    Raises
    ------
    MissingPackageError
        psutil is not installed.
    """
    psutil = require("psutil", purpose="recording the machine that is measured")
    host, lines = probe_host(), _cpuinfo()
    governor = _read_text(_CPU_FOLDERS / "cpu0/cpufreq/scaling_governor")
    state = capture_state()
    with open_nvml() as (_, nvml_reason):
        reasons = {"nvml": nvml_reason} if nvml_reason else {}
    if governor is None:
        reasons["governor"] = "the system does not offer it, as in most virtual machines"
    if state.throttle_events is None:
        reasons["throttle_events"] = "the system does not offer thermal throttle counters"
    if not state.temperatures_c:
        reasons["temperatures_c"] = "the system offers no temperature sensor"
    return Environment(
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        kernel=".".join(platform.release().split(".")[:2]),
        cpu=lines.get("model name", platform.processor() or "unknown"),
        cpu_flags=tuple(flag for flag in _ARITHMETIC_FLAGS if flag in host.cpu_features),
        cores=os.cpu_count(),
        physical_cores=psutil.cpu_count(logical=False),
        usable_cpus=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (),
        memory_bytes=int(psutil.virtual_memory().total),
        governor=governor,
        virtual="hypervisor" in host.cpu_features if host.cpu_features else None,
        gpu=host.gpu,
        driver=host.driver,
        compute_capability=host.compute_capability,
        packages={**host.packages, "numpy": _numpy_version()},
        thread_variables={name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        state=state,
        why_not=reasons,
    )


def capture_state() -> State:
    """Read what may change while a measurement runs; takes some 20 ms."""
    psutil = require("psutil", purpose="recording the machine that is measured")
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    with open_nvml() as (nvml, _):
        gpu = None if nvml is None else read_gpu(nvml)
    return State(
        taken=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
        cpu_mhz=float(frequency.current) if frequency and frequency.current else None,
        speed_us=_speed_us(),
        throttle_events=_throttle_events(),
        temperatures_c=_temperatures(psutil),
        memory_available_bytes=int(psutil.virtual_memory().available),
        on_battery=None if battery is None else not battery.power_plugged,
        gpu=gpu,
    )


def state_changes(before: State, after: State) -> tuple[str, ...]:
    """Say what moved between two states that makes figures taken between them doubtful."""
    found = []
    for what, old, new in (
        ("a fixed loop on the CPU took", before.speed_us, after.speed_us),
        ("the reported CPU clock was", before.cpu_mhz, after.cpu_mhz),
    ):
        if old and new and abs(new / old - 1) > _SPEED_CHANGE:
            found.append(f"{what} {new / old - 1:+.0%} after the run against before it")
    if before.throttle_events is not None and after.throttle_events is not None:
        events = after.throttle_events - before.throttle_events
        if events > 0:
            found.append(f"the CPU was throttled {events} times by its temperature")
    if before.on_battery != after.on_battery:
        found.append("the power supply changed between mains and battery")
    for state, when in ((before, "before"), (after, "after")):
        if state.gpu is not None and state.gpu.throttle:
            found.append(f"the GPU's clock was held down {when} the run: {', '.join(state.gpu.throttle)}")
    return tuple(found)


def _speed_us() -> float:
    def run() -> int:
        start, total = time.perf_counter_ns(), 0
        for value in range(_SPEED_LOOP):
            total += value
        return time.perf_counter_ns() - start

    return min(run() for _ in range(_SPEED_TRIALS)) / 1e3


def _throttle_events() -> int | None:
    texts = [_read_text(path) for path in _CPU_FOLDERS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    counts = [int(text) for text in texts if text is not None and text.isdigit()]
    return sum(counts) if counts else None


def _temperatures(psutil: Any) -> dict[str, float]:
    if not hasattr(psutil, "sensors_temperatures"):
        return {}
    return {
        name: max(float(reading.current) for reading in readings)
        for name, readings in psutil.sensors_temperatures().items()
        if readings
    }


def _cpuinfo() -> dict[str, str]:
    """First processor of ``/proc/cpuinfo``; empty where there is none."""
    text = _read_text(_CPUINFO) or ""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _numpy_version() -> str:
    import numpy as np

    return np.__version__
