"""attention_gate.cu as it stands, on the host with address and undefined-behaviour sanitizers, against float64."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetx_kernels.attention_gate import reference

TILE = (8, 2)  # threads of a block along x and y; small, so that small images have several tiles
SHIM = Path(__file__).resolve().parents[1] / "shim" / "attention_gate_on_host.cpp"
KERNELS = Path(reference.__file__).with_name("attention_gate.cu")
ROWS = {3: 2, 5: 1, 7: 1}  # pixels of a thread, by window


@dataclass(frozen=True)
class Case:
    window: int  # 0: the additive gate
    images: int
    hidden: int
    channels: int
    height: int
    width: int
    dilation: int = 1
    residual: bool = False
    shift: int = 0
    coarse: tuple[int, int] = (1, 1)


CASES = {
    "one pixel": Case(7, 1, 1, 1, 1, 1),
    "smaller than the window": Case(7, 1, 3, 2, 2, 3),
    "one row": Case(3, 2, 2, 9, 1, 19),
    "odd sides, odd channels": Case(5, 2, 5, 3, 7, 11, residual=True),
    "whole vectors": Case(3, 1, 8, 16, 6, 16, residual=True),
    "whole vectors, window 7": Case(7, 1, 9, 8, 5, 24),
    "whole vectors off 16 bytes": Case(5, 1, 8, 8, 5, 16, residual=True, shift=1),
    "dilation 2": Case(3, 1, 4, 5, 9, 17, dilation=2),
    "dilation beyond the image": Case(5, 1, 2, 3, 4, 5, dilation=6),
    "additive": Case(0, 2, 5, 3, 6, 10, residual=True, coarse=(3, 5)),
    "additive, odd ratio": Case(0, 1, 9, 8, 7, 9, coarse=(3, 4)),
    "additive, whole vectors": Case(0, 1, 16, 16, 4, 8, residual=True, coarse=(2, 4)),
    "additive off 16 bytes": Case(0, 1, 8, 8, 4, 8, shift=1, coarse=(2, 4)),
}
FORMATS = [
    pytest.param(np.float32, False, id="fp32-nchw"),
    pytest.param(np.float32, True, id="fp32-nhwc"),
    pytest.param(np.float16, False, id="fp16-nchw"),
    pytest.param(np.float16, True, id="fp16-nhwc"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ with its sanitizers")
    output = tmp_path_factory.mktemp("shim") / "gate"
    command = [compiler, "-std=c++17", "-O1", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-DUNETX_TILE_WIDTH={TILE[0]}", f"-DUNETX_TILE_HEIGHT={TILE[1]}", f'-DKERNEL_SOURCE="{KERNELS}"']
    done = subprocess.run([*command, str(SHIM), "-o", str(output)], capture_output=True, text=True, check=False)
    if "_Float16" in done.stderr or "lasan" in done.stderr or "lubsan" in done.stderr:
        pytest.skip(f"this g++ lacks _Float16 (12 or later has it) or the sanitizers: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return output


def _tensors(case: Case, dtype: Any) -> list[NDArray[Any]]:
    """Every tensor of a case in the order of the kernel's arguments, NCHW."""
    random = np.random.default_rng(case.height * 100 + case.width)
    fine, coarse = (case.height, case.width), case.coarse
    shapes: list[tuple[int, ...]] = [
        (case.images, case.hidden, *fine),
        (case.images, case.hidden, *fine),
        (case.images, case.channels, *fine),
    ]
    if case.window == 0:
        shapes = [shapes[2], shapes[0], (case.images, case.hidden, *coarse), (case.hidden,)]
    if case.residual:
        shapes.append((case.images, case.channels, *fine))
    return [random.normal(size=shape).astype(dtype) for shape in shapes]


def _blocks(case: Case) -> int:
    if case.window == 0:
        return math.ceil(case.images * case.height * case.width / (TILE[0] * TILE[1]))
    down = math.ceil(math.ceil(case.height / case.dilation) / (TILE[1] * ROWS[case.window]))
    across = math.ceil(math.ceil(case.width / case.dilation) / TILE[0])
    return down * across * case.dilation**2 * case.images


def _run(
    program: Path, case: Case, dtype: Any, channels_last: bool, defect: int = 0
) -> tuple[subprocess.CompletedProcess[bytes], NDArray[Any]]:
    tensors = _tensors(case, dtype)
    header = struct.pack(
        "<15if",
        int(case.window == 0),
        int(dtype is np.float16),
        int(channels_last),
        case.window,
        case.images,
        case.hidden,
        case.channels,
        case.height,
        case.width,
        case.dilation,
        *case.coarse,
        int(case.residual),
        case.shift,
        _blocks(case) + 1,  # a block too many has nothing to do and must not touch anything
        0.25 if case.window == 0 else 1 / math.sqrt(case.hidden),
    )
    stored = [np.moveaxis(t, 1, -1) if channels_last and t.ndim == 4 else t for t in tensors]
    done = subprocess.run(
        [program, str(defect)],
        input=header + b"".join(np.ascontiguousarray(t).tobytes() for t in stored),
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    if done.returncode != 0:
        return done, np.empty(0)
    flat = np.frombuffer(done.stdout, dtype=dtype)
    shape = (case.images, case.channels, case.height, case.width)
    if channels_last:
        return done, np.moveaxis(flat.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return done, flat.reshape(shape)


def _expected(case: Case, tensors: list[NDArray[Any]]) -> NDArray[np.float64]:
    residual = tensors[-1] if case.residual else None
    if case.window == 0:
        return reference.additive_gate(*tensors[:4], psi_bias=0.25, residual=residual)
    return reference.neighbourhood_gate(*tensors[:3], case.window, dilation=case.dilation, residual=residual)


def _plain(case: Case, tensors: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """The gate one operation at a time, each result rounded to `dtype`, as a framework without fusion runs it."""
    residual = tensors[-1] if case.residual else np.zeros_like(tensors[2 if case.window else 0])
    if case.window == 0:
        values, skip, coarse, psi = tensors[:4]
        upsampled = reference.upsample_bilinear(coarse, case.height, case.width).astype(dtype)
        features = np.maximum(skip + upsampled, dtype(0))
        score = np.einsum("d,ndhw->nhw", psi.astype(np.float32), features.astype(np.float32)).astype(dtype)
        weight = dtype(1) / (dtype(1) + np.exp(-(score + dtype(0.25))))
        return weight[:, None] * values + residual
    theta, phi, values = tensors[:3]
    reach = case.window // 2 * case.dilation
    margins = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    phi, shifted, inside = np.pad(phi, margins), np.pad(values, margins), np.pad(np.ones_like(values), margins)
    steps = [(y * case.dilation, x * case.dilation) for y in range(case.window) for x in range(case.window)]
    windows = [np.s_[:, :, y : y + case.height, x : x + case.width] for y, x in steps]
    scale = dtype(1 / math.sqrt(case.hidden))
    scores = np.stack([np.where(inside[w][:, 0] > 0, (theta * phi[w]).sum(1) * scale, -np.inf) for w in windows])
    weights = np.exp((scores - scores.max(0)).astype(dtype))
    weights = weights / weights.sum(0)
    attended = np.zeros_like(values)
    for weight, window in zip(weights, windows, strict=True):
        attended = attended + weight[:, None] * shifted[window]
    return attended + residual


@pytest.mark.parametrize(("dtype", "channels_last"), FORMATS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_kernel_errs_at_most_twice_as_much_as_plain_operations(
    program: Path, case: Case, dtype: Any, channels_last: bool
) -> None:
    done, fused = _run(program, case, dtype, channels_last)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    tensors = _tensors(case, dtype)
    expected = _expected(case, tensors)
    fused_error = np.abs(fused - expected).max()
    plain_error = np.abs(_plain(case, tensors, dtype).astype(np.float64) - expected).max()
    assert fused_error <= 2 * plain_error + np.finfo(dtype).eps * np.abs(expected).max()


# Two chunks of channels and two tiles, so that a defect between chunks or at an inner border has its chance.
DEFECTIVE = Case(3, 1, 9, 9, 5, 11)


@pytest.mark.parametrize("defect", [1, 2], ids=["before the tile is read", "before the tile is overwritten"])
def test_a_planted_missing_barrier_is_found(program: Path, defect: int) -> None:
    done, fused = _run(program, DEFECTIVE, np.float32, False, defect)
    assert done.returncode == 0
    assert np.abs(fused - _expected(DEFECTIVE, _tensors(DEFECTIVE, np.float32))).max() > 0.01


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_planted_read_beyond_the_tensor_is_found(program: Path, channels_last: bool) -> None:
    case = dataclasses.replace(DEFECTIVE, hidden=1)
    done, _ = _run(program, case, np.float32, channels_last, 3)
    assert done.returncode != 0
    assert b"AddressSanitizer: heap-buffer-overflow" in done.stderr
