"""The gates by nvcc: they compile, spill nothing and stay small, from the oldest GPU to the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetx_kernels.attention_gate import strips
from unetx_kernels.attention_gate.launch import BACKWARD_SOURCE, FORWARD_SOURCE
from unetx_kernels.attention_gate.tiles import MATRIX_TILES, Tile, tile_macros
from unetx_kernels.nvcc import (
    ARCHITECTURES,
    Compilation,
    Resources,
    breach,
    compile_source,
    find_nvcc,
    packaged_nvcc,
    read_resources,
)

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
            assert breach(name, taken) is None


# The widest kernels with their front end paid for once, for each architecture; the release command does all of them.
@pytest.mark.parametrize("source", [FORWARD_SOURCE, BACKWARD_SOURCE], ids=["forward", "backward"])
def test_the_widest_kernels_keep_their_bounds_on_every_architecture(source: Path, tmp_path: Path) -> None:
    nvcc = packaged_nvcc()
    if nvcc is None:
        pytest.skip("needs the pinned compiler: pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    code, _ = compile_source(nvcc, Compilation(source, "compute_75", {"UNETX_FORMAT": 3, "UNETX_WINDOW": 7}))
    portable = tmp_path / "widest.ptx"
    portable.write_bytes(code)
    for architecture in (name for name in ARCHITECTURES if name.startswith("sm_")):
        _, report = compile_source(nvcc, Compilation(portable, architecture))
        resources = read_resources(report)
        assert resources
        for name, taken in resources.items():
            print(architecture, name, taken)  # shown by pytest -rP
            assert breach(name, taken) is None, architecture


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_100", "sm_120"])
def test_strips_spill_nothing_and_let_their_threads_stay_together(architecture: str) -> None:
    nvcc = packaged_nvcc()
    if nvcc is None:
        pytest.skip("needs the pinned compiler: pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    _, report = compile_source(nvcc, Compilation(strips.SOURCE, architecture, strips.STRIP.macros))
    resources = read_resources(report)
    assert set(resources) == {f"neighbourhood_gate_strips_k{window}" for window in strips.STRIP.windows}
    for name, taken in resources.items():
        print(architecture, name, taken)  # shown by pytest -rP
        assert breach(name, taken) is None
        assert taken.registers * strips.STRIP.threads * strips.STRIP.blocks <= 65536


@pytest.mark.parametrize("tile", MATRIX_TILES, ids=lambda tile: f"{tile.width}x{tile.height}")
def test_the_tiles_of_the_fp16_gate_spill_nothing_in_nhwc(tile: Tile) -> None:
    nvcc = packaged_nvcc()
    if nvcc is None:
        pytest.skip("needs the pinned compiler: pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    macros = {**tile_macros(tile), "UNETX_FORMAT": 4, "UNETX_WINDOW": 5}
    _, report = compile_source(nvcc, Compilation(FORWARD_SOURCE, "sm_90", macros))
    resources = read_resources(report)
    assert resources
    for name, taken in resources.items():
        assert breach(name, taken) is None


def test_a_kernel_that_spills_or_grows_is_named() -> None:
    assert breach("gate_k5", Resources(128, 0, 0)) is None
    assert breach("gate_k5", Resources(129, 0, 0)) == "gate_k5 takes 129 registers, expected at most 128"
    assert breach("key_gradient_k7", Resources(200, 0, 0)) is None
    assert breach("gate_k3", Resources(8, 0, 4)) == "gate_k3 takes 4 spilled bytes, expected at most 0"
    assert breach("gate_k3", Resources(8, 30000, 0)) == "gate_k3 takes 30000 shared bytes, expected at most 24576"
