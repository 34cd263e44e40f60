"""An engine executed once: the graph that ONNX Runtime has optimised, held against the kernels that ran."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.onnxruntime.layers import (
    INTEGER_OPERATIONS,
    arithmetic_nodes,
    layer_dtypes,
    layer_name,
    list_names,
    shipped_names,
)
from unetx_exporters.onnxruntime.profile import ExecutedKernel, Profile, end_profile, open_profiled
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.onnxruntime import PROVIDERS, check_provider, session_options
from unetx_opt.specs import EngineRecord

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["check_execution", "execute_once"]

_EIGHT_BIT: Final = frozenset({"int8", "uint8"})


def execute_once(record: EngineRecord, path: Path) -> tuple[ModelProto, Profile]:
    """Load an engine's file, and run it once on one blank image.

    Parameters
    ----------
    record : EngineRecord
        Its target.
    path : pathlib.Path
        Its ONNX file; of the input's axes only the batch is dynamic.

    Returns
    -------
    onnx.ModelProto
        The graph after partitioning and fusion, as ONNX Runtime writes it.
    Profile
        What ran.

    Raises
    ------
    ExportError
        ONNX Runtime cannot load or run the file.
    EngineError
        The target's provider is not there.
    """
    onnx = require("onnx", purpose="reading an engine's layers back")
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, "optimized.onnx")
        # Other than in the runtime a layer may move to the CPU here: then it can be named.
        options = session_options()
        options.optimized_model_filepath = str(optimized)
        try:
            session = open_profiled(path.read_bytes(), record, options, Path(folder))
        except Exception as error:  # ONNX Runtime raises RuntimeError, ValueError and types of its own
            raise ExportError(f"ONNX Runtime cannot load the graph for {record.target}: {_line(error)}") from error
        check_provider(record.target, session.get_providers())
        try:
            session.run(None, _blank(session))
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime cannot run the graph for {record.target}: {_line(error)}") from error
        profile = end_profile(session)
        graph: ModelProto = onnx.load(optimized)
    return graph, profile


def check_execution(target: str, graph: ModelProto, kernels: Iterable[ExecutedKernel], shipped: ModelProto) -> None:
    """Compare every layer with weights of the optimised graph with the kernel that ran for it.

    Parameters
    ----------
    target : str
        Its provider must have run every layer.
    graph : onnx.ModelProto
        The optimised graph.
    kernels : iterable of ExecutedKernel
        What ran.
    shipped : onnx.ModelProto
        The engine's file, whose names the message uses.

    Raises
    ------
    ExportError
        Layers did not run, or as another operation, on other types or by another provider; they are listed.
    """
    ran: dict[str, list[str]] = defaultdict(list)
    for kernel in kernels:
        ran[kernel.name].append(_describe(kernel.operation, _computed_dtype(kernel), kernel.provider))
    layers = layer_dtypes(graph)
    names = shipped_names(layers, shipped)
    wrong = []
    for node in arithmetic_nodes(graph):
        name = layer_name(node)
        expected = _describe(node.op_type, layers[name], PROVIDERS[target])
        found = ran.get(name, ["not executed"])
        if set(found) != {expected}:
            wrong.append(f"{names[name]} ({expected} expected, {' and '.join(dict.fromkeys(found))})")
    if wrong:
        raise ExportError(
            f"{target}: {len(wrong)} of {len(layers)} layers did not run as the optimised graph says: "
            f"{list_names(wrong)}; leave the target out, or install another version of ONNX Runtime"
        )


def _describe(operation: str, dtype: str, provider: str) -> str:
    return f"{operation} in {dtype} by {provider}"


def _computed_dtype(kernel: ExecutedKernel) -> str:
    """Name the type of a kernel's arithmetic; of one that mixes floating-point types, all of them."""
    if kernel.operation in INTEGER_OPERATIONS:
        # Scales are floats, and results may be 32-bit sums: what is multiplied comes first.
        first = kernel.input_dtypes[0] if kernel.input_dtypes else "unknown"
        return "int8" if first in _EIGHT_BIT else first
    return "/".join(dict.fromkeys((*kernel.input_dtypes, *kernel.output_dtypes))) or "unknown"


def _blank(session: Any) -> dict[str, Any]:
    image = session.get_inputs()[0]
    shape = [length if isinstance(length, int) else 1 for length in image.shape]
    return {image.name: np.zeros(shape, np.float32)}


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
