"""The release command: a fatbin by the real nvcc, the bounds that it holds kernels to, and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetx_kernels import release
from unetx_kernels.binaries import module_binary, released_name
from unetx_kernels.nvcc import Compilation, Resources, find_nvcc, packaged_nvcc

FATBIN_MAGIC = bytes.fromhex("50ed55ba")


def test_a_fatbin_holds_code_for_each_gpu_and_is_found_at_run_time(tmp_path: Path) -> None:
    nvcc = packaged_nvcc() or find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: a CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    module = release.release_modules()[-1]
    taken = release.write_fatbin(nvcc, module, tmp_path, ("sm_75", "sm_90", "compute_75"))
    kernels = {"crf_start", "crf_smooth_rows", "crf_splat", "crf_blur_nodes", "crf_scale", "crf_update"}
    assert {architecture: set(found) for architecture, found in taken.items()} == {
        "sm_75": kernels,
        "sm_90": kernels,
        "compute_75": set(),
    }
    assert all(resources.spill_bytes == 0 for found in taken.values() for resources in found.values())
    wanted = Compilation(module.source, "sm_90", module.definitions)
    binary, origin = module_binary(wanted, {}, tmp_path / "cache", tmp_path)
    assert origin == "release"
    assert binary.startswith(FATBIN_MAGIC)
    assert binary.count(b"\x7fELF") == 2
    assert [path.name for path in tmp_path.iterdir()] == [released_name(module)]


def test_without_nvcc_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(release, "packaged_nvcc", lambda: None)
    monkeypatch.setattr(release, "find_nvcc", lambda: None)
    assert release.main(["-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: no nvcc: run pip install nvidia-cuda-nvcc nvidia-cuda-cccl\n"
    assert not (tmp_path / "out").exists()


def test_a_kernel_that_spills_stops_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {"sm_75": {"gate_k3": Resources(8, 0, 4)}}
    monkeypatch.setattr(release, "packaged_nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setattr(release, "write_fatbin", lambda *arguments: taken)
    assert release.main(["-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: sm_75: gate_k3 takes 4 spilled bytes, expected at most 0\n"


def test_the_record_names_what_every_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"sm_75": {"gate_k3": Resources(40, 9792, 0)}, "compute_75": {}}
    monkeypatch.setattr(release, "packaged_nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setattr(release, "write_fatbin", lambda *arguments: taken)
    monkeypatch.setattr(release, "nvcc_version", lambda nvcc: "nvcc\nBuild 13.5\n")
    assert release.main(["-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / release.RECORD_NAME).read_text())
    names = {released_name(module) for module in release.release_modules()}
    assert record == {
        "nvcc": "Build 13.5",
        "modules": {name: {"sm_75": {"gate_k3": [40, 9792, 0]}} for name in names},
    }
