"""The state of a GPU through a double of NVML: no test machine is known to have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unetx_bench.environment import State, state_changes
from unetx_bench.nvml import read_gpu


class NvmlError(Exception):
    pass


def nvml_double(**changed: Any) -> Any:
    def refuse(*_: Any) -> Any:
        raise NvmlError("not supported")

    answers: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlClocksEventReasonSwPowerCap": 0x4,
        "nvmlClocksThrottleReasonHwSlowdown": 0x8,
        "nvmlClocksEventReasonSwThermalSlowdown": 0x20,
        "nvmlDeviceGetHandleByIndex": lambda index: "device",
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetName": lambda device: b"NVIDIA T400",
        "nvmlDeviceGetClockInfo": lambda device, clock: {1: 1500, 2: 5000}[clock],
        "nvmlDeviceGetTemperature": lambda device, sensor: 55,
        "nvmlDeviceGetPowerUsage": lambda device: 29_500,
        "nvmlDeviceGetEnforcedPowerLimit": refuse,
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=1000),
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=40),
        "nvmlDeviceGetComputeRunningProcesses": lambda device: ["one", "other"],
        "nvmlDeviceGetPerformanceState": lambda device: 0,
        "nvmlDeviceGetTotalEnergyConsumption": refuse,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda device: 0x4 | 0x20 | 0x1,
    }
    return SimpleNamespace(**{**answers, **changed})


def test_a_state_is_read_in_its_units_and_what_a_card_does_not_tell_is_none() -> None:
    gpu = read_gpu(nvml_double())
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.pstate) == ("NVIDIA T400", "580.65", "P0")
    assert (gpu.sm_mhz, gpu.memory_mhz, gpu.power_w) == (1500.0, 5000.0, 29.5)
    assert (gpu.power_limit_w, gpu.energy_mj) == (None, None)
    assert gpu.processes == 2


def test_idleness_holds_no_clock_down_but_power_and_temperature_do() -> None:
    gpu = read_gpu(nvml_double())
    assert gpu is not None
    assert gpu.throttle == ("power limit", "temperature (software)")
    state = State("", None, None, 1.0, None, {}, 0, None, gpu)
    assert any("held down before the run: power limit" in text for text in state_changes(state, state))


def test_without_a_device_there_is_no_state() -> None:
    def refuse(index: int) -> Any:
        raise NvmlError("not found")

    assert read_gpu(nvml_double(nvmlDeviceGetHandleByIndex=refuse)) is None


def test_without_a_driver_the_reason_is_given() -> None:
    from unetx_bench.nvml import open_nvml

    with open_nvml() as (nvml, reason):
        if nvml is not None:
            pytest.skip("this machine has an NVIDIA driver")
        assert reason
