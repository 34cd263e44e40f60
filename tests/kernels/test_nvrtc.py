"""NVRTC on this host compiles the sources as they stand; it needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetx_kernels import nvrtc
from unetx_kernels.attention_gate.launch import BACKWARD_SOURCE, FORWARD_SOURCE
from unetx_kernels.attention_gate.strips import SOURCE as STRIPS_SOURCE
from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation


@pytest.fixture(autouse=True)
def _compiler() -> None:
    reason = nvrtc.why_not_nvrtc()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("source", "architecture", "window", "names"),
    [
        (FORWARD_SOURCE, "compute_75", 5, ["neighbourhood_gate_f16_nchw_k5"]),
        (FORWARD_SOURCE, "compute_75", 0, ["additive_gate_f16_nchw"]),
        (STRIPS_SOURCE, "compute_90", 5, ["neighbourhood_gate_strips_k5"]),
        (
            BACKWARD_SOURCE,
            "compute_75",
            3,
            ["neighbourhood_query_gradient_f16_nchw_k3", "neighbourhood_key_gradient_f16_nchw_k3"],
        ),
    ],
    ids=["neighbourhood", "additive", "strips", "backward"],
)
def test_only_the_kernels_that_are_wanted_are_compiled(
    source: Path, architecture: str, window: int, names: list[str]
) -> None:
    macros = {"UNETX_FORMAT": 3, "UNETX_WINDOW": window}
    ptx = nvrtc.compile_at_run_time(Compilation(source, architecture, macros)).decode()
    assert sorted(line.split()[2].rstrip("(") for line in ptx.splitlines() if ".entry" in line) == sorted(names)


def test_a_gpu_takes_machine_code(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void zero(float* out) { out[threadIdx.x] = 0.0f; }')
    assert nvrtc.compile_at_run_time(Compilation(source, "sm_86")).startswith(b"\x7fELF")


def test_the_first_error_of_a_source_is_quoted(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void broken() { undeclared = 1; }")
    with pytest.raises(KernelError, match=r"cannot compile kernel.cu: kernel.cu\(1\): error: .*undeclared"):
        nvrtc.compile_at_run_time(Compilation(source, "sm_86"))
