"""How far the tensors of an engine may be from what they should be, for each type that it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_opt.specs import EngineRecord

__all__ = ["LIMITS", "JunctionLimit", "follows_graph", "is_exact", "limit_of"]


@dataclass(frozen=True, slots=True)
class JunctionLimit:
    """How far a tensor of an engine may be from the expected one, as `relative_error`.

    Attributes
    ----------
    torch : float
        From the FP32 module: what rounding to the engine's type may do over the depth of the network.
    graph : float
        From the engine's own graph, unoptimised: what another order of sums, and a value that rounds the other
        way, may do.
    """

    torch: float
    graph: float


#: Type that an engine computes in -> limits. A convolution that reads other pixels than it should is 1 or more away.
LIMITS: Final[Mapping[str, JunctionLimit]] = MappingProxyType(
    {
        "float32": JunctionLimit(torch=1e-3, graph=1e-3),
        "float16": JunctionLimit(torch=0.02, graph=0.02),
        "bfloat16": JunctionLimit(torch=0.06, graph=0.06),
        "int8": JunctionLimit(torch=0.25, graph=0.15),
    }
)
#: An fp16 request stores its weights rounded also where the arithmetic is float32.
_STORED_HALF: Final = JunctionLimit(torch=0.02, graph=1e-3)
#: So it does in 8 bits where that was asked for. The graph says so: an engine follows it as closely as any other.
_STORED_INT8: Final[Mapping[str, JunctionLimit]] = MappingProxyType(
    {
        "float32": JunctionLimit(torch=LIMITS["int8"].torch, graph=LIMITS["float32"].graph),
        "bfloat16": JunctionLimit(torch=LIMITS["int8"].torch, graph=LIMITS["bfloat16"].graph),
    }
)


def follows_graph(record: EngineRecord) -> bool:
    """Whether an engine rounds as its graph says, and nowhere else."""
    hint = record.settings.get("inference_precision", "f32")
    return hint == "f32" and record.compute_dtype in ("float32", "int8")


def is_exact(record: EngineRecord) -> bool:
    """Whether an engine rounds nowhere: its weights and its arithmetic are float32."""
    return follows_graph(record) and {record.compute_dtype, record.storage_dtype} == {"float32"}


def limit_of(record: EngineRecord) -> JunctionLimit:
    """Choose the limit for an engine."""
    if "int8" in record.layers.values():  # one narrow layer is enough to move everything behind it
        return LIMITS["int8"]
    if record.storage_dtype == "int8" and record.compute_dtype in _STORED_INT8:
        return _STORED_INT8[record.compute_dtype]
    if record.compute_dtype == "float32" and record.storage_dtype == "float16":
        return _STORED_HALF
    return LIMITS.get(record.compute_dtype, LIMITS["int8"])
