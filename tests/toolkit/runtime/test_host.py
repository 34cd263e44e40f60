"""What the probe says about machines that are not this one."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.runtime import host as host_module
from unetx_opt.runtime.cuda_device import CudaDevice, probe_cuda_device
from unetx_opt.runtime.host import cpu_features_of, probe_host


class FakeDriver:
    """A CUDA driver that answers as told."""

    def __init__(self, version: int = 13020, init: int = 0, count: int = 1, name: int = 0) -> None:
        self.version, self.init, self.count, self.name = version, init, count, name

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        return 0 if ordinal < self.count else 101

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA Test"
        return self.name

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0


def _missing(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(), CudaDevice("13.2", "NVIDIA Test", "8.6")),
        (FakeDriver(version=12040), CudaDevice("12.4", "NVIDIA Test", "8.6")),
        (FakeDriver(init=100), CudaDevice("13.2")),
        (FakeDriver(count=0), CudaDevice("13.2")),
        (FakeDriver(name=1), CudaDevice("13.2")),
        (FakeDriver(version=0, init=3), CudaDevice()),
        (object(), CudaDevice()),
    ],
    ids=["works", "older", "no device", "none visible", "fails later", "uninitialised", "a stub"],
)
def test_the_driver_is_asked_for_its_first_device(driver: Any, expected: CudaDevice) -> None:
    assert probe_cuda_device(lambda name: driver) == expected


def test_without_a_driver_there_is_no_device() -> None:
    assert probe_cuda_device(_missing) == CudaDevice()


def test_this_machine_can_be_probed() -> None:
    host = probe_host()
    assert (host.system, host.machine) == (platform.system(), platform.machine())
    assert probe_cuda_device(ctypes.CDLL).gpu == host.gpu
    if "onnxruntime" in host.packages:
        assert "CPUExecutionProvider" in host.onnxruntime_providers
        assert host.packages["onnxruntime"][0].isdigit()


def test_torch_is_listed_but_not_imported() -> None:
    before = "torch" in sys.modules
    probe_host()
    assert ("torch" in sys.modules) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu AVX2 avx512_bf16\n\nflags\t\t: other\n", {"fpu", "avx2", "avx512_bf16"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("cpu\t: POWER10\n", set()),
        ("", set()),
    ],
    ids=["x86", "Arm", "other", "empty"],
)
def test_cpu_flags_are_those_of_the_first_processor(text: str, expected: set[str]) -> None:
    assert cpu_features_of(text.splitlines()) == expected


def test_a_broken_onnxruntime_is_a_host_without_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str, *, purpose: str) -> Any:
        raise RuntimeError("DLL load failed")

    monkeypatch.setattr(host_module, "require", broken)
    assert probe_host().onnxruntime_providers == ()


def test_elsewhere_openvino_tells_what_the_cpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "BF16", "INT8"]

    class Module:
        Core: Any

    Module.Core = Core
    monkeypatch.setattr(host_module.platform, "system", lambda: "Windows")
    monkeypatch.setattr(host_module, "require", lambda module, *, purpose: Module)
    assert host_module._cpu_features({"openvino": "2026"}) == {"bf16"}
    assert host_module._cpu_features({}) == frozenset()


def test_of_two_distributions_of_a_module_the_one_that_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, distribution, version in (("near", "onnxruntime_gpu", "9.1"), ("far", "onnxruntime", "9.2")):
        information = tmp_path / place / f"{distribution}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (tmp_path / place / "onnxruntime").mkdir()
        (tmp_path / place / "onnxruntime" / "__init__.py").write_text("def get_available_providers(): return []\n")
        monkeypatch.syspath_prepend(str(tmp_path / place))
    monkeypatch.syspath_prepend(str(tmp_path / "near"))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert probe_host().packages["onnxruntime"] == "9.1"
    # Once it is imported, it says itself what it is: two in one place have written over each other.
    monkeypatch.setattr(sys.modules["onnxruntime"], "__version__", "9.3", raising=False)
    assert probe_host().packages["onnxruntime"] == "9.3"
