"""Recording launches as one graph, with bindings and a driver that only write down what they are told."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unetx_kernels.driver import Gpu
from unetx_kernels.errors import KernelError
from unetx_kernels.graphs import record_graph, why_not_graphs


class RecordingBindings(ModuleType):
    """As much of cuda.bindings.driver as is used; every call answers with a status and its own number."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__("cuda.bindings.driver")
        self.log: list[tuple[Any, ...]] = []
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")

        def call(name: str) -> Any:
            def answer(*arguments: Any) -> tuple[int, ...]:
                self.log.append((name, *arguments))
                values = {"cuStreamEndCapture": (11,), "cuGraphInstantiate": (12,)}.get(name, ())
                return (900 if name == refuses else 0, *values)

            return answer

        for name in ("StreamBeginCapture", "StreamEndCapture", "GraphInstantiate", "GraphDestroy", "GraphLaunch"):
            setattr(self, f"cu{name}", call(f"cu{name}"))
        self.cuGraphExecDestroy = call("cuGraphExecDestroy")
        self.cuDriverGetVersion = lambda: (0, 13000)


def _gpu() -> Gpu:
    driver = SimpleNamespace(Stream=lambda flags: SimpleNamespace(handle=100 + flags))
    return Gpu("a GPU", "sm_90", 13000, driver, None)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> RecordingBindings:
    recording = RecordingBindings()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", recording)
    return recording


def test_launches_are_recorded_on_a_stream_apart_and_started_as_one_with_recording_bindings(
    bindings: RecordingBindings,
) -> None:
    graph = record_graph(_gpu(), lambda stream: bindings.log.append(("launched", stream.handle)))
    graph.start()
    graph.start(stream=SimpleNamespace(handle=7))
    assert bindings.log == [
        ("cuStreamBeginCapture", 101, "relaxed"),
        ("launched", 101),
        ("cuStreamEndCapture", 101),
        ("cuGraphInstantiate", 11, 0),
        ("cuGraphDestroy", 11),
        ("cuGraphLaunch", 12, 0),
        ("cuGraphLaunch", 12, 7),
    ]
    del graph
    gc.collect()
    assert bindings.log[-1] == ("cuGraphExecDestroy", 12)


def test_a_launch_that_fails_ends_the_recording_with_recording_bindings(bindings: RecordingBindings) -> None:
    def fail(stream: Any) -> None:
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        record_graph(_gpu(), fail)
    assert [call[0] for call in bindings.log] == ["cuStreamBeginCapture", "cuStreamEndCapture"]


@pytest.mark.parametrize("refuses", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_the_driver_refuses_is_an_error(refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", RecordingBindings(refuses))
    with pytest.raises(KernelError, match="refuses a graph: 900"):
        record_graph(_gpu(), lambda stream: None)


def test_without_the_bindings_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert "unetx-opt[cuda]" in str(why_not_graphs())
    with pytest.raises(KernelError, match="no cuda-bindings"):
        record_graph(_gpu(), lambda stream: None)


def test_without_a_driver_the_reason_says_so() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert "find no NVIDIA driver" in str(why_not_graphs())
    else:
        assert why_not_graphs() is None


def test_the_names_that_are_used_are_those_of_the_real_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    used = [name for name in vars(RecordingBindings()) if name.startswith("cu")]
    assert len(used) == 7
    assert all(callable(getattr(real, name)) for name in used)
    assert int(real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED) == 2
