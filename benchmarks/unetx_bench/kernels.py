"""The fused kernels on this machine's GPU: right first, then how fast and in how much memory.

    python -m unetx_bench.kernels -o benchmarks/results/
    compute-sanitizer --tool memcheck python -m unetx_bench.kernels --check-only -o /tmp/checked

The bound of the gate is a copy: inputs plus output over the bandwidth that a device-to-device copy reaches here.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from unetx_bench.device_time import CACHES, samples_ms
from unetx_bench.kernel_peers import PEERS, GateInputs, make_inputs
from unetx_kernels.attention_gate import operation, reference
from unetx_kernels.binaries import default_cache, why_not_compile
from unetx_kernels.dense_crf.launch import OpenPlan, open_plan
from unetx_kernels.dense_crf.plan import plan_crf
from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_kernels.driver import DeviceArray, Gpu, device_array, primary_context, why_not
from unetx_kernels.errors import KernelError
from unetx_kernels.graphs import why_not_graphs
from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file
from unetx_opt.optional import find, require

__all__ = ["main"]

#: (N, C, H, W) and window, fp16; D is C / 4 as in the model.
TIMED: Final = (((1, 64, 256, 256), 5), ((8, 64, 512, 512), 5), ((1, 64, 256, 256), 3), ((1, 64, 256, 256), 7))
CHECKED_SHAPES: Final = 60
COPY_BYTES: Final = 2**30
_PURPOSE: Final = "a kernel benchmark"
_CRF_ENERGIES: Final = Energies(3.0, 3.0, 80.0, 13.0, 10.0)


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
        shape, window, half = (images, channels, height, width), (3, 5, 7)[index % 3], index % 2 == 0
        inputs = make_inputs(shape, hidden, window, half=half, channels_last=index % 4 >= 2)
        fused, unfused = (_results(PEERS[name](inputs), inputs) for name in ("fused", "plain operations"))
        for name, (exact, size) in _exact(inputs).items():
            eps = float(np.finfo(np.float16 if half else np.float32).eps) * max(float(np.abs(exact).max()), size)
            errors = [float(np.abs(_host(found[name]) - exact).max()) for found in (fused, unfused)]
            row = {"what": name, "shape": shape, "hidden": hidden, "window": window, "half": half, "errors": errors}
            if not errors[0] <= 2 * errors[1] + eps:
                raise KernelError(f"the kernel is wrong: {row}; expected at most twice the second error + {eps:.2g}")
            rows.append(row)
    return rows


def check_crf(gpu: Gpu) -> dict[str, Any]:
    """Compare the CRF's kernels with the sum over all pairs of pixels, 48 x 48, and their graph with single launches.

    Raises
    ------
    KernelError
        More than one pixel in a hundred differs, or a bit between graph and launches.
    """
    logits, image = _scene(48)
    energies = Energies(2.0, 2.0, 6.0, 25.0, 3.0)
    exact = infer_mean_field(logits, image, energies, 5)
    scene = _crf(gpu, logits, image, energies)
    same = float(np.mean(scene.result(scene.infer).argmax(0) == exact.argmax(0)))
    row = {"what": "crf", "size": 48, "same_labels": same}
    if not same > 0.99:
        raise KernelError(f"the CRF is wrong: {row}; expected more than 0.99 of the labels as in float64")
    reason = why_not_graphs()
    if reason is not None:
        return {**row, "graph": reason}
    graph = scene.record()
    launched, replayed, again = (scene.result(run) for run in (scene.infer, graph.start, graph.start))
    if not (np.array_equal(launched, replayed) and np.array_equal(replayed, again)):
        raise KernelError("the CRF's graph gives other bits than its launches: expected the same")
    return {**row, "graph": "bit-equal to single launches, twice"}


def time_gates() -> list[dict[str, Any]]:
    """Time the gate and its peers, forward and with gradients, in milliseconds."""
    rows = []
    for shape, window in TIMED:
        inputs = make_inputs(shape, shape[1] // 4, window)
        for name, make in PEERS.items():
            for what in ("forward", "forward and backward"):
                row: dict[str, Any] = {"name": name, "what": what, "shape": shape, "window": window}
                row["bytes"] = inputs.moved_bytes
                try:
                    gate = make(inputs)
                    run = functools.partial(gate, *inputs.tensors) if what == "forward" else _training(gate, inputs)
                    row["samples_ms"], row["extra_bytes"] = samples_ms(run), _extra_bytes(run)
                except Exception as error:  # a peer that does not run is a result, and any package may raise anything
                    row["why_not"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
                rows.append(row)
    return rows


def time_copy() -> dict[str, Any]:
    """Time a device-to-device copy of 1 GiB."""
    torch = require("torch", purpose=_PURPOSE)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {"name": "copy", "bytes": 2 * COPY_BYTES, "samples_ms": samples_ms(lambda: target.copy_(source))}


def time_crf(gpu: Gpu) -> list[dict[str, Any]]:
    """Time the CRF at 512 x 512, five iterations, norms included, on the device only.

    An image of one grey level is the hardest for the sums of a grid's node: all its pixels meet in one place.
    """
    rows = []
    for what, classes, uniform in (("crf", 2, False), ("crf, one grey level", 2, True), ("crf, 8 classes", 8, False)):
        logits, image = _scene(512, classes)
        scene = _crf(gpu, logits, np.full_like(image, 128) if uniform else image, _CRF_ENERGIES)
        ways = {"launches": scene.infer}
        if why_not_graphs() is None:
            ways = {"graph": scene.record().start, **ways}
        for way, run in ways.items():
            row = {"name": what, "by": way, "size": 512, "classes": classes, "iterations": 5}
            rows.append({**row, "samples_ms": samples_ms(run)})
    return rows


def judge(gates: list[dict[str, Any]], copy: Mapping[str, Any], crf: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold medians against what the kernels are made for; a figure that could not be measured is None."""
    medians = {
        (row["name"], row["what"], row["shape"], row["window"]): statistics.median(row["samples_ms"])
        for row in gates
        if "samples_ms" in row
    }
    bandwidth = copy["bytes"] / statistics.median(copy["samples_ms"])
    verdicts = []
    for shape, window in TIMED[:2]:
        key = ("forward", shape, window)
        fused = medians.get(("fused", *key))
        row = next(row for row in gates if row["name"] == "fused" and (row["what"], row["shape"]) == key[:2])
        fraction = None if fused is None else row["bytes"] / fused / bandwidth
        compiled = [medians.get((f"torch.compile of {name}", *key)) for name in ("unfold", "plain operations")]
        best = min((one for one in compiled if one is not None), default=None)
        verdicts += [
            _verdict("times faster than unfold", shape, _ratio(medians.get(("unfold", *key)), fused), 5.0),
            _verdict("times faster than torch.compile", shape, _ratio(best, fused), 1.3),
            _verdict("of the copy bandwidth", shape, fraction, 0.6),
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


def _ratio(peer_ms: float | None, own_ms: float | None) -> float | None:
    return None if peer_ms is None or own_ms is None else peer_ms / own_ms


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
    sizes = (terms * float(np.abs(phi).max()) * fine, terms * float(np.abs(theta).max()) * fine, 0.0)
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


def _scene(side: int, classes: int = 2) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    bright = np.hypot(x - side / 2, y - side / 2) < side / 3
    image = np.clip(np.where(bright, 170, 60) + random.normal(scale=8, size=(side, side)), 0, 255).astype(np.uint8)
    logits = random.normal(scale=1.5, size=(classes, side, side))
    logits[1] += np.where(bright, 1.0, -1.0)
    return logits.astype(np.float32), image


@dataclass(frozen=True, slots=True)
class _Crf:
    """A plan on the GPU with the memory that it reads and writes."""

    opened: OpenPlan
    out: Any
    arrays: tuple[DeviceArray, DeviceArray, DeviceArray]
    kept: tuple[Any, ...]

    def infer(self) -> None:
        self.opened.infer(*self.arrays)

    def record(self) -> Any:
        return self.opened.record(*self.arrays)

    def result(self, run: Callable[[], object]) -> Any:
        self.out.fill_(float("nan"))
        run()
        require("torch", purpose=_PURPOSE).cuda.synchronize()
        return _host(self.out)


def _crf(gpu: Gpu, logits: Any, image: Any, energies: Energies) -> _Crf:
    torch = require("torch", purpose=_PURPOSE)
    opened: OpenPlan = open_plan(gpu, plan_crf(image.shape, energies), len(logits), 5, default_cache())
    given, pixels = torch.from_numpy(logits).cuda(), torch.from_numpy(image).cuda()
    out = torch.empty_like(given)
    first, second, third = (device_array(tensor) for tensor in (given, pixels, out))
    return _Crf(opened, out, (first, second, third), (given, pixels))


def _host(tensor: Any) -> Any:
    return tensor.double().cpu().numpy()


def _reason() -> str | None:
    if not find("torch"):
        return "torch is not installed: run pip install 'unetx-opt[export]'"
    if not require("torch", purpose=_PURPOSE).cuda.is_available():
        return "this torch sees no NVIDIA GPU: use a GPU host and a CUDA build of torch"
    return why_not() or why_not_compile()


def _measure(gpu: Gpu, shapes: int, *, check_only: bool) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pycuda", "numpy")}
    record: dict[str, Any] = {
        "device": gpu.name,
        "architecture": gpu.architecture,
        "driver_api": gpu.driver_version,
        "versions": versions,
        "caches": CACHES,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checked": [*check_gates(shapes), check_crf(gpu)],
    }
    if not check_only:
        gates, copy, crf = time_gates(), time_copy(), time_crf(gpu)
        record |= {"timed": [copy, *gates, *crf], "verdicts": judge(gates, copy, crf[0])}
    return record


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
            record = _measure(gpu, shapes, check_only=check_only)
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(record["device"])).strip("-").lower()
        path = output / f"{name}-{str(record['date'])[:10]}{'-checked' if check_only else ''}.json"
        output.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(record, indent=1).encode())
    except (KernelError, UnetxError) as error:
        raise click.ClickException(str(error)) from error
    for verdict in record.get("verdicts", []):
        click.echo(json.dumps(verdict), err=True)
    click.echo(path)


if __name__ == "__main__":
    main()
