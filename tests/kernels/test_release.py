"""The release command with the real nvcc, and the record of the last release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetx_kernels import release
from unetx_kernels.binaries import module_binary, released_name
from unetx_kernels.nvcc import ARCHITECTURES, Compilation, find_nvcc, packaged_nvcc

RECORD = Path(__file__).with_name("golden") / "resources.json"
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


def test_the_recorded_release_is_of_these_sources_and_within_bounds() -> None:
    """Written by ``python -m unetx_kernels.release``; a changed source needs a new record."""
    record = json.loads(RECORD.read_text())
    assert set(record["modules"]) == {released_name(module) for module in release.release_modules()}
    machine_code = {name for name in ARCHITECTURES if name.startswith("sm_")}
    for module, architectures in record["modules"].items():
        assert set(architectures) == machine_code
        for architecture, kernels in architectures.items():
            for name, (registers, shared_bytes, spill_bytes) in kernels.items():
                where = (module, architecture, name)
                # 65536 registers / 256 threads / 128: two blocks run at once; the widest backward pass: one.
                assert registers <= (255 if "gradient" in name and name.endswith("_k7") else 128), where
                assert shared_bytes <= 24 * 1024, where
                assert spill_bytes == 0, where
