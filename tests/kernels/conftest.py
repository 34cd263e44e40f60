"""The CUDA sources as programs for this host, compiled once with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetx_kernels.attention_gate import launch, tiles
from unetx_kernels.dense_crf import launch as crf_launch
from unetx_kernels.dense_crf.plan import CrfPlan

TILE = (16, 4)  # threads of a block along x and y: two warps; small, so that small images have several tiles
SHIM = Path(__file__).with_name("shim")
KERNELS = ("crf_start", "crf_smooth_rows", "crf_splat", "crf_blur_nodes", "crf_scale", "crf_update")
COMMAND = ("-std=c++17", "-O1", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class GateCase:
    """One call of a kernel. window 0 is the additive gate; shift puts every pointer off a 16-byte border."""

    window: int
    images: int
    hidden: int
    channels: int
    height: int
    width: int
    dilation: int = 1
    residual: bool = False
    shift: int = 0
    coarse: tuple[int, int] = (1, 1)
    half: bool = False
    channels_last: bool = False
    psi_bias: float = 0.25

    @property
    def dtype(self) -> Any:
        return np.float16 if self.half else np.float32

    def tensors(self, *, gradient: bool = False) -> list[NDArray[Any]]:
        """Every tensor in the order of the kernel's arguments, NCHW; the last may be residual or gradient."""
        random = np.random.default_rng(self.height * 100 + self.width)
        hidden = (self.images, self.hidden, self.height, self.width)
        values = (self.images, self.channels, self.height, self.width)
        shapes: list[tuple[int, ...]] = [hidden, hidden, values]
        if self.window == 0:
            shapes = [values, hidden, (self.images, self.hidden, *self.coarse), (self.hidden,)]
        if self.residual or gradient:
            shapes.append(values)
        return [random.normal(size=shape).astype(self.dtype) for shape in shapes]


class HostGates:
    """The kernels of both gates on this host; test files are imported apart and find `GateCase` here."""

    case = GateCase

    def __init__(self, program: Path) -> None:
        self._program = program

    def forward(
        self, case: GateCase, defect: int = 0
    ) -> tuple[subprocess.CompletedProcess[bytes], NDArray[Any] | None]:
        rows = 1 if case.window == 0 else tiles.pixels_per_thread(case.window, half=case.half)
        done = self._run(case, int(case.window == 0), rows, case.tensors(), defect)
        return done, self._outputs(case, done, (case.channels,))[0] if done.returncode == 0 else None

    def gradients(
        self, case: GateCase, defect: int = 0
    ) -> tuple[subprocess.CompletedProcess[bytes], list[NDArray[Any]]]:
        done = self._run(case, 2, 1, case.tensors(gradient=True), defect)
        channels = (case.hidden, case.hidden, case.channels)
        return done, self._outputs(case, done, channels) if done.returncode == 0 else []

    def _run(
        self, case: GateCase, kind: int, rows: int, tensors: list[NDArray[Any]], defect: int
    ) -> subprocess.CompletedProcess[bytes]:
        down = math.ceil(math.ceil(case.height / case.dilation) / (TILE[1] * rows))
        across = math.ceil(math.ceil(case.width / case.dilation) / TILE[0])
        blocks = down * across * case.dilation**2 * case.images
        if kind == 1:
            blocks = math.ceil(case.images * case.height * case.width / (TILE[0] * TILE[1]))
        numbers = (kind, case.half, case.channels_last, case.window, case.images, case.hidden, case.channels)
        numbers += (case.height, case.width, case.dilation, *case.coarse, case.residual, case.shift)
        # A block too many has nothing to do and must not touch anything.
        scale = case.psi_bias if kind == 1 else 1 / math.sqrt(case.hidden)
        header = struct.pack("<15if", *map(int, numbers), blocks + 1, scale)
        stored = [np.moveaxis(t, 1, -1) if case.channels_last and t.ndim == 4 else t for t in tensors]
        return run_program(
            self._program, header + b"".join(np.ascontiguousarray(t).tobytes() for t in stored), defect
        )

    @staticmethod
    def _outputs(
        case: GateCase, done: subprocess.CompletedProcess[bytes], channels: tuple[int, ...]
    ) -> list[NDArray[Any]]:
        pixels = case.images * case.height * case.width
        ends = np.cumsum([pixels * count for count in channels])
        parts = np.split(np.frombuffer(done.stdout, dtype=case.dtype), ends[:-1])
        if case.channels_last:
            shape = (case.images, case.height, case.width)
            return [np.moveaxis(p.reshape(*shape, c), -1, 1) for p, c in zip(parts, channels, strict=True)]
        size = (case.height, case.width)
        return [part.reshape(case.images, c, *size) for part, c in zip(parts, channels, strict=True)]


def run_program(program: Path, data: bytes, defect: int = 0) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, str(defect)],
        input=data,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )


@pytest.fixture(scope="session")
def compile_on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Mapping[str, object]], Path]:
    def compile_program(source: str, definitions: Mapping[str, object]) -> Path:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("needs g++ with its sanitizers")
        output = tmp_path_factory.mktemp("shim") / Path(source).stem
        macros = [f"-D{name}={value}" for name, value in definitions.items()]
        command = [compiler, *COMMAND, *macros, str(SHIM / source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "_Float16" in done.stderr or "lasan" in done.stderr or "lubsan" in done.stderr:
            pytest.skip(f"this g++ lacks _Float16 (12 or later) or the sanitizers: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        return output

    return compile_program


@pytest.fixture(scope="session")
def gates(compile_on_host: Callable[[str, Mapping[str, object]], Path]) -> HostGates:
    macros = {"UNETX_TILE_WIDTH": TILE[0], "UNETX_TILE_HEIGHT": TILE[1]}
    sources = {"FORWARD_SOURCE": launch.FORWARD_SOURCE, "BACKWARD_SOURCE": launch.BACKWARD_SOURCE}
    quoted = {name: f'"{path}"' for name, path in sources.items()}
    return HostGates(compile_on_host("attention_gate_on_host.cpp", macros | quoted))


class HostCrf:
    """The CRF's launches on this host."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def infer(
        self, logits: NDArray[Any], image: NDArray[Any], plan: CrfPlan, iterations: int, defect: int = 0
    ) -> tuple[subprocess.CompletedProcess[bytes], NDArray[np.float32] | None]:
        classes = len(logits)
        # What is not written before it is read shows as NaN.
        scratch = {
            name: np.full(length, np.nan, dtype=np.float32)
            for name, length in crf_launch.buffer_lengths(plan, classes).items()
        }
        given = {"probabilities": np.full_like(logits, np.nan), "logits": logits, "image": image}
        buffers = given | scratch | crf_launch.plan_arrays(plan)
        norms, inference = crf_launch.plan_launches(plan, classes, iterations)
        data = struct.pack("<i", len(buffers))
        data += b"".join(struct.pack("<q", array.nbytes) + array.tobytes() for array in buffers.values())
        data += struct.pack("<i", len(norms) + len(inference))
        numbers = {name: index for index, name in enumerate(buffers)}
        for step in (*norms, *inference):
            data += struct.pack("<4i", KERNELS.index(step.kernel), step.blocks, 256, len(step.arguments))
            data += b"".join(_packed(value, numbers) for value in step.arguments)
        done = run_program(self._program, data, defect)
        if done.returncode:
            return done, None
        return done, np.frombuffer(done.stdout, dtype=np.float32).reshape(logits.shape)


def _packed(value: str | int | float | None, buffers: Mapping[str, int]) -> bytes:
    if value is None:
        return struct.pack("<id", 0, 0.0)
    if isinstance(value, str):
        return struct.pack("<id", 1, float(buffers[value]))
    return struct.pack("<id", 2 if isinstance(value, int) else 3, float(value))


@pytest.fixture(scope="session")
def crf(compile_on_host: Callable[[str, Mapping[str, object]], Path]) -> HostCrf:
    return HostCrf(compile_on_host("dense_crf_on_host.cpp", {"KERNEL_SOURCE": f'"{crf_launch.SOURCE}"'}))
