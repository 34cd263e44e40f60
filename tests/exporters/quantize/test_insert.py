"""Q/DQ graphs against a simulation by hand, against another quantizer, and against the rules of each scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from unetx_exporters.quantize.calibrate import calibrate_ranges
from unetx_exporters.quantize.insert import QuantizePlan, insert_qdq, planned_types
from unetx_exporters.quantize.ranges import TensorRange, choose_scales
from unetx_opt.errors import ExportError
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

SIZE_PX = 64


def phantom(seed: int) -> np.ndarray:
    contract = InputContract(height=SIZE_PX, width=SIZE_PX)
    image: np.ndarray = prepare_image(chest_phantom(seed, size_px=SIZE_PX)[0], contract)[0][np.newaxis]
    return image


def traced(variant: str) -> Any:
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec

    torch.manual_seed(3)
    module = build_model(variant_spec(variant, width=8, depth=2))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # statistics and factors that a trained model would have
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, std=0.3)
            torch.nn.init.uniform_(layer.running_var, 0.1, 0.5)
    return trace_onnx(module.eval(), SIZE_PX, SIZE_PX).model


@pytest.fixture(scope="module")
def unet() -> Any:
    return traced("unet")


@pytest.fixture(scope="module")
def attention() -> Any:
    return traced("attention")


def ranges_of(model: Any) -> dict[str, TensorRange]:
    calibration = calibrate_ranges(model, (phantom(seed) for seed in range(4)))
    return {name: TensorRange(h.low, h.high, "min-max", 0.0) for name, h in calibration.histograms.items()}


@pytest.fixture(scope="module")
def unet_ranges(unet: Any) -> dict[str, TensorRange]:
    return ranges_of(unet)


def layers(model: Any) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]


def all_int8(model: Any, scheme: str = "cpu") -> QuantizePlan:
    return QuantizePlan(scheme, dict.fromkeys(layers(model), "int8"))


def run(model: Any, image: np.ndarray) -> np.ndarray:
    """Run a graph as it stands, without any rewriting by the engine."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"image": image})[0]
    return logits


def by_name(model: Any) -> dict[str, Any]:
    return {node.name: node for node in model.graph.node}


class ByHand:
    """The U-Net of depth 2, written out again with torch functions and rounding by hand."""

    def __init__(self, model: Any, ranges: Mapping[str, TensorRange]) -> None:
        self.tensors = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer
        }
        self.ranges = ranges

    def rounded(self, x: Any, *names: str) -> Any:
        low = min(0.0, *(self.ranges[name].low for name in names))
        high = max(0.0, *(self.ranges[name].high for name in names))
        scale = torch.tensor((high - low) / 255.0, dtype=torch.float32)
        zero = round(-low / float(scale))
        return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale

    def weights(self, name: str, axis: int) -> Any:
        w = self.tensors[f"{name}.weight"]
        scale = w.abs().amax([d for d in range(4) if d != axis], keepdim=True) / 127.0
        return torch.round(w / scale) * scale, self.tensors[f"{name}.bias"]

    def conv(self, x: Any, name: str) -> Any:
        w, b = self.weights(name, 0)
        return torch.nn.functional.conv2d(x, w, b, padding=w.shape[-1] // 2)

    def block(self, x: Any, path: str, relu: str, last: tuple[str, ...]) -> Any:
        x = self.rounded(torch.relu(self.conv(x, f"{path}.conv1")), f"{relu}.relu.out")
        return self.rounded(torch.relu(self.conv(x, f"{path}.conv2")), *last)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        up = [f"decoder.{level}.up.project.out" for level in range(2)]
        skip = [(f"encoder.{level}.relu_1.out", up[level]) for level in range(2)]
        x = self.rounded(torch.from_numpy(image), "image")
        first = self.block(x, "encoder.0", "encoder.0", skip[0])
        second = self.block(torch.nn.functional.max_pool2d(first, 2), "encoder.1", "encoder.1", skip[1])
        x = torch.nn.functional.max_pool2d(second, 2)
        x = self.block(x, "encoder.2", "encoder.2", ("junction.bottleneck",))
        for level, kept in ((1, second), (0, first)):
            w, b = self.weights(f"decoder.{level}.up.project", 1)
            raised = self.rounded(torch.nn.functional.conv_transpose2d(x, w, b, stride=2), *skip[level])
            path = f"decoder.{level}.block"
            x = self.block(torch.cat([kept, raised], 1), path, path, (f"{path}.relu_1.out",))
        logits: np.ndarray = self.conv(x, "head").numpy()
        return logits


def test_the_graph_computes_what_rounding_by_hand_computes(unet: Any, unet_ranges: dict[str, TensorRange]) -> None:
    quantized = insert_qdq(unet, unet_ranges, all_int8(unet))
    simulated = ByHand(unet, unet_ranges)
    for seed in (11, 12):
        expected, actual = simulated(phantom(seed)), run(quantized, phantom(seed))
        error = run(unet, phantom(seed)) - expected
        # Sums in another order flip single roundings; everything else is the same.
        assert np.mean(np.abs(actual - expected) > 1e-4) < 0.02
        assert np.abs(actual - expected).mean() < 0.02 * np.abs(error).mean()


def test_it_is_as_exact_as_the_graph_of_another_quantizer(unet: Any, tmp_path: Any) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": phantom(seed)} for seed in range(4)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    onnx.save(unet, tmp_path / "float.onnx")
    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "peer.onnx",
        Images(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    peer = onnx.load(tmp_path / "peer.onnx")
    ours = insert_qdq(unet, choose_scales(calibrate_ranges(unet, map(phantom, range(4))), unet), all_int8(unet))
    errors = {"ours": 0.0, "peer": 0.0}
    for seed in range(20, 26):
        expected = run(unet, phantom(seed))
        for name, model in (("ours", ours), ("peer", peer)):
            errors[name] += float(np.mean((run(model, phantom(seed)) - expected) ** 2))
    assert 0.0 < errors["ours"] < 1.1 * errors["peer"]


def test_nothing_is_quantized_without_a_layer_in_int8(unet: Any, unet_ranges: dict[str, TensorRange]) -> None:
    plain = insert_qdq(unet, unet_ranges, QuantizePlan("cpu"))
    assert {node.op_type for node in plain.graph.node} == {node.op_type for node in unet.graph.node}
    np.testing.assert_array_equal(run(plain, phantom(1)), run(unet, phantom(1)))


def test_a_layer_kept_in_float_reads_and_multiplies_what_the_float_graph_does(
    unet: Any, unet_ranges: dict[str, TensorRange]
) -> None:
    kept = ("encoder.1.conv1", "decoder.1.block.conv2")
    types = all_int8(unet).layer_types | dict.fromkeys(kept, "float32")
    nodes = by_name(insert_qdq(unet, unet_ranges, QuantizePlan("cpu", types)))
    for name in kept:
        assert list(nodes[name].input) == list(by_name(unet)[name].input)
    assert nodes["encoder.1.conv2"].input[0] == "encoder.1.relu.out.dequantized"


def test_no_tensor_is_quantized_twice_and_both_sides_of_a_concatenation_share_one_scale(
    unet: Any, unet_ranges: dict[str, TensorRange]
) -> None:
    model = insert_qdq(unet, unet_ranges, all_int8(unet))
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            source = made.get(node.input[0])
            assert source is None or source.op_type in ("Relu", "ConvTranspose")
        if node.op_type == "Concat":
            pairs = [made[name] for name in node.input]
            assert [pair.op_type for pair in pairs] == ["DequantizeLinear"] * 2
            assert list(pairs[0].input[1:]) == list(pairs[1].input[1:])
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    up, skip = (unet_ranges[name] for name in ("decoder.0.up.project.out", "encoder.0.relu_1.out"))
    scale = float(tensors[made[by_name(model)["skip0.concat"].input[0]].input[1]])
    assert scale == pytest.approx((max(up.high, skip.high) - min(up.low, 0.0)) / 255.0)


def test_weights_are_symmetric_with_one_scale_for_each_output_channel(
    unet: Any, unet_ranges: dict[str, TensorRange]
) -> None:
    model = insert_qdq(unet, unet_ranges, all_int8(unet))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    original = {t.name: onnx.numpy_helper.to_array(t) for t in unet.graph.initializer}
    for name in layers(unet):
        axis = 1 if "up.project" in name else 0
        codes, scales = tensors[f"{name}.weight.quantized"], tensors[f"{name}.weight.scale"]
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        assert scales.shape == (codes.shape[axis],)
        assert not tensors[f"{name}.weight.zero_point"].any()
        shape = [-1 if index == axis else 1 for index in range(4)]
        np.testing.assert_array_less(
            np.abs(codes * scales.reshape(shape) - original[f"{name}.weight"]),
            np.broadcast_to(0.501 * scales.reshape(shape), codes.shape),
        )
        assert f"{name}.weight" not in tensors, "the float weights are stored beside the int8 ones"


def test_tensorrt_gets_symmetric_pairs_float_biases_and_no_pair_at_a_transposed_convolution(
    unet: Any, unet_ranges: dict[str, TensorRange]
) -> None:
    model = insert_qdq(unet, unet_ranges, all_int8(unet, "tensorrt"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    types = planned_types(unet, all_int8(unet, "tensorrt"))
    assert {types[name] for name in layers(unet) if "up.project" in name} == {"float16"}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert tensors[node.input[2]].dtype == np.int8
            assert int(tensors[node.input[2]]) == 0
        if node.op_type == "ConvTranspose":
            assert tensors[node.input[1]].dtype == np.float16
        if node.op_type == "Conv":
            assert [made[name].op_type for name in node.input[:1]] != ["QuantizeLinear"]
            assert made[node.input[1]].op_type == "DequantizeLinear"
            assert tensors[node.input[2]].dtype == np.float16
    assert not [t for t in tensors.values() if t.dtype == np.int32]


def test_scales_survive_float16(unet: Any, unet_ranges: dict[str, TensorRange]) -> None:
    tiny = onnx.ModelProto()
    tiny.CopyFrom(unet)
    for tensor in tiny.graph.initializer:
        if tensor.name == "encoder.1.conv1.weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] *= 1e-9  # a dead channel
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model = insert_qdq(tiny, unet_ranges, all_int8(tiny, "tensorrt"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = tensors["encoder.1.conv1.weight.scale"]
    assert scales.dtype == np.float16
    assert float(scales.min()) >= 2.0**-14
    assert not tensors["encoder.1.conv1.weight.quantized"][0].any()


def test_the_attention_stays_float_and_its_constant_factor_goes_into_the_weights(attention: Any) -> None:
    ranges = ranges_of(attention)
    model = insert_qdq(attention, ranges, all_int8(attention))
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Softmax", "ReduceSum") or (node.op_type == "Mul" and ".gate." in node.name):
            sources = [made[name].op_type for name in node.input if name in made]
            assert "DequantizeLinear" not in sources
    assert "decoder.1.gate.mul" in by_name(attention)
    assert "decoder.1.gate.mul" not in by_name(model)
    plain = insert_qdq(attention, ranges, QuantizePlan("cpu"))
    np.testing.assert_allclose(run(plain, phantom(2)), run(attention, phantom(2)), atol=1e-4)


def test_both_sides_of_an_added_skip_are_8_bit_for_cpus_and_the_sum_is_for_both(attention: Any) -> None:
    ranges = ranges_of(attention)
    for scheme, expected in (("cpu", "DequantizeLinear"), ("tensorrt", None)):
        model = insert_qdq(attention, ranges, all_int8(attention, scheme))
        made = {name: node for node in model.graph.node for name in node.output}
        node = by_name(model)["skip0.add"]
        if expected is not None:
            assert {made[name].op_type for name in node.input} == {expected}
        assert made[by_name(model)["decoder.0.block.conv1"].input[0]].op_type == "DequantizeLinear"


def test_the_quantized_attention_graph_is_close_to_the_float_one(attention: Any) -> None:
    model = insert_qdq(attention, ranges_of(attention), all_int8(attention))
    expected = run(attention, phantom(9))
    assert np.abs(run(model, phantom(9)) - expected).mean() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize(
    ("types", "message"),
    [({"nowhere": "int8"}, "no node of that name"), ({"head": "int4"}, "the types int4")],
)
def test_a_plan_that_does_not_fit_is_refused(unet: Any, types: dict[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        insert_qdq(unet, {}, QuantizePlan("cpu", types))


def test_a_range_that_is_missing_is_named(unet: Any) -> None:
    with pytest.raises(ExportError, match=r"no range for tensor decoder.0.block.relu_1.out"):
        insert_qdq(unet, {}, QuantizePlan("cpu", {"head": "int8"}))


def test_a_graph_with_batch_normalisation_is_refused(unet: Any) -> None:
    unfolded = onnx.ModelProto()
    unfolded.CopyFrom(unet)
    unfolded.graph.node[0].op_type = "BatchNormalization"
    with pytest.raises(ExportError, match="not folded"):
        insert_qdq(unfolded, {}, QuantizePlan("cpu"))
