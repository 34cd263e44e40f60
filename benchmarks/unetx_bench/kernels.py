"""The fused attention gate on this machine's GPU: right first, then how fast.

    python -m unetx_bench.kernels -o benchmarks/results/

Peers are the same operation by PyTorch's unfold, by torch.compile of it, and by `scaled plain operations` (one
multiplication per tap, as the exported graph has it). The bound is a copy: inputs plus output over the bandwidth that
a device-to-device copy reaches here.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from unetx_kernels.attention_gate import reference
from unetx_kernels.attention_gate.launch import GateKernels, choose_tile, open_kernels
from unetx_kernels.driver import Gpu, device_array, primary_context, why_not
from unetx_kernels.errors import KernelError
from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file
from unetx_opt.optional import find, require

if TYPE_CHECKING:
    import torch

__all__ = ["main"]

#: (N, C, H, W) and window, fp16; D is C / 4 as in the model.
TIMED: Final = (((1, 64, 256, 256), 5), ((8, 64, 512, 512), 5), ((1, 64, 256, 256), 3), ((1, 64, 256, 256), 7))
CHECKED_SHAPES: Final = 60
WARM_UPS: Final = 10
SAMPLES: Final = 50
COPY_BYTES: Final = 2**30


@dataclass(frozen=True, slots=True)
class Inputs:
    """theta and phi, (N, D, H, W), and values, (N, C, H, W), on the GPU."""

    theta: torch.Tensor
    phi: torch.Tensor
    values: torch.Tensor
    window: int


def attend_by_unfold(inputs: Inputs) -> torch.Tensor:
    """Run the neighbourhood gate with the k * k copies of its inputs in memory."""
    functional = require("torch", purpose="a kernel benchmark").nn.functional
    images, channels, height, width = inputs.values.shape
    hidden, taps, radius = inputs.theta.shape[1], inputs.window**2, inputs.window // 2
    keys = functional.unfold(inputs.phi, inputs.window, padding=radius).view(images, hidden, taps, height, width)
    near = functional.unfold(inputs.values, inputs.window, padding=radius).view(images, channels, taps, height, width)
    ones = inputs.values.new_ones(1, 1, height, width)
    inside = functional.unfold(ones, inputs.window, padding=radius).view(1, taps, height, width)
    scores = (inputs.theta[:, :, None] * keys).sum(1) / math.sqrt(hidden)
    weights = scores.masked_fill(inside == 0, -math.inf).softmax(1)
    attended: torch.Tensor = (weights[:, None] * near).sum(2)
    return attended


def attend_by_taps(inputs: Inputs) -> torch.Tensor:
    """Run the neighbourhood gate tap by tap, with shifted views instead of copies."""
    functional = require("torch", purpose="a kernel benchmark").nn.functional
    height, width = inputs.values.shape[-2:]
    window, radius = inputs.window, inputs.window // 2
    margins = (radius, radius, radius, radius)
    keys, near = functional.pad(inputs.phi, margins), functional.pad(inputs.values, margins)
    inside = functional.pad(inputs.values.new_zeros(1, 1, height, width), margins, value=-math.inf)
    starts = [(y, x) for y in range(window) for x in range(window)]
    theta = inputs.theta / math.sqrt(inputs.theta.shape[1])
    scores = [
        (theta * keys[..., y : y + height, x : x + width]).sum(1, keepdim=True)
        + inside[..., y : y + height, x : x + width]
        for y, x in starts
    ]
    weights = require("torch", purpose="a kernel benchmark").cat(scores, 1).softmax(1)
    attended: torch.Tensor = weights[:, :1] * near[..., :height, :width]
    for tap, (y, x) in enumerate(starts[1:], start=1):
        attended = attended + weights[:, tap : tap + 1] * near[..., y : y + height, x : x + width]
    return attended


def check_shapes(gpu: Gpu, cache: Path, count: int) -> list[dict[str, Any]]:
    """Compare the kernel and plain operations with float64 over random shapes.

    Raises
    ------
    KernelError
        The kernel errs more than twice as much as plain operations of the same type.
    """
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        images, channels, hidden = (int(random.integers(1, most)) for most in (4, 40, 20))
        height, width = (int(side) for side in random.integers(1, 90, size=2))
        shape, window = (images, channels, height, width), (3, 5, 7)[index % 3]
        inputs = _inputs(shape, hidden, window, half=index % 2 == 0, channels_last=index % 4 >= 2)
        kernels = open_kernels(gpu, choose_tile(width), cache)
        exact = reference.neighbourhood_gate(_host(inputs.theta), _host(inputs.phi), _host(inputs.values), window)
        fused = float(np.abs(_host(_fused(kernels, inputs)()) - exact).max())
        plain = float(np.abs(_host(attend_by_unfold(inputs)) - exact).max())
        eps = float(np.finfo(np.float16 if index % 2 == 0 else np.float32).eps) * float(np.abs(exact).max())
        row = {"shape": shape, "hidden": hidden, "window": window, "fused_error": fused, "plain_error": plain}
        if not fused <= 2 * plain + eps:
            raise KernelError(f"the kernel is wrong: {row}; expected at most 2 * plain_error + {eps:.2g}")
        rows.append(row)
    return rows


def time_kernels(gpu: Gpu, cache: Path) -> list[dict[str, Any]]:
    """Time the kernel, its peers and a copy; every sample in milliseconds of the GPU's own clock."""
    torch = require("torch", purpose="a kernel benchmark")
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rows: list[dict[str, Any]] = [
        {"what": "copy", "bytes": 2 * COPY_BYTES, "samples_ms": _samples_ms(lambda: target.copy_(source))}
    ]
    for shape, window in TIMED:
        inputs = _inputs(shape, shape[1] // 4, window, half=True, channels_last=False)
        moved = 2 * (2 * inputs.theta.numel() + 2 * inputs.values.numel())
        compiled = torch.compile(attend_by_unfold)
        peers: dict[str, Callable[[], object]] = {
            "fused": _fused(open_kernels(gpu, choose_tile(shape[3]), cache), inputs),
            "unfold": lambda given=inputs: attend_by_unfold(given),  # type: ignore[misc]
            "torch.compile": lambda given=inputs, run=compiled: run(given),  # type: ignore[misc]
            "plain operations": lambda given=inputs: attend_by_taps(given),  # type: ignore[misc]
        }
        for name, run in peers.items():
            row: dict[str, Any] = {"what": name, "shape": shape, "window": window, "bytes": moved}
            try:
                row["samples_ms"] = _samples_ms(run)
            except Exception as error:  # a peer that does not run is a result, and any package may raise anything
                row["why_not"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
            rows.append(row)
    return rows


def _inputs(shape: tuple[int, int, int, int], hidden: int, window: int, *, half: bool, channels_last: bool) -> Inputs:
    torch = require("torch", purpose="a kernel benchmark")
    images, channels, height, width = shape
    options = {"device": "cuda", "dtype": torch.float16 if half else torch.float32}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theta, phi, values = (
        torch.randn(images, depth, height, width, **options).to(memory_format=layout)
        for depth in (hidden, hidden, channels)
    )
    return Inputs(theta, phi, values, window)


def _fused(kernels: GateKernels, inputs: Inputs) -> Callable[[], torch.Tensor]:
    module = require("torch", purpose="a kernel benchmark")
    out: torch.Tensor = module.empty_like(inputs.values)
    theta, phi, values = (device_array(tensor) for tensor in (inputs.theta, inputs.phi, inputs.values))

    def run() -> torch.Tensor:
        # On the default stream, where PyTorch's events are recorded.
        kernels.neighbourhood((theta, phi, values), device_array(out), inputs.window)
        return out

    return run


def _host(tensor: torch.Tensor) -> Any:
    return tensor.double().cpu().numpy()


def _samples_ms(run: Callable[[], object]) -> list[float]:
    torch = require("torch", purpose="a kernel benchmark")
    for _ in range(WARM_UPS):
        run()
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(SAMPLES)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _reason() -> str | None:
    if not find("torch"):
        return "torch is not installed: run pip install 'unetx-opt[export]'"
    if not require("torch", purpose="a kernel benchmark").cuda.is_available():
        return "this torch sees no NVIDIA GPU: use a GPU host and a CUDA build of torch"
    return why_not()


@click.command()
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
def main(output: Path) -> None:
    """Check and time the fused attention gate on this machine's GPU."""
    reason = _reason()
    if reason is not None:
        raise click.ClickException(f"not measured: {reason}")
    torch = require("torch", purpose="a kernel benchmark")
    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    try:
        with primary_context() as gpu:
            cache = output / "kernels-cache"
            record = {
                "device": gpu.name,
                "architecture": gpu.architecture,
                "driver_api": gpu.driver_version,
                "versions": {name: importlib.metadata.version(name) for name in ("torch", "pycuda", "numpy")},
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "checked": check_shapes(gpu, cache, CHECKED_SHAPES),
                "timed": time_kernels(gpu, cache),
            }
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(record["device"])).strip("-").lower()
        path = output / f"{name}-{str(record['date'])[:10]}.json"
        write_file(path, json.dumps(record, indent=1).encode())
    except (KernelError, UnetxError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(path)


if __name__ == "__main__":
    main()
