"""The gate that walks down strips: on the host with sanitizers, against float64; which images its launcher takes."""

from __future__ import annotations

import itertools
import math
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetx_kernels.attention_gate import reference, strips
from unetx_kernels.attention_gate.plain import attend_by_taps
from unetx_kernels.driver import DeviceArray

torch = pytest.importorskip("torch", reason="plain PyTorch is what the kernel's errors are compared with")

#: Two warps across, and few channels at once, so that small images have several strips, groups and products.
NARROW = strips.Strip(32, 32, 1)
H100 = (132, 228 * 1024)


@dataclass(frozen=True)
class Case:
    window: int
    images: int
    hidden: int
    channels: int
    height: int
    width: int
    rows: int
    group: int
    residual: bool = False

    def tensors(self) -> list[NDArray[Any]]:
        random = np.random.default_rng(self.height * 100 + self.width)
        pixels = (self.height, self.width)
        depths = [self.hidden, self.hidden, self.channels] + [self.channels] * self.residual
        return [random.normal(size=(self.images, depth, *pixels)).astype(np.float16) for depth in depths]


CASES = {
    "one strip, one step": Case(5, 1, 16, 16, 2, 32, 2, 16),
    "one row of one channel": Case(3, 1, 1, 1, 1, 8, 2, 16),
    "more steps than the ring has rows": Case(5, 1, 16, 16, 23, 24, 24, 16),
    "odd channels in two groups, strips that end within the image": Case(5, 2, 5, 19, 13, 40, 6, 16, residual=True),
    "phi in two products, values in two": Case(3, 1, 20, 32, 9, 72, 4, 32, residual=True),
    "a last group of one channel": Case(5, 1, 17, 33, 7, 32, 4, 32),
}
SHAPES = st.builds(
    Case,
    window=st.sampled_from([3, 5]),
    images=st.integers(1, 2),
    hidden=st.integers(1, 34),
    channels=st.integers(1, 50),
    height=st.integers(1, 12),
    width=st.integers(1, 9).map(lambda eighths: 8 * eighths),
    rows=st.sampled_from([2, 4, 6, 12]),
    group=st.sampled_from([16, 32]),
    residual=st.booleans(),
)


class HostStrips:
    def __init__(self, program: Path) -> None:
        self._program = program

    def run(
        self, case: Case, defect: int = 0, tensors: list[NDArray[Any]] | None = None
    ) -> tuple[subprocess.CompletedProcess[bytes], Any]:
        """Run a case, with its own tensors or with those given."""
        grid = (
            math.ceil(case.width / NARROW.width),
            math.ceil(case.height / case.rows),
            math.ceil(case.channels / case.group) * case.images,
        )
        shared = NARROW.shared_bytes(case.hidden, case.group, case.window)
        numbers = (case.window, case.images, case.hidden, case.channels, case.height, case.width, case.residual)
        data = struct.pack("<13if", *numbers, case.rows, case.group, *grid, shared, 1 / math.sqrt(case.hidden))
        data += b"".join(tensor.tobytes() for tensor in tensors or case.tensors())
        command = [self._program, str(defect)]
        environment = {"ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False, env=environment)
        shape = (case.images, case.channels, case.height, case.width)
        found = np.frombuffer(done.stdout, dtype=np.float16).reshape(shape) if done.returncode == 0 else None
        return done, found


@pytest.fixture(scope="session")
def host_strips(compile_on_host: Callable[[str, Mapping[str, object]], Path]) -> HostStrips:
    macros: dict[str, object] = {**NARROW.macros, "STRIPS_SOURCE": f'"{strips.SOURCE}"'}
    return HostStrips(compile_on_host("strips_on_host.cpp", macros))


def _expected(case: Case) -> NDArray[np.float64]:
    theta, phi, values, *residual = case.tensors()
    added = residual[0] if residual else None
    return reference.neighbourhood_gate(theta, phi, values, case.window, residual=added)


def _check(host_strips: HostStrips, case: Case) -> None:
    done, found = host_strips.run(case)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    theta, phi, values, *residual = (torch.from_numpy(tensor) for tensor in case.tensors())
    plain = attend_by_taps(theta, phi, values, residual[0] if residual else None, case.window, 1)
    expected = _expected(case)
    error, plain_error = np.abs(found - expected).max(), np.abs(plain.double().numpy() - expected).max()
    assert error <= 2 * plain_error + np.finfo(np.float16).eps * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_strips_err_at_most_twice_as_much_as_plain_pytorch(host_strips: HostStrips, case: Case) -> None:
    _check(host_strips, case)


@settings(max_examples=30)
@given(case=SHAPES)
def test_the_bound_holds_for_any_shape_and_any_division_into_blocks(host_strips: HostStrips, case: Case) -> None:
    _check(host_strips, case)


def test_a_neighbour_beside_the_window_is_not_seen_even_where_it_is_not_a_number(host_strips: HostStrips) -> None:
    case = Case(5, 1, 4, 16, 8, 32, 8, 16)
    theta, phi, values = case.tensors()
    phi[0, :, 4, 16] = np.nan
    done, found = host_strips.run(case, tensors=[theta, phi, values])
    assert done.returncode == 0
    seen = np.zeros((8, 32), dtype=bool)
    seen[2:7, 14:19] = True
    assert np.array_equal(np.isnan(found[0]).all(0), seen)
    assert np.array_equal(np.isnan(found[0]).any(0), seen)


@pytest.mark.parametrize("defect", [1, 4], ids=["no barrier", "copies that are not waited for"])
def test_a_planted_defect_is_found(host_strips: HostStrips, defect: int) -> None:
    case = CASES["more steps than the ring has rows"]
    done, found = host_strips.run(case, defect)
    assert done.returncode == 0
    assert not np.abs(found - _expected(case)).max() < 0.01


def test_a_planted_read_beyond_the_tensor_is_found(host_strips: HostStrips) -> None:
    done, _ = host_strips.run(CASES["more steps than the ring has rows"], 3)
    assert done.returncode != 0
    assert b"AddressSanitizer: heap-buffer-overflow" in done.stderr


def _arrays(images: int, channels: int, height: int, width: int, pointer: int = 256) -> tuple[DeviceArray, ...]:
    hidden = DeviceArray(pointer, (images, max(1, channels // 4), height, width), "f16")
    values = DeviceArray(pointer, (images, channels, height, width), "f16")
    return hidden, hidden, values, values


@pytest.mark.parametrize(
    ("shape", "window"),
    list(itertools.product([(1, 64, 256, 256), (8, 64, 512, 512), (1, 64, 512, 512)], [3, 5])),
    ids=str,
)
def test_blocks_cover_every_row_and_fill_the_gpu_once(shape: tuple[int, int, int, int], window: int) -> None:
    plan = strips.plan_strips(_arrays(*shape), window, H100)
    assert plan is not None
    images, channels, height, width = shape
    across, down, of_images = plan.grid
    assert across * plan.strip.width >= width
    assert height <= down * plan.rows < height + plan.rows
    assert of_images * plan.group >= images * channels
    assert across * down * of_images <= H100[0] * plan.strip.blocks
    assert plan.shared_bytes + 1024 <= H100[1] // plan.strip.blocks


@pytest.mark.parametrize(
    ("arrays", "window", "memory"),
    [
        (_arrays(1, 64, 256, 252), 5, H100),
        (_arrays(1, 64, 256, 64), 5, H100),
        (_arrays(1, 64, 256, 256, pointer=264), 5, H100),
        (_arrays(1, 64, 256, 256), 7, H100),
        (_arrays(1, 64, 256, 256), 5, (108, 164 * 1024)),
        (_arrays(1, 256, 256, 256), 5, H100),
        (_arrays(65536, 1, 1, 128), 3, H100),
    ],
    ids=[
        "rows off 16 bytes",
        "narrower than a strip",
        "pointer off 16 bytes",
        "window 7",
        "a GPU with less shared memory",
        "more of phi than shared memory holds",
        "more images than a grid has blocks",
    ],
)
def test_strips_are_not_taken_where_they_do_not_fit(
    arrays: tuple[DeviceArray, ...], window: int, memory: tuple[int, int]
) -> None:
    assert strips.plan_strips(arrays, window, memory) is None
