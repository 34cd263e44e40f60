"""What the CRF's launcher asks of a driver that only writes it down; no GPU takes part."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unetx_kernels.dense_crf import inference, launch
from unetx_kernels.dense_crf.inference import MOST_PLANS, infer_on_gpu, why_not_on_gpu
from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.errors import KernelError

USUAL = Energies(3.0, 3.0, 80.0, 13.0, 10.0)
NORMS = ["crf_smooth_rows", "crf_scale", "crf_splat", "crf_blur_nodes", "crf_blur_nodes", "crf_scale"]
ITERATION = ["crf_smooth_rows", "crf_splat", "crf_blur_nodes", "crf_blur_nodes", "crf_update"]


class RecordingDriver(ModuleType):
    """As much of pycuda.driver as the CRF uses. Memory is a number; what is fetched from it is 0.5."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.log: list[tuple[Any, ...]] = []
        self.current, self.owner = 0, 0
        self.memories = 1000
        self.full = False
        context = SimpleNamespace(push=lambda: self._move(1), detach=lambda: None)
        capability = SimpleNamespace(
            compute_capability=lambda: (9, 0),
            name=lambda: "a GPU",
            retain_primary_context=lambda: context,
            get_attribute=lambda attribute: 1,
        )
        self.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=1, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR=2)
        self.Device: Any = lambda index: capability
        self.Device.count = lambda: 1
        self.Context = SimpleNamespace(pop=lambda: self._move(-1))

    def _move(self, by: int) -> None:
        if self.current == 0:
            self.owner = threading.get_ident()
        assert self.owner == threading.get_ident(), "two threads at once"
        self.current += by

    def init(self) -> None:
        pass

    def get_driver_version(self) -> int:
        return 13000

    def module_from_buffer(self, binary: bytes) -> Any:
        return SimpleNamespace(get_function=self._function)

    def mem_alloc(self, size: int) -> int:
        if self.full:
            raise self.Error("cuMemAlloc failed: out of memory")
        self.memories += 1
        self.log.append(("mem_alloc", size))
        return self.memories

    def to_device(self, array: Any) -> int:
        return self.mem_alloc(array.nbytes)

    def memcpy_htod(self, memory: int, array: Any) -> None:
        assert self.current == 1
        self.log.append(("memcpy_htod", array.dtype.name, array.shape))

    def memcpy_dtoh(self, into: Any, memory: int) -> None:
        self.log.append(("memcpy_dtoh",))
        into[:] = 0.5

    def _function(self, name: str) -> Any:
        return lambda *arguments, **_: self.log.append(("launch", name, [argument.item() for argument in arguments]))

    def told(self, what: str) -> list[Any]:
        return [call[1] for call in self.log if call[0] == what]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RecordingDriver]:
    driver = RecordingDriver()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(launch, "module_binary", lambda whole, narrow, cache: (b"", "test"))
    monkeypatch.setattr(inference, "why_not_graphs", lambda: "not here")
    monkeypatch.setattr(inference, "default_cache", lambda: tmp_path)
    yield driver
    inference._plans(tmp_path).close()
    assert driver.current == 0


def _infer(height: int = 6, width: int = 5, level: int = 9, iterations: int = 2) -> Any:
    image = np.full((height, width), level, dtype=np.uint8)
    return infer_on_gpu(np.zeros((3, height, width)), image, USUAL, iterations)


def test_the_crf_of_an_image_is_uploaded_computed_and_fetched_with_a_recording_driver(
    recording: RecordingDriver,
) -> None:
    assert (_infer() == 0.5).all()
    assert recording.told("launch") == [*NORMS, "crf_start", *ITERATION, *ITERATION]
    # The last update alone writes probabilities.
    given = [call[2][12] for call in recording.log if call[:2] == ("launch", "crf_update")]
    assert given == [0, recording.memories]
    assert [call[1:] for call in recording.log if call[0] == "memcpy_htod"] == [
        ("float32", (3, 6, 5)),
        ("uint8", (6, 5)),
    ]


def test_the_next_image_of_the_size_takes_no_memory_with_a_recording_driver(recording: RecordingDriver) -> None:
    _infer()
    taken = len(recording.told("mem_alloc"))
    _infer()
    assert len(recording.told("mem_alloc")) == taken
    assert len(recording.told("launch")) == 2 * len([*NORMS, "crf_start", *ITERATION, *ITERATION])
    _infer(level=250)
    assert len(recording.told("mem_alloc")) == taken
    _infer(iterations=3)
    assert len(recording.told("mem_alloc")) == 2 * taken


def test_the_plan_unused_for_longest_is_closed_first_with_a_recording_driver(recording: RecordingDriver) -> None:
    for height in range(6, 6 + MOST_PLANS):
        _infer(height)
    _infer(6)
    _infer(40)
    taken = len(recording.told("mem_alloc"))
    _infer(6)
    assert len(recording.told("mem_alloc")) == taken
    _infer(7)
    assert len(recording.told("mem_alloc")) > taken


def test_images_of_several_threads_take_turns_with_a_recording_driver(recording: RecordingDriver) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: _infer(6 + index % 3), range(12)))
    assert all((one == 0.5).all() for one in found)


def test_where_graphs_can_be_recorded_an_image_is_one_start_with_a_recording_driver(
    recording: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    graph = SimpleNamespace(start=lambda: started.append("graph"))
    monkeypatch.setattr(inference, "why_not_graphs", lambda: None)
    monkeypatch.setattr(launch, "record_graph", lambda gpu, start: start("a stream") or graph)
    _infer()
    _infer()
    assert started == ["graph", "graph"]
    assert len(recording.told("launch")) == len([*NORMS, "crf_start", *ITERATION, *ITERATION])


def test_what_the_gpu_refuses_is_an_error_and_the_next_image_runs_with_a_recording_driver(
    recording: RecordingDriver,
) -> None:
    recording.full = True
    with pytest.raises(KernelError, match="a GPU fails: cuMemAlloc failed: out of memory"):
        _infer()
    recording.full = False
    assert (_infer() == 0.5).all()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(KernelError, match=r"expected \(K, H, W\) and uint8"):
        infer_on_gpu(np.zeros((3, 6, 5)), np.zeros((5, 5), np.uint8), USUAL, 2)


def test_why_not_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "why_not", lambda: "no driver")
    assert why_not_on_gpu() == "no driver"
    monkeypatch.setattr(inference, "why_not", lambda: None)
    monkeypatch.setattr(inference, "RELEASED", Path("nowhere"))
    monkeypatch.setattr(inference, "why_not_compile", lambda: "no compiler")
    assert why_not_on_gpu() == "no compiler"
