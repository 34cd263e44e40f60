"""The ONNX operator `unetx::AttentionGate`, and its meaning in standard operators for engines that do not know it.

The operator is a *local function* of the model: an engine with a kernel for it takes the node, others read the
body. Inputs are theta and phi, (N, D, H, W), and values, (N, C, H, W), of one floating-point type; the output is as
values. Attributes are `window`, `dilation` and `scale`, the factor of the scores; the body is made for one window and
dilation, so a model has one of each.

TensorRT for RTX and ONNX Runtime read the body by themselves; OpenVINO 2026.4 refuses it and needs `inline_gates`. A
build does not use the operator: inlined it is the graph that the model traces to anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from unetx_exporters.onnx.operators import GATE_DOMAIN
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="writing an operator")

__all__ = ["DOMAIN", "OPERATOR", "add_attention_function", "attention_function", "has_gates", "inline_gates"]

DOMAIN: Final = GATE_DOMAIN
OPERATOR: Final = "AttentionGate"
_VERSION: Final = 1
# As in `unetx_opt.models.attention`: the score of a neighbour outside the image; float16 holds it with room to spare.
_OUTSIDE: Final = -1.0e3
_TO_THE_END: Final = 2**31 - 1


def has_gates(model: onnx.ModelProto) -> bool:
    """Whether a graph has the operator in it."""
    return any(node.domain == DOMAIN for node in model.graph.node)


def add_attention_function(model: onnx.ModelProto, opset: int) -> None:
    """Give a model the body of the operator that its nodes name.

    Raises
    ------
    ExportError
        Its nodes differ in window or dilation.
    """
    kinds = {_window_and_dilation(node) for node in model.graph.node if node.domain == DOMAIN}
    if len(kinds) != 1:
        raise ExportError(
            f"the gates have windows and dilations {sorted(kinds)}, expected the same for all of a model"
        )
    del model.functions[:]
    model.functions.append(attention_function(*kinds.pop(), opset))
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, _VERSION))


def inline_gates(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose gates are standard operators; the model itself where it has none."""
    if not has_gates(model):
        return model
    inlined: onnx.ModelProto = require("onnx.inliner", purpose="inlining a gate").inline_local_functions(model)
    for node in inlined.graph.node:
        node.name = node.name or node.output[0]
    kept = [entry for entry in inlined.opset_import if entry.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def attention_function(window: int, dilation: int, opset: int) -> onnx.FunctionProto:
    """Write the operator's body for one window and dilation.

    Shifted slices of padded tensors, as in the model's own graph: nothing is gathered, and no k * k copies are made.
    """
    body = _Body()
    reach = window // 2 * dilation
    body.add("Constant", [], "scale", value_float=onnx.AttributeProto(ref_attr_name="scale"))
    scale = body.add("CastLike", ["scale", "theta"])
    theta = body.add("Mul", ["theta", scale])
    keys, near = (body.padded(name, (reach, reach)) for name in ("phi", "values"))
    row_bias = body.outside("theta", 2, (reach, 0))
    column_bias = body.outside("theta", 3, (0, reach))
    channel_axis = body.integers([1])
    scores, views = [], []
    for top in range(0, 2 * reach + 1, dilation):
        bands = [body.sliced(tensor, 2, top, reach) for tensor in (keys, near, row_bias)]
        for left in range(0, 2 * reach + 1, dilation):
            key, view = (body.sliced(band, 3, left, reach) for band in bands[:2])
            score = body.add("ReduceSum", [body.add("Mul", [theta, key]), channel_axis], keepdims=1)
            if top != reach:  # the middle row of the window is never outside
                score = body.add("Add", [score, bands[2]])
            if left != reach:
                score = body.add("Add", [score, body.sliced(column_bias, 3, left, reach)])
            scores.append(score)
            views.append(view)
    weights = body.add("Softmax", [body.add("Concat", scores, axis=1)], axis=1)
    parts = [f"weight.{tap}" for tap in range(len(views))]
    body.add_many("Split", [weights], parts, axis=1, num_outputs=len(parts))
    attended = ""
    for part, view in zip(parts, views, strict=True):
        term = body.add("Mul", [part, view])
        attended = body.add("Add", [attended, term]) if attended else term
    body.add("Identity", [attended], "attended")
    return onnx.helper.make_function(
        DOMAIN,
        OPERATOR,
        ["theta", "phi", "values"],
        ["attended"],
        body.nodes,
        [onnx.helper.make_opsetid("", opset)],
        attributes=["window", "dilation", "scale"],
    )


def _window_and_dilation(node: onnx.NodeProto) -> tuple[int, int]:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    return int(numbers["window"]), int(numbers.get("dilation", 1))


class _Body:
    """Nodes of a function, and constants that are made once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[int, ...], str] = {}

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}.{len(self.nodes)}"
        self.add_many(operator, inputs, [name], **attributes)
        return name

    def add_many(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        given = {name: value for name, value in attributes.items() if not isinstance(value, onnx.AttributeProto)}
        node = onnx.helper.make_node(operator, inputs, outputs, **given)  # a name would be that of every gate
        for name, reference in attributes.items():
            if isinstance(reference, onnx.AttributeProto):
                node.attribute.add(name=name, type=onnx.AttributeProto.FLOAT, ref_attr_name=reference.ref_attr_name)
        self.nodes.append(node)

    def integers(self, values: list[int]) -> str:
        key = tuple(values)
        if key not in self._constants:
            self._constants[key] = self.add("Constant", [], value_ints=values)
        return self._constants[key]

    def padded(self, tensor: str, margins: tuple[int, int], fill: str = "") -> str:
        down, across = margins
        pads = self.integers([0, 0, down, across, 0, 0, down, across])
        return self.add("Pad", [tensor, pads, *([fill] if fill else [])])

    def sliced(self, tensor: str, axis: int, start: int, reach: int) -> str:
        """Take what is `reach` shorter on both sides together, from `start` on."""
        end = start - 2 * reach if start < 2 * reach else _TO_THE_END
        return self.add("Slice", [tensor, self.integers([start]), self.integers([end]), self.integers([axis])])

    def outside(self, like: str, axis: int, margins: tuple[int, int]) -> str:
        """Make one line along an axis: 0 inside the image, and what keeps a neighbour out in the margins."""
        length = self.add("Shape", [like], start=axis, end=axis + 1)
        ones = (
            [self.integers([1, 1, 1]), length] if axis == 3 else [self.integers([1, 1]), length, self.integers([1])]
        )
        zeros = self.add("ConstantOfShape", [self.add("Concat", ones, axis=0)])
        if "out.value" not in {node.output[0] for node in self.nodes}:
            self.add("Constant", [], "out.value", value_float=_OUTSIDE)
        return self.add("CastLike", [self.padded(zeros, margins, "out.value"), like])
