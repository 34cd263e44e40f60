"""What the driver does around a kernel, with a driver that only writes down what it is told; no GPU takes part."""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unetx_kernels import binaries, driver, nvcc
from unetx_kernels.attention_gate import launch
from unetx_kernels.attention_gate.launch import GateKernels
from unetx_kernels.attention_gate.tiles import TILES, block_count, choose_tile
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

            def get_attribute(self, attribute: str) -> int:
                return {"multiprocessors": 84, "shared": 100 * 1024}[attribute]

            def retain_primary_context(self) -> Any:
                log.append("retain")
                return SimpleNamespace(push=lambda: log.append("push"), detach=lambda: log.append("detach"))

        self.Device = Device
        self.Context = SimpleNamespace(pop=lambda: log.append("pop"))
        self.device_attribute = SimpleNamespace(
            MULTIPROCESSOR_COUNT="multiprocessors", MAX_SHARED_MEMORY_PER_MULTIPROCESSOR="shared"
        )

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
        assert (gpu.multiprocessors, gpu.shared_bytes) == (84, 100 * 1024)
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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a driver is told that only writes it down; binaries are not made."""
    told: list[Any] = []

    def get_function(name: str) -> Any:
        return lambda *arguments, **options: told.append((name, arguments, options))

    def module_binary(whole: nvcc.Compilation, narrow: dict[str, int], cache: Path) -> tuple[bytes, str]:
        told.append((whole.source.name, dict(whole.definitions), dict(narrow)))
        return b"", "test"

    monkeypatch.setattr(launch, "module_binary", module_binary)
    monkeypatch.setattr(Gpu, "load", lambda self, binary: SimpleNamespace(get_function=get_function))
    return told


def _kernels() -> GateKernels:
    return GateKernels(Gpu("a GPU", "sm_86", 13000, None, None), Path("unused"))


def _array(pointer: int, *shape: int, dtype: str = "f16", channels_last: bool = False) -> DeviceArray:
    return DeviceArray(pointer, shape, dtype, channels_last)


def test_a_launch_passes_pointers_and_sizes_in_the_order_of_the_kernel_to_a_recording_driver(
    calls: list[Any],
) -> None:
    hidden, values = _array(16, 2, 4, 33, 40), _array(48, 2, 9, 33, 40)
    _kernels().neighbourhood((hidden, hidden, values), values, 5, dilation=2)
    (source, macros, narrow), (name, arguments, options) = calls
    assert (source, narrow) == ("attention_gate.cu", {"UNETX_FORMAT": 3, "UNETX_WINDOW": 5})
    assert macros == {"UNETX_TILE_WIDTH": 16, "UNETX_TILE_HEIGHT": 8, "UNETX_STAGES": 2}
    assert name == "neighbourhood_gate_f16_nchw_k5"
    assert [argument.item() for argument in arguments] == [16, 16, 48, 0, 48, 2, 4, 9, 33, 40, 2, 0.5]
    assert [argument.dtype.name for argument in arguments] == ["uint64"] * 5 + ["int32"] * 6 + ["float32"]
    assert options == {"grid": (3 * 2 * 4 * 2, 1, 1), "block": (16, 8, 1), "shared": 0, "stream": None}


def test_gradients_are_two_launches_of_one_module_on_a_recording_driver(calls: list[Any]) -> None:
    theta, phi, values, gradient = (_array(at, 1, depth, 8, 33) for at, depth in ((1, 4), (2, 4), (3, 9), (4, 9)))
    outputs = (_array(5, 1, 4, 8, 33), _array(6, 1, 4, 8, 33), _array(7, 1, 9, 8, 33))
    scratch = (_array(8, 1, 1, 8, 33, dtype="f32"), _array(9, 1, 1, 8, 33, dtype="f32"))
    _kernels().gradients((theta, phi, values), gradient, outputs, scratch, 3)
    (source, _, _), (query, first, options), (key, second, _) = calls
    assert source == "backward.cu"
    assert (query, key) == ("neighbourhood_query_gradient_f16_nchw_k3", "neighbourhood_key_gradient_f16_nchw_k3")
    sizes = [1, 4, 9, 8, 33, 1, 0.5]
    assert [argument.item() for argument in first] == [1, 2, 3, 4, 5, 8, 9, *sizes]
    assert [argument.item() for argument in second] == [1, 2, 3, 4, 8, 9, 6, 7, *sizes]
    assert options["grid"] == (2, 1, 1)


def test_the_additive_gate_is_launched_with_its_sizes_on_a_recording_driver(calls: list[Any]) -> None:
    values, skip = (_array(at, 2, depth, 6, 40, dtype="f32", channels_last=True) for at, depth in ((1, 9), (2, 4)))
    coarse, psi = _array(3, 2, 4, 3, 20, dtype="f32", channels_last=True), _array(4, 4, dtype="f32")
    _kernels().additive(values, (skip, coarse, psi), values, 0.5, residual=values)
    (_, _, narrow), (name, arguments, options) = calls
    assert narrow == {"UNETX_FORMAT": 2, "UNETX_WINDOW": 0}
    assert name == "additive_gate_f32_nhwc"
    assert [argument.item() for argument in arguments] == [1, 2, 3, 4, 1, 1, 2, 4, 9, 6, 40, 3, 20, 0.5]
    assert [argument.dtype.name for argument in arguments] == ["uint64"] * 6 + ["int32"] * 7 + ["float32"]
    assert options["grid"] == (2, 1, 1)


def test_one_channel_lies_in_either_layout(calls: list[Any]) -> None:
    hidden, values = _array(16, 1, 1, 8, 8), _array(48, 1, 9, 8, 8, channels_last=True)
    _kernels().neighbourhood((hidden, hidden, values), values, 3)
    assert calls[1][0] == "neighbourhood_gate_f16_nhwc_k3"


def test_a_launch_whose_tensors_differ_is_refused() -> None:
    hidden, values = _array(16, 1, 4, 8, 8), _array(48, 1, 9, 8, 8, dtype="f32")
    with pytest.raises(KernelError, match="one type and layout"):
        _kernels().neighbourhood((hidden, hidden, values), values, 3)
    with pytest.raises(KernelError, match="D channels in both projections"):
        _kernels().additive(hidden, (hidden, hidden, _array(4, 5)), hidden, 0.0)


def test_a_narrow_image_takes_the_narrow_tile() -> None:
    assert [choose_tile(512).width, choose_tile(20).width, choose_tile(64, dilation=4).width] == [32, 16, 16]
    assert block_count((1, 1, 16, 32), 2, 1, TILES[0]) == 1
    assert block_count((3, 1, 17, 33), 2, 1, TILES[0]) == 3 * 2 * 2


class _Counting:
    """A compiler that counts, in place of one that takes seconds."""

    def __init__(self) -> None:
        self.compiled = 0

    def row(self, version: str = "1") -> binaries.Compiler:
        def compile_(compilation: nvcc.Compilation) -> bytes:
            time.sleep(0.05)
            self.compiled += 1
            return b"binary of " + compilation.source.read_bytes()

        return binaries.Compiler("counting", lambda: None, lambda: version, compile_)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.cu"
    path.write_text("one")
    return path


def test_a_binary_is_compiled_once_and_again_when_anything_that_made_it_changes(source: Path, tmp_path: Path) -> None:
    counting, cache = _Counting(), tmp_path / "cache"
    wanted = nvcc.Compilation(source, "sm_86")

    def compiled(compilation: nvcc.Compilation = wanted, version: str = "1") -> int:
        binaries.cached_binary(counting.row(version), compilation, cache)
        return counting.compiled

    assert [compiled(), compiled()] == [1, 1]
    kept = next(cache.iterdir())
    kept.write_bytes(kept.read_bytes()[:-1])
    assert [compiled(), compiled()] == [2, 2]
    assert compiled(version="2") == 3
    assert compiled(nvcc.Compilation(source, "sm_90")) == 4
    assert compiled(nvcc.Compilation(source, "sm_86", {"A": 1})) == 5
    source.with_name("tile.cuh").write_text("header")
    assert compiled() == 6
    source.write_text("two")
    assert compiled() == 7


def test_writers_at_the_same_time_leave_one_whole_file(source: Path, tmp_path: Path) -> None:
    wanted, cache, counting = nvcc.Compilation(source, "sm_86"), tmp_path / "cache", _Counting()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: binaries.cached_binary(counting.row(), wanted, cache), range(4)))
    assert results == [b"binary of one"] * 4
    assert len(list(cache.iterdir())) == 1


def test_a_release_needs_no_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "COMPILERS", ())
    wanted = nvcc.Compilation(source, "sm_86", {"TILE": 3})
    (tmp_path / binaries.released_name(wanted)).write_bytes(b"fatbin")
    assert binaries.module_binary(wanted, {"ONLY": 1}, tmp_path / "cache", tmp_path) == (b"fatbin", "release")


def test_without_a_release_the_first_compiler_that_runs_makes_only_what_is_wanted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = binaries.Compiler("absent", lambda: "no absent", lambda: "", lambda _: b"")
    made: list[nvcc.Compilation] = []
    present = binaries.Compiler("present", lambda: None, lambda: "1", lambda c: made.append(c) or b"x")  # type: ignore[func-returns-value]
    monkeypatch.setattr(binaries, "COMPILERS", (absent, present))
    wanted = nvcc.Compilation(source, "sm_86", {"TILE": 3})
    assert binaries.module_binary(wanted, {"ONLY": 1}, tmp_path / "cache", tmp_path) == (b"x", "present")
    assert made[0].definitions == {"TILE": 3, "ONLY": 1}
    monkeypatch.setattr(binaries, "COMPILERS", (absent,))
    with pytest.raises(KernelError, match=r"no fatbin of kernel.cu in this installation, and no compiler: no absent"):
        binaries.module_binary(wanted, {}, tmp_path / "cache", tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("the fake compiler is a shell script")
    program = tmp_path / "nvcc"
    program.write_text("#!/bin/sh\necho 'kernel.cu(1): error: no' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(KernelError, match=r"kernel.cu\(1\): error: no"):
        nvcc.compile_source(program, nvcc.Compilation(tmp_path / "kernel.cu", "sm_86"))
