"""The fused kernels on this machine's GPU: right first, then how fast and in how much memory.

    python -m unetx_bench.kernels -o benchmarks/results/
    compute-sanitizer --tool memcheck python -m unetx_bench.kernels --check-only -o /tmp/checked

The bound of the gate is a copy: inputs plus output over the bandwidth that a device-to-device copy reaches here, one
of 1 GiB, and one of as many bytes as the gate moves, which for a small image takes mostly its start.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from unetx_bench.device_time import CACHES, samples_ms
from unetx_bench.kernel_crf import check_crf, time_crf
from unetx_bench.kernel_peers import PEERS, GateInputs, make_inputs
from unetx_kernels.attention_gate import operation, reference
from unetx_kernels.attention_gate.strips import STRIP
from unetx_kernels.binaries import why_not_compile
from unetx_kernels.driver import Gpu, primary_context, why_not
from unetx_kernels.errors import KernelError
from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file
from unetx_opt.optional import find, require

__all__ = ["main"]

#: (N, C, H, W) and window, fp16; D is C / 4 as in the model. The first two are judged, beside every peer and with
#: gradients.
TIMED: Final = (((1, 64, 256, 256), 5), ((8, 64, 512, 512), 5), ((1, 64, 256, 256), 3), ((1, 64, 256, 256), 7))
JUDGED: Final = 2
#: What the others are timed beside.
_FEW_PEERS: Final = ("fused", "unfold", "plain operations")
CHECKED_SHAPES: Final = 60
COPY_BYTES: Final = 2**30
_PURPOSE: Final = "a kernel benchmark"


def check_gates(count: int) -> list[dict[str, Any]]:
    """Compare the fused gate and its gradients, and plain PyTorch, with float64 over random shapes.

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
        window, half, channels_last = (3, 5, 7)[index % 3], index % 2 == 0, index % 4 >= 2
        if half and not channels_last and index % 8 == 0:
            width = STRIP.width + width // 8 * 8  # whole vectors, and wide enough for strips
        shape = (images, channels, height, width)
        inputs = make_inputs(shape, hidden, window, half=half, channels_last=channels_last)
        fused, unfused = (_results(PEERS[name](inputs), inputs) for name in ("fused", "plain operations"))
        for name, (exact, size) in _exact(inputs).items():
            eps = float(np.finfo(np.float16 if half else np.float32).eps) * max(float(np.abs(exact).max()), size)
            errors = [float(np.abs(_host(found[name]) - exact).max()) for found in (fused, unfused)]
            row = {"what": name, "shape": shape, "hidden": hidden, "window": window, "half": half, "errors": errors}
            if not errors[0] <= 2 * errors[1] + eps:
                raise KernelError(f"the kernel is wrong: {row}; expected at most twice the second error + {eps:.2g}")
            rows.append(row)
    return rows


def time_gates() -> list[dict[str, Any]]:
    """Time the gate and its peers, forward and with gradients, in milliseconds."""
    rows = []
    for index, (shape, window) in enumerate(TIMED):
        inputs = make_inputs(shape, shape[1] // 4, window)
        for name in PEERS if index < JUDGED else _FEW_PEERS:
            for what in ("forward", "forward and backward") if index < JUDGED else ("forward",):
                row: dict[str, Any] = {"name": name, "what": what, "shape": shape, "window": window}
                rows.append({**row, "bytes": inputs.moved_bytes, **_timed(name, what, inputs)})
    return rows


def _timed(name: str, what: str, inputs: GateInputs) -> dict[str, Any]:
    try:
        gate = PEERS[name](inputs)
        run = functools.partial(gate, *inputs.tensors) if what == "forward" else _training(gate, inputs)
        return {"samples_ms": samples_ms(run), "extra_bytes": _extra_bytes(run)}
    except Exception as error:  # a peer that does not run is a result, and any package may raise anything
        return {"why_not": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}


def time_copies() -> list[dict[str, Any]]:
    """Time device-to-device copies: of 1 GiB, and of as many bytes as each judged gate moves."""
    torch = require("torch", purpose=_PURPOSE)
    rows = []
    for moved in (2 * COPY_BYTES, *(_moved_bytes(shape) for shape, _ in TIMED[:JUDGED])):
        source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        samples = samples_ms(functools.partial(target.copy_, source))
        rows.append({"name": "copy", "bytes": moved, "samples_ms": samples})
    return rows


def _moved_bytes(shape: tuple[int, int, int, int]) -> int:
    """Return what a gate in fp16 reads and writes: theta, phi, values and the output."""
    images, channels, height, width = shape
    return 2 * images * height * width * (2 * (channels // 4) + 2 * channels)


def judge(gates: list[dict[str, Any]], copies: list[dict[str, Any]], crf: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold medians against what the kernels are made for; a figure that could not be measured is None."""
    medians = {
        (row["name"], row["what"], row["shape"], row["window"]): statistics.median(row["samples_ms"])
        for row in gates
        if "samples_ms" in row
    }
    bandwidths = {row["bytes"]: row["bytes"] / statistics.median(row["samples_ms"]) for row in copies}
    verdicts = []
    for shape, window in TIMED[:JUDGED]:
        key = ("forward", shape, window)
        fused = medians.get(("fused", *key))
        row = next(row for row in gates if row["name"] == "fused" and (row["what"], row["shape"]) == key[:2])
        own = None if fused is None else row["bytes"] / fused
        compiled = [medians.get((f"torch.compile of {name}", *key)) for name in ("unfold", "plain operations")]
        best = min((one for one in compiled if one is not None), default=None)
        verdicts += [
            _verdict("times faster than unfold", shape, _ratio(medians.get(("unfold", *key)), fused), 5.0),
            _verdict("times faster than torch.compile", shape, _ratio(best, fused), 1.3),
            _verdict("of the bandwidth of a copy of 1 GiB", shape, _ratio(own, bandwidths[2 * COPY_BYTES]), 0.6),
            _verdict("of that of a copy of as many bytes", shape, _ratio(own, bandwidths.get(row["bytes"])), 0.6),
        ]
        extra = row.get("extra_bytes")
        output = 2 * int(np.prod(shape))
        verdicts.append(_verdict("output bytes / bytes taken", shape, extra and output / extra, 0.999))
    milliseconds = statistics.median(crf["samples_ms"])
    verdicts.append({"what": "crf, ms", "value": milliseconds, "at_most": 1.2, "met": milliseconds <= 1.2})
    return verdicts


def _verdict(what: str, shape: tuple[int, ...], value: float | None, at_least: float) -> dict[str, Any]:
    met = None if value is None else value >= at_least
    return {"what": what, "shape": shape, "value": value, "at_least": at_least, "met": met}


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _results(gate: Any, inputs: GateInputs) -> dict[str, Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.tensors]
    attended = gate(*leaves)
    attended.backward(inputs.values)
    return {"out": attended.detach(), **dict(zip(("theta", "phi", "values"), (t.grad for t in leaves), strict=True))}


def _exact(inputs: GateInputs) -> dict[str, tuple[Any, float]]:
    """Return the output and gradients in float64, and how large the terms are that each is a difference of."""
    theta, phi, values = (_host(tensor) for tensor in inputs.tensors)
    out = reference.neighbourhood_gate(theta, phi, values, inputs.window)
    found = reference.neighbourhood_gate_gradients((theta, phi, values), values, inputs.window)
    terms = float(np.abs(values).sum(1).max() * np.abs(values).max()) / theta.shape[1] ** 0.5
    fine = 2.0**-13 if inputs.values.element_size() == 2 else 1.0  # sums are in float32 whatever the inputs are
    # Weights that are made again from scores and the logarithm of their sum err as their difference does.
    score = float(np.prod([np.linalg.norm(tensor, axis=1).max() for tensor in (theta, phi)])) / theta.shape[1] ** 0.5
    largest = (terms * float(np.abs(phi).max()), terms * float(np.abs(theta).max()), score * np.abs(found[2]).max())
    sizes = tuple(float(size) * fine for size in largest)
    return {"out": (out, 0.0), **dict(zip(("theta", "phi", "values"), zip(found, sizes, strict=True), strict=True))}


def _training(gate: Any, inputs: GateInputs) -> Callable[[], object]:
    torch = require("torch", purpose=_PURPOSE)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.tensors]
    gradient = inputs.values.clone()
    return lambda: torch.autograd.grad(gate(*leaves), leaves, gradient)


def _extra_bytes(run: Callable[[], object]) -> int:
    """Return the most memory that one call takes beside what there was before it."""
    torch = require("torch", purpose=_PURPOSE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def _host(tensor: Any) -> Any:
    return tensor.double().cpu().numpy()


def _reason() -> str | None:
    if not find("torch"):
        return "torch is not installed: run pip install 'unetx-opt[export]'"
    if not require("torch", purpose=_PURPOSE).cuda.is_available():
        return "this torch sees no NVIDIA GPU: use a GPU host and a CUDA build of torch"
    return why_not() or why_not_compile()


def _measure(gpu: Gpu, shapes: int, output: Path, *, check_only: bool) -> tuple[Path, dict[str, Any]]:
    """Check and time; the record is on the disk after every step, so that one cut short keeps what it has."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pycuda", "numpy")}
    record: dict[str, Any] = {
        "device": gpu.name,
        "architecture": gpu.architecture,
        "driver_api": gpu.driver_version,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "caches": CACHES,
    }
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-").lower()
    path = output / f"{name}-{record['date'][:10]}{'-checked' if check_only else ''}.json"
    output.mkdir(parents=True, exist_ok=True)

    def keep(**found: Any) -> None:
        record.update(found)
        write_file(path, json.dumps(record, indent=1).encode())

    keep(checked=[check_crf(gpu), *check_gates(shapes)])
    if not check_only:
        copies, crf = time_copies(), time_crf(gpu)
        keep(timed=[*copies, *crf])
        gates = time_gates()
        keep(timed=[*copies, *crf, *gates], verdicts=judge(gates, copies, crf[0]))
    return path, record


@click.command()
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
@click.option("--check-only", is_flag=True, help="No timing; for compute-sanitizer.")
@click.option(
    "--shapes", type=click.IntRange(1), default=CHECKED_SHAPES, show_default=True, help="Random shapes to check."
)
def main(output: Path, check_only: bool, shapes: int) -> None:
    """Check and time the fused kernels on this machine's GPU."""
    reason = _reason()
    if reason is not None:
        raise click.ClickException(f"not measured: {reason}")
    torch = require("torch", purpose=_PURPOSE)
    torch.manual_seed(0)
    lacking = operation.why_not(torch.zeros(1, device="cuda"))
    if lacking is not None:
        raise click.ClickException(f"not measured: {lacking}")
    try:
        with primary_context() as gpu:
            path, record = _measure(gpu, shapes, output, check_only=check_only)
    except (KernelError, UnetxError) as error:
        raise click.ClickException(str(error)) from error
    for verdict in record.get("verdicts", []):
        click.echo(json.dumps(verdict), err=True)
    click.echo(path)


if __name__ == "__main__":
    main()
