"""The gates by nvcc: they compile, spill nothing and stay small, from the oldest GPU to the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetx_kernels.attention_gate.launch import BACKWARD_SOURCE, FORWARD_SOURCE
from unetx_kernels.nvcc import Compilation, compile_source, find_nvcc, packaged_nvcc, read_resources

FORMATS = [f"{dtype}_{layout}" for dtype in ("f32", "f16") for layout in ("nchw", "nhwc")]
NAMES = {
    FORWARD_SOURCE: {f"neighbourhood_gate_{form}_k{k}" for form in FORMATS for k in (3, 5, 7)}
    | {f"additive_gate_{form}" for form in FORMATS},
    BACKWARD_SOURCE: {
        f"neighbourhood_{side}_gradient_{form}_k{k}"
        for form in FORMATS
        for k in (3, 5, 7)
        for side in ("query", "key")
    },
}


@pytest.mark.parametrize(
    ("source", "architecture"),
    [(FORWARD_SOURCE, "sm_75"), (FORWARD_SOURCE, "sm_121"), (BACKWARD_SOURCE, "sm_75")],
    ids=["forward sm_75", "forward sm_121", "backward sm_75"],
)
def test_every_kernel_compiles_without_spilling(source: Path, architecture: str) -> None:
    # The package's is pinned, so that the compiler's choices are the same everywhere.
    nvcc = packaged_nvcc() or find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: a CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    _, report = compile_source(nvcc, Compilation(source, architecture))
    resources = read_resources(report)
    assert set(resources) == NAMES[source]
    for name, taken in sorted(resources.items()):
        print(architecture, name, taken)  # shown by pytest -rP
        if nvcc == packaged_nvcc():
            # 65536 registers of a multiprocessor / 256 threads / 128: two blocks run at once; window 7 backward: one.
            most_registers = 255 if "gradient" in name and name.endswith("_k7") else 128
            assert taken.spill_bytes == 0, name
            assert taken.registers <= most_registers, name
            assert taken.shared_bytes <= 24 * 1024, name
