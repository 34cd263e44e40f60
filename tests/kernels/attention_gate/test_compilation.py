"""attention_gate.cu by nvcc for every architecture of a release: it compiles, spills nothing and stays small."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from unetx_kernels.attention_gate import reference
from unetx_kernels.nvcc import ARCHITECTURES, Compilation, compile_source, find_nvcc, read_resources

KERNELS = Path(reference.__file__).with_name("attention_gate.cu")
NAMES = {
    f"{gate}_{dtype}_{layout}{window}"
    for dtype in ("f32", "f16")
    for layout in ("nchw", "nhwc")
    for gate, windows in (("neighbourhood_gate", ("_k3", "_k5", "_k7")), ("additive_gate", ("",)))
    for window in windows
}
# 65536 registers of a multiprocessor / 256 threads of a block / 128 registers: two blocks run at once. Turing
# and later have at least 64 KiB of shared memory there.
MOST_REGISTERS = 128
MOST_SHARED_BYTES = 24 * 1024
#: Registers are the compiler's choice: the bounds were met, and hold, for this release.
BOUNDED_RELEASE = "13.0"


@pytest.fixture(scope="module")
def nvcc() -> Path:
    found = find_nvcc()
    if found is None:
        pytest.skip("needs nvcc: a CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    return found


@pytest.fixture(scope="module")
def ptx(nvcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, _ = compile_source(nvcc, Compilation(KERNELS, "compute_75"))
    path = tmp_path_factory.mktemp("ptx") / "attention_gate.ptx"
    path.write_bytes(code)
    return path


def test_the_portable_code_holds_every_kernel(ptx: Path) -> None:
    text = ptx.read_text()
    assert {name for name in NAMES if f".entry {name}(" in text} == NAMES


# From the portable code, which is what a driver would do; the C++ front end is then paid for once.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("sm_")])
def test_no_kernel_spills_or_takes_more_than_half_a_multiprocessor(nvcc: Path, ptx: Path, architecture: str) -> None:
    _, report = compile_source(nvcc, Compilation(ptx, architecture))
    resources = read_resources(report)
    assert set(resources) == NAMES
    version = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    if f"release {BOUNDED_RELEASE}," not in version:
        pytest.skip(f"it compiles; the bounds are for nvcc {BOUNDED_RELEASE}, this is another release")
    for name, taken in sorted(resources.items()):
        print(architecture, name, taken)  # shown by pytest -rP
        assert taken.spill_bytes == 0, name
        assert taken.registers <= MOST_REGISTERS, name
        assert taken.shared_bytes <= MOST_SHARED_BYTES, name
