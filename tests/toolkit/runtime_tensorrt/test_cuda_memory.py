"""Device memory over a fake CUDA driver: no CUDA device is needed, and none is used."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from unetx_opt.errors import EngineError
from unetx_opt.runtime.cuda_memory import CudaDriver, CudaStream, load_driver


def test_values_travel_to_the_device_and_back_with_a_fake_driver(library: Any) -> None:
    with CudaStream(CudaDriver(library)) as stream:
        buffer = stream.allocate(6)
        buffer.host[:] = np.arange(6)
        with stream.current():
            stream.upload(buffer, 6)
            buffer.host[:] = -1
            stream.download(buffer, 4)
            stream.synchronize()
        assert buffer.host.tolist() == [0, 1, 2, 3, -1, -1]
        assert buffer.host.dtype == np.float32
        assert stream.handle > 0
    assert library.is_clean


def test_closing_twice_frees_once_with_a_fake_driver(library: Any) -> None:
    stream = CudaStream(CudaDriver(library))
    stream.allocate(3)
    stream.close()
    calls = list(library.calls)
    stream.close()
    assert library.calls == calls
    assert library.is_clean


def test_memory_is_freed_in_reverse_order_before_the_context_is_released_with_a_fake_driver(library: Any) -> None:
    with CudaStream(CudaDriver(library)) as stream:
        stream.allocate(3)
        library.calls.clear()
    assert library.calls == [
        "cuCtxPushCurrent_v2",
        "cuMemFree_v2",
        "cuMemFreeHost",
        "cuStreamDestroy_v2",
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]


@pytest.mark.parametrize("name", ["cuStreamCreate", "cuCtxPushCurrent_v2"])
def test_a_failed_start_leaves_nothing_behind_with_a_fake_driver(library: Any, name: str) -> None:
    driver = CudaDriver(library)
    library.failures[name] = 719
    with pytest.raises(EngineError, match=f"failed in {name}: CUDA_ERROR_LAUNCH_FAILED"):
        CudaStream(driver)
    assert library.retained == 0


def test_a_full_device_is_an_error_and_what_was_taken_is_freed_with_a_fake_driver(library: Any) -> None:
    with CudaStream(CudaDriver(library)) as stream:
        library.failures["cuMemAlloc_v2"] = 2
        with pytest.raises(EngineError, match="failed in cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
            stream.allocate(3)
    assert library.is_clean


def test_a_device_that_has_failed_can_still_be_closed_with_a_fake_driver(library: Any) -> None:
    stream = CudaStream(CudaDriver(library))
    stream.allocate(3)
    library.failures.update(dict.fromkeys(("cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2"), 719))
    stream.close()
    assert library.retained == 0


def test_the_context_is_taken_off_the_thread_when_something_fails_with_a_fake_driver(library: Any) -> None:
    with CudaStream(CudaDriver(library)) as stream:
        with pytest.raises(ZeroDivisionError), stream.current():
            _ = 1 / 0
        assert library.stack == []


def test_an_error_without_a_name_gives_its_number_with_a_fake_driver(library: Any) -> None:
    library.failures["cuInit"] = 4242
    with pytest.raises(EngineError, match="failed in cuInit: error 4242"):
        CudaDriver(library)


def test_a_driver_that_lacks_a_function_is_refused() -> None:
    with pytest.raises(EngineError, match="has no function cuInit: update it"):
        CudaDriver(object())


@pytest.mark.skipif(sys.platform == "win32", reason="the driver has one name there")
def test_the_driver_is_looked_for_under_each_name(library: Any) -> None:
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        if len(asked) == 1:
            raise OSError(name)
        return library

    assert isinstance(load_driver(load), CudaDriver)
    assert asked == ["libcuda.so.1", "libcuda.so"]


def test_a_machine_without_a_driver_is_told_so() -> None:
    def load(name: str) -> Any:
        raise OSError(name)

    with pytest.raises(EngineError, match=r"no CUDA driver can be loaded .* install one from NVIDIA"):
        load_driver(load)
