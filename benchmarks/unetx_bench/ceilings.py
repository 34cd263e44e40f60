"""What this machine can do at most, measured in the run that it is held against: arithmetic and memory.

Arithmetic on the CPU is a 3 x 3 convolution of OpenVINO with 128 channels in and out, in each type whose use is read
back from the compiled layer, and for float32 a matrix product of numpy besides; the faster counts. On a GPU it is a
matrix product of PyTorch. Memory is the sum of two arrays into a third, all far larger than the caches, a part of
them in every thread: 24 bytes for each element, the reading of the third by caches that fetch before they write not
counted.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from unetx_opt.errors import MissingPackageError
from unetx_opt.optional import require

__all__ = ["Ceilings", "measure_ceilings"]

_CHANNELS: Final = 128
_SIDE_PX: Final = 96
#: Convolutions in a row: the conversions at both ends of the model weigh little.
_LAYERS: Final = 4
_GEMM: Final = 1536
_GPU_GEMM: Final = 8192
_ARRAY_ELEMENTS: Final = 16 * 2**20
_HINTS: Final = (("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16"))


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of many trials, not their mean: a limit is what nothing was faster than.

    Attributes
    ----------
    device : str
        "cpu" or "cuda".
    flop_per_s : mapping of str to float
        By the type of the arithmetic, ONNX name; integer operations for int8.
    bytes_per_s : float
        Main memory of the device.
    threads : int
        CPU threads; 0 for a GPU.
    why_not : mapping of str to str
        Types without a figure, and the reason.
    """

    device: str
    flop_per_s: Mapping[str, float]
    bytes_per_s: float
    threads: int
    why_not: Mapping[str, str]


def measure_ceilings(device: str = "cpu", threads: int | None = None, seconds: float = 1.0) -> Ceilings:
    """Measure the limits of a device.

    Parameters
    ----------
    device : str
        "cpu", or "cuda" for the first CUDA device.
    threads : int, optional
        CPU threads; the usable processors otherwise.
    seconds : float
        For each figure.

    Raises
    ------
    MissingPackageError
        "cuda" without PyTorch.
    """
    if device == "cuda":
        return _measure_cuda(seconds)
    count = threads or _usable_cpus()
    rates: dict[str, float] = {}
    why_not: dict[str, str] = {}
    for dtype, measure in _cpu_trials(count):
        try:
            call, operations, found = measure()
        except (MissingPackageError, RuntimeError) as error:
            why_not.setdefault(dtype, str(error).splitlines()[0])
            continue
        if found != dtype:
            why_not.setdefault(dtype, f"this CPU computes {found} where {dtype} is asked for")
            continue
        rates[dtype] = max(rates.get(dtype, 0.0), operations / _best_s(call, seconds))
    why_not = {dtype: reason for dtype, reason in why_not.items() if dtype not in rates}
    bandwidth = 24 * _ARRAY_ELEMENTS / _best_s(_sum_arrays(count), seconds)
    return Ceilings("cpu", rates, bandwidth, count, why_not)


_Trial = Callable[[], tuple[Callable[[], object], int, str]]


def _cpu_trials(threads: int) -> list[tuple[str, _Trial]]:
    trials: list[tuple[str, _Trial]] = [("float32", _gemm)]
    for dtype, hint in _HINTS:
        trials.append((dtype, functools.partial(_convolution, hint, threads)))
    trials.append(("int8", functools.partial(_convolution, "i8", threads)))
    return trials


def _gemm() -> tuple[Callable[[], object], int, str]:
    left, right = (np.random.default_rng(seed).random((_GEMM, _GEMM), np.float32) for seed in (0, 1))
    result = np.empty_like(left)
    return lambda: np.matmul(left, right, out=result), 2 * _GEMM**3, "float32"


def _convolution(hint: str, threads: int) -> tuple[Callable[[], object], int, str]:
    """Compile one convolution; gives the call, its operations, and the type that it really computes in."""
    from unetx_opt.runtime.sessions.openvino import arithmetic_dtype, read_layers

    openvino = require("openvino", purpose="measuring the arithmetic of the CPU")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings["INFERENCE_PRECISION_HINT"] = "f32" if hint == "i8" else hint
    compiled = openvino.Core().compile_model(_convolution_model(openvino, quantized=hint == "i8"), "CPU", settings)
    request = compiled.create_infer_request()
    image = np.random.default_rng(0).random((1, _CHANNELS, _SIDE_PX, _SIDE_PX), np.float32)
    operations = 2 * _CHANNELS * _CHANNELS * 9 * _SIDE_PX * _SIDE_PX * _LAYERS
    return lambda: request.infer([image], share_inputs=True), operations, arithmetic_dtype(read_layers(compiled))


def _convolution_model(openvino: Any, *, quantized: bool) -> Any:
    ops = require("openvino.opset13", purpose="measuring the arithmetic of the CPU")
    weight = np.random.default_rng(2).normal(0, 0.05, (_CHANNELS, _CHANNELS, 3, 3)).astype(np.float32)
    image = ops.parameter([1, _CHANNELS, _SIDE_PX, _SIDE_PX], np.float32)
    value = image
    for _ in range(_LAYERS):
        kernel = ops.constant(weight)
        if quantized:
            limit = np.float32(np.abs(weight).max())
            kernel = ops.fake_quantize(kernel, -limit, limit, -limit, limit, 255)
            value = ops.fake_quantize(value, np.float32(0), np.float32(1), np.float32(0), np.float32(1), 256)
        value = ops.relu(ops.convolution(value, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return openvino.Model([value], [image], "ceiling")


def _sum_arrays(threads: int) -> Callable[[], object]:
    parts = [
        tuple(np.full(_ARRAY_ELEMENTS // threads, value, np.float64) for value in (1.0, 2.0, 0.0))
        for _ in range(threads)
    ]
    pool = ThreadPoolExecutor(threads)

    def run() -> object:
        return list(pool.map(lambda part: np.add(part[0], part[1], out=part[2]), parts))

    return run


def _measure_cuda(seconds: float) -> Ceilings:
    torch = require("torch", purpose="measuring the limits of the GPU")
    if not torch.cuda.is_available():
        return Ceilings("cuda", {}, 0.0, 0, {"all": "PyTorch sees no CUDA device"})
    rates: dict[str, float] = {}
    why_not: dict[str, str] = {}
    # Numbers of the host's generator: the GPU's refuses after a CUDA graph that could not be recorded.
    numbers = torch.randn(_GPU_GEMM, _GPU_GEMM)
    for dtype in ("float32", "float16", "bfloat16"):
        left, right = (numbers.to("cuda", getattr(torch, dtype)) for _ in range(2))
        product = functools.partial(torch.matmul, left, right)
        try:
            rates[dtype] = 2 * _GPU_GEMM**3 / _best_s(_synchronous(torch, product), seconds)
        except RuntimeError as error:
            why_not[dtype] = str(error).splitlines()[0]
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _best_s(_synchronous(torch, lambda: target.copy_(source)), seconds)
    return Ceilings("cuda", rates, bandwidth, 0, why_not)


def _synchronous(torch: Any, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _best_s(call: Callable[[], object], seconds: float) -> float:
    call()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
