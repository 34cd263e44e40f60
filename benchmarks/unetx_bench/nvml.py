"""NVIDIA's management library: what the first GPU is and does. Absent without a driver, and then it says why."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from unetx_opt.errors import MissingPackageError
from unetx_opt.optional import require

__all__ = ["GpuState", "open_nvml", "read_gpu"]

#: Constant of NVML -> what holds the clocks down. Idleness and a limit that the user set are no disturbance.
_THROTTLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "nvmlClocksEventReasonSwPowerCap": "power limit",
        "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
        "nvmlClocksEventReasonSwThermalSlowdown": "temperature (software)",
        "nvmlClocksThrottleReasonHwThermalSlowdown": "temperature (hardware)",
        "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
    }
)


@dataclass(frozen=True, slots=True)
class GpuState:
    """The first GPU at one moment; None where the driver does not tell.

    Attributes
    ----------
    name, driver, pstate : str or None
        "NVIDIA RTX A2000", "580.65", "P0".
    sm_mhz, memory_mhz, temperature_c, power_w, power_limit_w : float or None
        Clocks, temperature of the chip, power now and its limit.
    memory_used_bytes, utilization_percent, energy_mj, processes : int or None
        Memory of all processes, share of the last sample period in which a kernel ran, energy since the driver was
        loaded in millijoules, number of processes that compute.
    throttle : tuple of str
        What holds the clocks down.
    """

    name: str | None
    driver: str | None
    pstate: str | None
    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    memory_used_bytes: int | None
    utilization_percent: int | None
    energy_mj: int | None
    processes: int | None
    throttle: tuple[str, ...]


@contextlib.contextmanager
def open_nvml() -> Iterator[tuple[Any, str | None]]:
    """Yield the module `pynvml`, initialised, or None and the reason why it cannot be used."""
    try:
        nvml = require("pynvml", purpose="reading the state of the GPU")
    except MissingPackageError as error:
        yield None, str(error)
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        yield None, f"NVML cannot be used: {error}"
        return
    try:
        yield nvml, None
    finally:
        nvml.nvmlShutdown()


def read_gpu(nvml: Any) -> GpuState | None:
    """Read the first GPU; None where there is none.

    Parameters
    ----------
    nvml : module
        `pynvml`, initialised.
    """
    try:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
    except nvml.NVMLError:
        return None

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(device, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    memory, utilization = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetUtilizationRates")
    running, state = ask("nvmlDeviceGetComputeRunningProcesses"), ask("nvmlDeviceGetPerformanceState")
    return GpuState(
        name=_text(ask("nvmlDeviceGetName")),
        driver=_driver(nvml),
        pstate=None if state is None else f"P{state}",
        sm_mhz=_scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1.0),
        memory_mhz=_scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1.0),
        temperature_c=_scaled(ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0),
        power_w=_scaled(ask("nvmlDeviceGetPowerUsage"), 1e-3),
        power_limit_w=_scaled(ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
        memory_used_bytes=None if memory is None else int(memory.used),
        utilization_percent=None if utilization is None else int(utilization.gpu),
        energy_mj=ask("nvmlDeviceGetTotalEnergyConsumption"),
        processes=None if running is None else len(running),
        throttle=_throttles(nvml, ask),
    )


def _throttles(nvml: Any, ask: Callable[..., Any]) -> tuple[str, ...]:
    bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    if bits is None:
        return ()
    return tuple(text for constant, text in _THROTTLES.items() if bits & getattr(nvml, constant, 0))


def _driver(nvml: Any) -> str | None:
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor
