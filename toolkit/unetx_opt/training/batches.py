"""Batches of random or whole views, cut ahead of the model by a thread or by worker processes.

What a batch holds depends on the data, the seed, the epoch and its place alone: not on the number of workers, nor on
what a cache held before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_opt.errors import UnetxError
from unetx_opt.lifetime import Closing
from unetx_opt.optional import require
from unetx_opt.training.augment import Augmentation, View, cut_view, draw_view, vary_grey
from unetx_opt.training.labelled import mirrored_labels
from unetx_opt.training.options import training_contract
from unetx_opt.training.prepared import PreparedImages

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from numpy.typing import NDArray

__all__ = ["Batch", "BatchCutter", "Draw", "random_batches", "whole_batches"]

# From this zoom on a view is cut from the fine copy: below it the coarse, antialiased one has enough pixels.
_FINE_FROM_ZOOM: Final = 1.25
_AHEAD: Final = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Views and their labels.

    Attributes
    ----------
    image_nchw : ndarray
        float32 (N, 1, S, S) in [0, 1].
    labels_nhw : ndarray
        uint8 (N, S, S).
    """

    image_nchw: NDArray[np.float32]
    labels_nhw: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Draw:
    """What decides the random views of an epoch: the seed of the run, the epoch from 0, and how far views go."""

    seed: int
    epoch: int
    limits: Augmentation


@dataclass(frozen=True, slots=True)
class _Job:
    """One batch to cut: which set, which images of it, and how; no draw means whole images."""

    part: str
    indices: tuple[int, ...]
    draw: Draw | None


class BatchCutter(Closing):
    """Cuts batches from several sets of images, in order and a few ahead.

    Parameters
    ----------
    sets : mapping of str to PreparedImages
        The sets by the name under which batches of them are asked for.
    workers : int
        Processes that read, prepare and cut; 0 uses a thread of this process. Processes are spawned, and end when
        this process does, however it ends.
    """

    def __init__(self, sets: Mapping[str, PreparedImages], workers: int = 0) -> None:
        self.sets = dict(sets)
        self._pool: Executor
        self._cut: Callable[[_Job], Batch]
        if workers:
            # Spawned, not forked: a fork would copy locks of the threads that PyTorch runs here.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(self.sets,))
            self._cut = _cut_in_worker
        else:
            self._pool = ThreadPoolExecutor(max_workers=1)
            self._cut = self._cut_here
        self._ahead = _AHEAD * max(1, workers)

    def cut(self, jobs: Iterable[_Job]) -> Iterator[Batch]:
        """Yield the batch of each job, in order; at most a few are held."""
        waiting: deque[Future[Batch]] = deque()
        remaining = iter(jobs)
        try:
            for job in remaining:
                waiting.append(self._pool.submit(self._cut, job))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UnetxError(
                "a worker process died, perhaps for want of memory: use fewer --workers, or 0 for none"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the thread or the processes; batches that were not asked for are not cut."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _cut_here(self, job: _Job) -> Batch:
        return _cut_batch(self.sets[job.part], job)


def random_batches(cutter: BatchCutter, part: str, batch_size: int, draw: Draw) -> Iterator[Batch]:
    """Yield one epoch of random views, in an order and with views that depend on seed and epoch alone.

    Parameters
    ----------
    cutter : BatchCutter
        Has the images.
    part : str
        Which of its sets; each image of it is seen once.
    batch_size : int
        Views per batch. The last batch may be smaller, but never a single view: batch normalisation needs two.
    draw : Draw
        Determines the result.
    """
    order = np.random.default_rng((draw.seed, draw.epoch)).permutation(len(cutter.sets[part]))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups.pop()
    return cutter.cut(_Job(part, tuple(group.tolist()), draw) for group in groups)


def whole_batches(cutter: BatchCutter, part: str, batch_size: int) -> Iterator[Batch]:
    """Yield every image once, whole, as it is prepared for the network, in the order of the data set."""
    count = len(cutter.sets[part])
    groups = (range(start, min(start + batch_size, count)) for start in range(0, count, batch_size))
    return cutter.cut(_Job(part, tuple(group), None) for group in groups)


def _cut_batch(images: PreparedImages, job: _Job) -> Batch:
    views = [
        _whole_view(images, index) if job.draw is None else _random_view(images, index, job.draw)
        for index in job.indices
    ]
    return Batch(np.stack([pixels for pixels, _ in views])[:, np.newaxis], np.stack([labels for _, labels in views]))


def _random_view(images: PreparedImages, index: int, draw: Draw) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    side, random = images.size_px, np.random.default_rng((draw.seed, draw.epoch, index))
    view, swap = _allowed(draw_view(random, draw.limits), images.images.label_names)
    source, mask = images.read(index, fine=min(view.zoom_yx) >= _FINE_FROM_ZOOM)
    # A value that no grey has marks what lies outside, where padding must stay padding.
    pixels = cut_view(source.astype(np.float32), view, side, order=1, outside=-1.0)
    varied = vary_grey(pixels, random, draw.limits)
    varied[pixels < 0.0] = training_contract(side).padding_value
    return varied, swap[cut_view(mask, view, side, order=0, outside=0)]


def _allowed(view: View, label_names: tuple[str, ...]) -> tuple[View, NDArray[np.uint8]]:
    """The view, not mirrored where a mirrored image could not be labelled; and the table of its labels."""
    mirrored = mirrored_labels(label_names) if view.mirrored else None
    if mirrored is None:
        view = View(view.zoom_yx, view.rotation_deg, False, view.centre_yx)
        mirrored = tuple(range(len(label_names)))
    return view, np.array(mirrored, dtype=np.uint8)


def _whole_view(images: PreparedImages, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    grey, mask = images.read(index, fine=False)
    return grey.astype(np.float32), cut_view(mask, View(), images.size_px, order=0, outside=0)


# What a worker process was given when it began; empty in any other process.
_SETS: dict[str, PreparedImages] = {}


def _begin_worker(sets: Mapping[str, PreparedImages]) -> None:
    """Prepare a new process: its sets, one thread, and an end with its parent."""
    _SETS.update(sets)
    # Ctrl-C reaches every process of a terminal: the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A parent that is killed closes no queue: its workers would wait for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    require("torch", purpose="augmenting images").set_num_threads(1)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _cut_in_worker(job: _Job) -> Batch:
    return _cut_batch(_SETS[job.part], job)
