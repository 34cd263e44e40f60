"""Launches that are recorded once and started as one: CUDA graphs, which pycuda has no interface to.

A kernel of a few microseconds takes longer to be started from Python than to run; a graph of many costs one start.
Recording is done by NVIDIA's own bindings on a stream of pycuda, in the context that is current for both.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from unetx_kernels.driver import Gpu
from unetx_kernels.errors import KernelError

__all__ = ["LaunchGraph", "record_graph", "why_not_graphs"]

_MODULE: Final = "cuda.bindings.driver"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LaunchGraph:
    """Recorded launches, with the memory that they were recorded with.

    Attributes
    ----------
    bindings : object
        NVIDIA's bindings of the driver.
    handle : object
        The executable graph; it is destroyed with this object.
    """

    bindings: Any
    handle: Any

    def start(self, *, stream: Any = None) -> None:
        """Start all launches, on a stream of `Gpu.stream` or on the default one."""
        _checked(self.bindings.cuGraphLaunch(self.handle, 0 if stream is None else stream.handle))


def why_not_graphs() -> str | None:
    """Return why no graph can be recorded here, or None."""
    try:
        importlib.import_module(_MODULE).cuDriverGetVersion()
    except ImportError as error:
        return f"no cuda-bindings for CUDA graphs ({error}): run pip install 'unetx-opt[cuda]'"
    except (OSError, RuntimeError) as error:  # what the bindings raise where the driver's library is not found
        return f"cuda-bindings find no NVIDIA driver ({str(error).splitlines()[0]}): install one"
    return None


def record_graph(gpu: Gpu, launch: Callable[[Any], None]) -> LaunchGraph:
    """Record what a function starts on the stream that it is given.

    Parameters
    ----------
    gpu : Gpu
        Its context is current.
    launch : callable
        Starts kernels on its stream and nothing else; nothing runs yet.

    Raises
    ------
    KernelError
        The bindings lack, or the driver refuses.
    """
    reason = why_not_graphs()
    if reason is not None:
        raise KernelError(reason)
    bindings = importlib.import_module(_MODULE)
    stream = gpu.stream(apart=True)
    # Relaxed: what Python's collector frees meanwhile, in this thread or another, must not end the recording.
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    _checked(bindings.cuStreamBeginCapture(stream.handle, mode))
    try:
        launch(stream)
    finally:
        recorded = bindings.cuStreamEndCapture(stream.handle)
    graph = _checked(recorded)
    try:
        handle = _checked(bindings.cuGraphInstantiate(graph, 0))
    finally:
        bindings.cuGraphDestroy(graph)
    kept = LaunchGraph(bindings, handle)
    # At the end of the process the driver frees it with its context.
    weakref.finalize(kept, bindings.cuGraphExecDestroy, handle).atexit = False
    return kept


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise KernelError(
            f"the CUDA driver refuses a graph: {status}; run without it and report the driver's version"
        )
    return values[0] if values else None
