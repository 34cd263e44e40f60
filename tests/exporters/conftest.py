"""Small models for builders: U-Nets as ONNX files, written by hand, and a checkpoint that is good at phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.runtime.host import probe_host
from unetx_opt.runtime.sessions.integers import why_not_int8
from unetx_opt.specs import EngineRecord

#: Convolutions and the transposed convolution of `tiny_unet`, in the order of the graph.
TINY_LAYERS = ("down", "bottom", "up", "merge", "head")


@pytest.fixture(scope="session")
def exact_products() -> None:
    """Skip where the CPU's sums of 8-bit products saturate: graphs in int8 then give other masks than they should."""
    reason = why_not_int8(probe_host(), EngineRecord("openvino-cpu", ("engine",), compute_dtype="int8"))
    if reason is not None:
        pytest.skip(f"needs a CPU with VNNI, whose 8-bit products are exact: {reason}")


@pytest.fixture(scope="session")
def tiny_unet() -> Callable[..., Any]:
    """Return a function that makes a U-Net of one level, 4 channels and 32 x 32 pixels as an ONNX model."""
    return _tiny_unet


def _tiny_unet(*, stored: str = "float32", computed: str = "float32", quantized: bool = False) -> Any:
    """Make the model; `stored` and `computed` are the types of the weights and of the arithmetic.

    With `quantized` every arithmetic layer but the last one reads 8-bit activations and weights through Q/DQ pairs.
    """
    onnx = pytest.importorskip("onnx")
    maker = _Maker(onnx, stored, computed, quantized)
    x = maker.cast("image", computed) if computed != "float32" else "image"
    skip = maker.layer("Conv", "down", x, (4, 1, 3, 3), pads=[1] * 4)
    pooled = maker.node("MaxPool", "pool", [skip], kernel_shape=[2, 2], strides=[2, 2])
    deep = maker.layer("Conv", "bottom", pooled, (8, 4, 3, 3), pads=[1] * 4)
    raised = maker.layer("ConvTranspose", "up", deep, (8, 4, 2, 2), strides=[2, 2])
    joined = maker.node("Concat", "join", [skip, raised], axis=1)
    merged = maker.layer("Conv", "merge", joined, (4, 8, 3, 3), pads=[1] * 4)
    logits = maker.layer("Conv", "head", merged, (1, 4, 1, 1), quantized=False)
    if computed != "float32":
        logits = maker.cast(logits, "float32")
    next(node for node in maker.nodes if logits in node.output).output[0] = "logits"
    return maker.model()


class _Maker:
    def __init__(self, onnx: Any, stored: str, computed: str, quantized: bool) -> None:
        self.onnx, self.stored, self.computed, self.quantized = onnx, stored, computed, quantized
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.rng = np.random.default_rng(5)

    def node(self, operation: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def cast(self, value: str, dtype: str) -> str:
        number = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", f"{value}.{dtype}", [value], to=number)

    def tensor(self, name: str, value: Any) -> str:
        self.tensors.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def layer(
        self, operation: str, name: str, x: str, shape: tuple[int, ...], *, quantized: bool = True, **attributes: Any
    ) -> str:
        fan_in = shape[0] if operation == "ConvTranspose" else int(np.prod(shape[1:]))
        weight = (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        quantized = quantized and self.quantized
        if quantized:
            inputs = [self.eight_bit(name, x), self._quantized_weight(name, weight)]
        else:
            inputs = [x, self.tensor(f"{name}.weight", weight.astype(self.stored))]
            if self.stored != self.computed:
                inputs[1] = self.cast(inputs[1], self.computed)
        out = self.node(operation, name, inputs, **attributes)
        if name not in ("head", "up"):
            out = self.node("Relu", f"{name}.relu", [out])
        return self.eight_bit(f"{name}.result", out) if quantized else out

    def eight_bit(self, name: str, x: str) -> str:
        # A zero point of 0 says what the rectifier does; with another one it cannot be merged into the layer.
        pair = [
            self.tensor(f"{name}.scale", np.float32(0.01)),
            self.tensor(f"{name}.zero", np.uint8(128 if x in ("up.out", "join.out") else 0)),
        ]
        quantized = self.node("QuantizeLinear", f"{name}.quantize", [x, *pair])
        return self.node("DequantizeLinear", f"{name}.dequantize", [quantized, *pair])

    def _quantized_weight(self, name: str, weight: Any) -> str:
        scale = np.float32(np.abs(weight).max() / 127)
        tensors = [
            self.tensor(f"{name}.weight", np.rint(weight / scale).astype(np.int8)),
            self.tensor(f"{name}.weight.scale", scale),
            self.tensor(f"{name}.weight.zero", np.int8(0)),
        ]
        return self.node("DequantizeLinear", f"{name}.weight.dequantize", tensors)

    def model(self) -> Any:
        helper, floats = self.onnx.helper, self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("image", floats, ["N", 1, 32, 32])],
            [helper.make_tensor_value_info("logits", floats, ["N", 1, 32, 32])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        self.onnx.checker.check_model(model, full_check=True)
        return model


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that writes the graphs of a request for `tiny_unet`; models may be given instead."""

    def write(precision: str = "fp32", **models: Any) -> Any:
        from unetx_exporters.request import BuildRequest
        from unetx_opt.specs import Precision

        half = precision == "fp16"
        typed = {"stored": "float16", "computed": "float16"} if half else {"quantized": precision == "int8"}
        made = {
            "graph_fp32": _tiny_unet,
            "graph": lambda: _tiny_unet(**typed),
            "graph_stored": lambda: _tiny_unet(stored="float16" if half else "float32"),
        }
        paths = {}
        for name, make in made.items():
            paths[name] = tmp_path / f"{name}.onnx"
            model = models.pop(name, None) or make()
            paths[name].write_bytes(model.SerializeToString())
        kinds = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
        kept = {"head": "float32"} if precision == "int8" else {}
        directory = tmp_path / "bundle"
        directory.mkdir(exist_ok=True)
        return BuildRequest(
            **paths,
            precision=Precision(precision),
            directory=directory,
            layer_types={**dict.fromkeys(TINY_LAYERS, kinds[precision]), **kept},
        )

    return write


TINY_SIZE_PX = 64


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attention model of width 4 and depth 3, trained for seconds on phantoms of 64 x 64 px."""
    import numpy as np
    import torch

    from unetx_opt.imaging.phantom import chest_phantom
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec
    from unetx_opt.specs import InputContract

    contract = InputContract(height=TINY_SIZE_PX, width=TINY_SIZE_PX)
    pairs = [chest_phantom(seed, size_px=TINY_SIZE_PX) for seed in range(32)]
    images = torch.from_numpy(np.stack([prepare_image(pixels, contract)[0] for pixels, _ in pairs]))
    masks = torch.from_numpy(np.stack([mask for _, mask in pairs]).astype(np.float32))[:, None]
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small are slower on more, and much slower on a busy machine
    model = build_model(variant_spec("attention", width=4, depth=3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        batch = torch.randperm(len(images))[:8]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images[batch]), masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    write_checkpoint(path, model.eval(), "attention")
    return path
