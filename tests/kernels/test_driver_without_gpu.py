"""What the driver does around a kernel, with a driver that only writes down what it is told; no GPU takes part."""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unetx_kernels import driver, nvcc
from unetx_kernels.attention_gate.launch import TILES, GateKernels, block_count, choose_tile
from unetx_kernels.driver import DeviceArray, Gpu, device_array
from unetx_kernels.errors import KernelError


class FakeDriver(ModuleType):
    """As much of pycuda.driver as is used."""

    def __init__(self, count: int = 1) -> None:
        super().__init__("pycuda.driver")
        self.log: list[str] = []
        log = self.log

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            @staticmethod
            def count() -> int:
                return count

            def compute_capability(self) -> tuple[int, int]:
                return 8, 6

            def name(self) -> str:
                return "a GPU"

            def retain_primary_context(self) -> Any:
                log.append("retain")
                return SimpleNamespace(push=lambda: log.append("push"), detach=lambda: log.append("detach"))

        self.Device = Device
        self.Context = SimpleNamespace(pop=lambda: log.append("pop"))

    def init(self) -> None:
        pass

    def get_driver_version(self) -> int:
        return 13000


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


def test_without_pycuda_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "unetx-opt[cuda]" in str(driver.why_not())
    with pytest.raises(KernelError, match="pycuda is not installed"), driver.primary_context():
        pass


def test_without_a_driver_the_reason_says_so(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert "no NVIDIA driver (libcuda.so.1" in str(driver.why_not())


def test_a_gpu_that_is_not_there_is_named_by_fake_driver(fake_driver: FakeDriver) -> None:
    assert driver.why_not(0) is None
    assert driver.why_not(1) == "no GPU 1: this host has 1"


def test_the_primary_context_of_a_fake_driver_is_given_back_after_an_error(fake_driver: FakeDriver) -> None:
    with pytest.raises(ValueError, match="kernel"), driver.primary_context() as gpu:
        assert (gpu.architecture, gpu.driver_version) == ("sm_86", 13000)
        raise ValueError("kernel")
    assert fake_driver.log == ["retain", "push", "pop", "detach"]


def _tensor(shape: tuple[int, ...], strides: tuple[int, ...] | None, typestr: str = "<f2") -> Any:
    interface = {"shape": shape, "strides": strides, "typestr": typestr, "data": (4096, False), "version": 2}
    return SimpleNamespace(__cuda_array_interface__=interface)


@pytest.mark.parametrize(
    ("strides", "channels_last"), [(None, False), ((120, 40, 10, 2), False), ((120, 2, 30, 6), True)]
)
def test_a_tensor_is_taken_by_its_pointer_in_either_layout(
    strides: tuple[int, ...] | None, channels_last: bool
) -> None:
    assert device_array(_tensor((2, 3, 4, 5), strides)) == DeviceArray(4096, (2, 3, 4, 5), "f16", channels_last)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros(3), "not on a GPU"),
        (_tensor((2, 3, 4, 5), None, "<f8"), "expected float32 or float16"),
        (_tensor((2, 3, 4, 5), (240, 80, 20, 4)), "make it contiguous"),
    ],
    ids=["on the host", "float64", "with gaps"],
)
def test_a_tensor_that_no_kernel_reads_is_refused(tensor: Any, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        device_array(tensor)


def _recording_kernels(calls: list[Any]) -> GateKernels:
    def get_function(name: str) -> Any:
        return lambda *arguments, **options: calls.append((name, arguments, options))

    return GateKernels(Gpu("a GPU", "sm_86", 13000, None), TILES[0], SimpleNamespace(get_function=get_function))


def test_a_launch_passes_pointers_and_sizes_in_the_order_of_the_kernel() -> None:
    calls: list[Any] = []
    hidden, values = (DeviceArray(at, (2, c, 33, 40), "f16") for at, c in ((16, 4), (48, 9)))
    _recording_kernels(calls).neighbourhood((hidden, hidden, values), values, 5, dilation=2)
    name, arguments, options = calls[0]
    assert name == "neighbourhood_gate_f16_nchw_k5"
    assert [argument.item() for argument in arguments] == [16, 16, 48, 0, 48, 2, 4, 9, 33, 40, 2, 0.5]
    assert [argument.dtype.name for argument in arguments] == ["uint64"] * 5 + ["int32"] * 6 + ["float32"]
    assert options == {"grid": (3 * 1 * 4 * 2, 1, 1), "block": (32, 8, 1), "stream": None}


def test_a_launch_whose_tensors_differ_is_refused() -> None:
    hidden, values = DeviceArray(16, (1, 4, 8, 8), "f16"), DeviceArray(48, (1, 9, 8, 8), "f32")
    with pytest.raises(KernelError, match="the same pixels, type and layout"):
        _recording_kernels([]).neighbourhood((hidden, hidden, values), values, 3)


def test_a_narrow_image_takes_the_narrow_tile() -> None:
    assert [choose_tile(512).width, choose_tile(20).width, choose_tile(64, dilation=4).width] == [32, 16, 16]
    assert block_count((1, 1, 16, 32), 3, 1, TILES[0]) == 1
    assert block_count((3, 1, 17, 33), 3, 1, TILES[0]) == 3 * 2 * 2


NVCC = """#!/bin/sh
[ "$1" = --version ] && { echo 1; exit; }
echo x >> "$(dirname "$0")/calls"
while [ "$1" != -o ]; do shift; done
sleep 0.1
printf 'binary' > "$2"
"""


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Path:
    if sys.platform == "win32":
        pytest.skip("the fake compiler is a shell script")
    program = tmp_path / "nvcc"
    program.write_text(NVCC)
    program.chmod(0o755)
    return program


def test_a_binary_is_compiled_once_and_again_when_its_file_is_damaged(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("one")
    wanted, cache = nvcc.Compilation(source, "sm_86"), tmp_path / "cache"
    calls = tmp_path / "calls"
    assert [nvcc.cached_binary(fake_nvcc, wanted, cache) for _ in range(2)] == [b"binary"] * 2
    assert calls.read_text().count("x") == 1
    kept = next(cache.iterdir())
    kept.write_bytes(kept.read_bytes()[:-1])
    assert nvcc.cached_binary(fake_nvcc, wanted, cache) == b"binary"
    assert calls.read_text().count("x") == 2
    source.write_text("two")
    nvcc.cached_binary(fake_nvcc, wanted, cache)
    assert calls.read_text().count("x") == 3


def test_writers_at_the_same_time_leave_one_whole_file(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("one")
    wanted, cache = nvcc.Compilation(source, "sm_86"), tmp_path / "cache"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: nvcc.cached_binary(fake_nvcc, wanted, cache), range(4)))
    assert results == [b"binary"] * 4
    assert len(list(cache.iterdir())) == 1


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "nvcc"
    program.write_text("#!/bin/sh\necho 'kernel.cu(1): error: no' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(KernelError, match=r"kernel.cu\(1\): error: no"):
        nvcc.compile_source(program, nvcc.Compilation(tmp_path / "kernel.cu", "sm_86"))
