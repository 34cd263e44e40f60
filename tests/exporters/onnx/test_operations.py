"""Operations of a graph, against PyTorch's own counter and sums done by hand."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from unetx_exporters.onnx.operations import count_operations
from unetx_exporters.onnx.trace import trace_onnx
from unetx_opt.errors import ExportError
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import variant_spec


def torch_flop(variant: str, size_px: int, batch: int, width: int = 4) -> int:
    with torch.device("meta"):
        model = build_model(variant_spec(variant, width=width)).eval()
        image = torch.empty(batch, 1, size_px, size_px)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("variant", ["unet", "attention", "dilated"])
def test_convolutions_count_as_in_pytorch(variant: str) -> None:
    model = build_model(variant_spec(variant, width=4))
    for batch in (1, 3):
        count = count_operations(trace_onnx(model, 64, 64).model, 64, 64, batch)
        biases = sum(
            layer.flop for layer in count.layers.values() if layer.op_type in ("Conv", "ConvTranspose")
        ) - torch_flop(variant, 64, batch)
        # PyTorch counts no bias: one addition per output element, a small share of the whole.
        assert 0 < biases < 0.05 * count.total_flop


def graph_of(node: onnx.NodeProto, shape: list[int], weights: dict[str, list[int]]) -> onnx.ModelProto:
    tensors = [helper.make_tensor(n, TensorProto.FLOAT, s, [0.0] * _size(s)) for n, s in weights.items()]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def test_a_grouped_strided_convolution_with_bias_counts_by_hand() -> None:
    node = helper.make_node(
        "Conv", ["image", "w", "b"], ["logits"], "conv", group=2, strides=[2, 2], pads=[1, 1, 1, 1]
    )
    model = graph_of(node, [4, 8, 8], {"w": [6, 2, 3, 3], "b": [6]})
    count = count_operations(model, 8, 8)
    outputs = 6 * 4 * 4
    assert count.total_flop == outputs * (2 * 2 * 9 + 1)
    assert count.parameters == 6 * 2 * 9 + 6
    assert count.bytes_moved == 4 * (4 * 8 * 8 + outputs + 6 * 2 * 9 + 6)


def test_a_transposed_convolution_counts_by_hand() -> None:
    node = helper.make_node("ConvTranspose", ["image", "w"], ["logits"], "up", strides=[2, 2])
    count = count_operations(graph_of(node, [4, 5, 7], {"w": [4, 3, 2, 2]}), 5, 7)
    assert count.by_op_type == {"ConvTranspose": 2 * 4 * 5 * 7 * 3 * 4}


def test_attention_needs_at_least_15_percent_fewer_operations_than_unet_counted_from_the_graphs() -> None:
    counts = {
        variant: count_operations(trace_onnx(build_model(variant_spec(variant)), 512, 512).model, 512, 512)
        for variant in ("unet", "attention")
    }
    assert counts["unet"].total_flop == pytest.approx(24.1e9, rel=0.01)
    assert counts["attention"].total_flop <= 0.85 * counts["unet"].total_flop


def test_an_operator_without_a_rule_is_named() -> None:
    node = helper.make_node("Tanh", ["image"], ["logits"], "squash")
    with pytest.raises(ExportError, match=r"operator Tanh \(squash\) has no rule"):
        count_operations(graph_of(node, [1, 4, 4], {}), 4, 4)
