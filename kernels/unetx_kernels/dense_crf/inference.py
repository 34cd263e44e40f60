"""The CRF of one image on a GPU, from arrays of the host to arrays of the host."""

from __future__ import annotations

import atexit
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.binaries import RELEASED, default_cache, released_name, why_not_compile
from unetx_kernels.dense_crf.launch import SOURCE, OpenPlan, open_plan
from unetx_kernels.dense_crf.plan import plan_crf, shared_levels
from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.driver import DeviceArray, Gpu, keep_context, why_not
from unetx_kernels.errors import KernelError
from unetx_kernels.graphs import why_not_graphs
from unetx_kernels.nvcc import Compilation

__all__ = ["MOST_PLANS", "infer_on_gpu", "why_not_on_gpu"]

#: Plans that stay open: a workstation sees few sizes of image. One of 512 x 512 and two classes takes 11 MB.
MOST_PLANS: Final = 4


def why_not_on_gpu() -> str | None:
    """Return why the CRF cannot run on a GPU of this host, or None where it can."""
    reason = why_not()
    if reason is None and not (RELEASED / released_name(Compilation(SOURCE, ""))).is_file():
        reason = why_not_compile()
    return reason


def infer_on_gpu(
    logits_khw: NDArray[Any],
    image_hw: NDArray[np.uint8],
    energies: Energies,
    iterations: int,
    *,
    cache: Path | None = None,
) -> NDArray[np.float32]:
    """Run `reference.infer_mean_field` by the kernels.

    What an image of this size needs stays on the GPU for the next one. Several threads may call; images take turns.

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) finite, K from 2 to 8.
    image_hw : numpy.ndarray
        (H, W) uint8.
    energies : Energies
        Widths and weights.
    iterations : int
        Updates, at least 1.
    cache : pathlib.Path or None
        Folder for compiled kernels; this user's where left out.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 probabilities; equal inputs give equal bits on one GPU.

    Raises
    ------
    KernelError
        No kernel can run on this host, its GPU fails, or shapes, classes or iterations are out of range.
    """
    if logits_khw.ndim != 3 or image_hw.shape != logits_khw.shape[1:] or image_hw.dtype != np.uint8:
        raise KernelError(
            f"logits are {logits_khw.shape} and the image is {image_hw.dtype} {image_hw.shape}, expected (K, H, W) "
            "and uint8 (H, W)"
        )
    levels = shared_levels(image_hw.shape, energies, int(image_hw.max()) + 1)
    wanted = _Wanted(image_hw.shape, len(logits_khw), levels, energies, iterations)
    logits = np.ascontiguousarray(logits_khw, dtype=np.float32)
    return _plans(cache or default_cache()).infer(wanted, logits, image_hw)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What decides a plan."""

    size: tuple[int, int]
    classes: int
    levels: int
    energies: Energies
    iterations: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """An open plan, memory for one image's logits, grey values and probabilities, and what starts the inference."""

    opened: OpenPlan
    memories: tuple[Any, Any, Any]
    start: Callable[[], None]


def _open(gpu: Gpu, wanted: _Wanted, cache: Path) -> _Ready:
    plan = plan_crf(wanted.size, wanted.energies, wanted.levels)
    opened = open_plan(gpu, plan, wanted.classes, wanted.iterations, cache)
    shape, pixels = (wanted.classes, *wanted.size), wanted.size[0] * wanted.size[1]
    logits_bytes = 4 * wanted.classes * pixels
    memories = gpu.allocate(logits_bytes), gpu.allocate(pixels), gpu.allocate(logits_bytes)
    given, image, out = (int(memory) for memory in memories)
    arrays = DeviceArray(given, shape, "f32"), DeviceArray(image, wanted.size, "u8"), DeviceArray(out, shape, "f32")
    if why_not_graphs() is None:
        return _Ready(opened, memories, opened.record(*arrays).start)
    # The same launches one by one: slower to start.
    return _Ready(opened, memories, functools.partial(opened.infer, *arrays))


class _Plans:
    """The open plans of this process, the last used at the end; the GPU is kept with them."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._open: OrderedDict[_Wanted, _Ready] = OrderedDict()
        self._gpu: Gpu | None = None

    def infer(self, wanted: _Wanted, logits: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = np.empty_like(logits)
        with self._current() as gpu:
            ready = self._open.pop(wanted, None) or self._make(gpu, wanted)
            self._open[wanted] = ready
            given, pixels, out = ready.memories
            gpu.fill(given, logits)
            gpu.fill(pixels, image)
            ready.start()
            gpu.download(out, found)
        return found

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._gpu is not None:
            with self._current():
                self._open.clear()

    def _make(self, gpu: Gpu, wanted: _Wanted) -> _Ready:
        while len(self._open) >= MOST_PLANS:
            self._open.popitem(last=False)
        return _open(gpu, wanted, self._cache)

    @contextmanager
    def _current(self) -> Iterator[Gpu]:
        # Memory is given back where its context is current: everything that may drop a plan runs in here.
        with self._lock:
            self._gpu = self._gpu or keep_context()
            with self._gpu.current():
                yield self._gpu


@functools.cache
def _plans(cache: Path) -> _Plans:
    plans = _Plans(cache)
    atexit.register(plans.close)
    return plans
