"""Whether an engine that is called int8 computes most of its operations in int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from unetx_opt.errors import ExportError
from unetx_opt.optional import require

__all__ = ["LEAST_SHARE", "int8_share", "require_int8"]

#: Least share of the operations.
LEAST_SHARE: Final = 0.5
_SHOWN: Final = 8


def require_int8(target: str, graph_fp32: Path, layers: Mapping[str, str]) -> None:
    """Refuse an engine that runs mostly in floating point.

    Parameters
    ----------
    target : str
        Name of the target, for the message.
    graph_fp32 : pathlib.Path
        Graph from which the operations are counted.
    layers : mapping of str to str
        Layer to type, as read back from the engine.

    Raises
    ------
    ExportError
        Less than `LEAST_SHARE` of the operations are int8; the layers that are not are listed, the largest first.
    """
    from unetx_exporters.onnx.operations import count_operations

    onnx = require("onnx", purpose="attesting an int8 engine")
    operations = count_operations(onnx.load(graph_fp32)).by_layer
    share = int8_share(operations, layers)
    if share < LEAST_SHARE:
        wide = [name for name, dtype in layers.items() if dtype != "int8" and name in operations]
        wide.sort(key=lambda name: -operations[name])
        named = ", ".join(f"{name} ({layers[name]})" for name in wide[:_SHOWN])
        more = f" and {len(wide) - _SHOWN} more" if len(wide) > _SHOWN else ""
        raise ExportError(
            f"{target}: {share:.0%} of the operations run in int8, expected {LEAST_SHARE:.0%} or more; "
            f"in floating point are {named}{more}: choose fp16, or leave the target out"
        )


def int8_share(operations: Mapping[str, int], layers: Mapping[str, str]) -> float:
    """Share of the operations of the known layers that run in int8, 0 to 1."""
    known = {name: count for name, count in operations.items() if name in layers}
    total = sum(known.values())
    return sum(count for name, count in known.items() if layers[name] == "int8") / total if total else 0.0
