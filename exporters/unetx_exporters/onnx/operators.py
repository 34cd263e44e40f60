"""What is known of single ONNX operators, beyond their schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="working on an ONNX graph")

__all__ = ["EXACT", "GATE_DOMAIN", "MOVEMENT", "WEIGHTED", "takes_half"]

#: Of this project's own operator, `unetx_exporters.onnx.attention_function`.
GATE_DOMAIN: Final = "unetx"

#: Operators with trained weights at input 1 and a bias at input 2.
WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Operators that compute nothing: their outputs hold values of their inputs, or shapes, or constants.
MOVEMENT: Final = frozenset(
    {
        "Cast",
        "CastLike",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Shape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)

#: Operators whose result is exact in the type of their inputs, so that rounding it again changes nothing.
EXACT: Final = MOVEMENT | {"Abs", "Clip", "Max", "MaxPool", "Min", "Neg", "Relu"}


def takes_half(node: onnx.NodeProto, index: int, opset: int) -> bool:
    """Whether an input may be float16, by the schema of ONNX; the scales of Resize, for one, may not."""
    if node.domain == GATE_DOMAIN:
        return True  # its tensors are of any one floating-point type
    if node.domain:
        return False
    formal = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
    # The last formal parameter of Concat and its like stands for all further inputs.
    return "tensor(float16)" in formal[min(index, len(formal) - 1)].types
