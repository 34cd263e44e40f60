"""Which tile or strip suits the fp16 gate on this machine's GPU: what the launcher's tables are made from.

    python -m unetx_bench.kernel_tiles -o tiles.json

Every candidate computes the gate once against the first, then all are timed in turns.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from unetx_bench.device_time import CACHES, samples_ms
from unetx_bench.errors import MeasurementError
from unetx_bench.kernel_peers import GateInputs, make_inputs
from unetx_kernels.attention_gate.launch import GateKernels
from unetx_kernels.attention_gate.strips import Strip
from unetx_kernels.attention_gate.tiles import Tile
from unetx_kernels.binaries import default_cache
from unetx_kernels.driver import device_array, primary_context, why_not
from unetx_kernels.errors import KernelError
from unetx_opt.files import write_file
from unetx_opt.optional import require

__all__ = ["CANDIDATES", "SHAPES", "main"]

CANDIDATES: Final[tuple[Tile | Strip, ...]] = (
    *(Tile(width, height, 0, stages) for width, height in ((32, 4), (64, 4)) for stages in (2, 3, 4)),
    Tile(32, 8, 0),
    Tile(16, 8, 0),
    Strip(64, 64, 2),
    Strip(32, 64, 4),
    Strip(128, 64, 1),
)
#: (N, C, H, W), with D = C / 4: shapes of the benchmark, and levels of the network at width 64 and 512 x 512.
SHAPES: Final = ((1, 64, 256, 256), (8, 64, 512, 512), (1, 64, 512, 512), (1, 128, 256, 256), (1, 512, 64, 64))
WINDOWS: Final = (3, 5, 7)
_TOLERANCE: Final = 2e-3
_ROUNDS: Final = 3
_SAMPLES: Final = 20


def time_tiles(
    gpu: Any, shapes: tuple[tuple[int, int, int, int], ...], cache: Path, *, channels_last: bool
) -> list[dict[str, Any]]:
    """Time every candidate that can be compiled, for every shape and window."""
    rows = []
    for shape in shapes:
        for window in WINDOWS:
            inputs = make_inputs(shape, shape[1] // 4, window, channels_last=channels_last)
            runs: list[tuple[dict[str, Any], Any]] = []
            for candidate in CANDIDATES:
                row: dict[str, Any] = {"shape": shape, "window": window, "channels_last": channels_last}
                row |= {"kind": type(candidate).__name__, **asdict(candidate), "samples_ms": []}
                rows.append(row)
                try:
                    kernels = _kernels_of(gpu, cache, candidate)
                    if isinstance(candidate, Strip) and not kernels.takes_strips(_arrays(inputs), window):
                        row["why_not"] = "strips do not suit the shape, or the GPU's shared memory"
                    else:
                        runs.append((row, _checked_run(kernels, _kernels_of(gpu, cache, CANDIDATES[0]), inputs)))
                except KernelError as error:
                    row["why_not"] = str(error)
            for _ in range(_ROUNDS):
                for row, run in runs:
                    row["samples_ms"] += samples_ms(run, _SAMPLES)
    return rows


def _kernels_of(gpu: Any, cache: Path, candidate: Tile | Strip) -> GateKernels:
    if isinstance(candidate, Strip):
        return GateKernels(gpu, cache, strip=candidate)
    return GateKernels(gpu, cache, tile=candidate)


def _arrays(inputs: GateInputs) -> Any:
    return tuple(device_array(tensor) for tensor in inputs.tensors)


def _checked_run(kernels: GateKernels, usual: GateKernels, inputs: GateInputs) -> Any:
    torch = require("torch", purpose="choosing tiles")
    theta, phi, values = (device_array(tensor) for tensor in inputs.tensors)
    arrays = (theta, phi, values)
    found, expected = torch.full_like(inputs.values, torch.nan), torch.empty_like(inputs.values)

    def run() -> None:
        kernels.neighbourhood(arrays, device_array(found), inputs.window)

    run()
    usual.neighbourhood(arrays, device_array(expected), inputs.window)
    worst = float((found.float() - expected.float()).abs().max())
    if not worst <= _TOLERANCE * float(expected.abs().max()):
        raise MeasurementError(
            f"{kernels.tile or kernels.strip} differs by {worst:.3g} for {tuple(inputs.values.shape)}"
        )
    return run


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file.")
@click.option("--channels-last", is_flag=True, help="Tensors in NHWC.")
@click.option("--shapes", type=click.IntRange(1, len(SHAPES)), default=len(SHAPES), help="Only the first so many.")
def main(output: Path, channels_last: bool, shapes: int) -> None:
    """Time the tiles of the fp16 gate on this machine's GPU."""
    reason = why_not()
    if reason is not None:
        raise click.ClickException(f"not measured: {reason}")
    require("torch", purpose="choosing tiles").zeros(1, device="cuda")
    try:
        with primary_context() as gpu:
            rows = time_tiles(gpu, SHAPES[:shapes], default_cache(), channels_last=channels_last)
            record = {"device": gpu.name, "architecture": gpu.architecture, "caches": CACHES, "rows": rows}
    except KernelError as error:
        raise click.ClickException(str(error)) from error
    write_file(output, json.dumps(record, indent=1).encode())
    for row in rows:
        took = f"{1000 * statistics.median(row['samples_ms']):9.1f} us" if row["samples_ms"] else row["why_not"]
        form = [row[name] for name in ("kind", "width", "height", "stages", "channels", "blocks") if name in row]
        click.echo(f"{row['shape']} k{row['window']} {form}: {took}")


if __name__ == "__main__":
    main()
