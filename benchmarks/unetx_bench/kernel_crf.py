"""The CRF's kernels on this machine's GPU: against the sum over all pairs of pixels, and how long they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from unetx_bench.device_time import samples_ms
from unetx_kernels.binaries import default_cache
from unetx_kernels.dense_crf.launch import OpenPlan, open_plan
from unetx_kernels.dense_crf.plan import plan_crf
from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_kernels.driver import DeviceArray, Gpu, device_array
from unetx_kernels.errors import KernelError
from unetx_kernels.graphs import why_not_graphs
from unetx_opt.optional import require

__all__ = ["check_crf", "time_crf"]

_PURPOSE: Final = "a kernel benchmark"
_CRF_ENERGIES: Final = Energies(3.0, 3.0, 80.0, 13.0, 10.0)


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
        return self.out.double().cpu().numpy()


def _crf(gpu: Gpu, logits: Any, image: Any, energies: Energies) -> _Crf:
    torch = require("torch", purpose=_PURPOSE)
    opened: OpenPlan = open_plan(gpu, plan_crf(image.shape, energies), len(logits), 5, default_cache())
    given, pixels = torch.from_numpy(logits).cuda(), torch.from_numpy(image).cuda()
    out = torch.empty_like(given)
    first, second, third = (device_array(tensor) for tensor in (given, pixels, out))
    return _Crf(opened, out, (first, second, third), (given, pixels))
