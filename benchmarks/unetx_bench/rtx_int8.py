"""In which forms TensorRT-RTX computes in 8 bits for a compute capability; it needs no GPU.

    python -m unetx_bench.rtx_int8 -o rtx-int8.json --compute-capability 7.5 --compute-capability 8.6

A network of three layers is written in each form of `FORMS`, built, and the types of its layers are read from the
builder's own list.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click
import numpy as np

from unetx_bench.errors import MeasurementError
from unetx_opt.files import write_file
from unetx_opt.optional import require

__all__ = ["FORMS", "Form", "main", "read_arithmetic", "write_network"]

_PURPOSE: Final = "asking TensorRT-RTX for its arithmetic"
_LAYERS: Final = 3
_SIDE_PX: Final = 64
#: Layers that multiply, as the builder calls them.
_PRODUCTS: Final = ("correlation", "gemm")


@dataclass(frozen=True, slots=True)
class Form:
    """How the layers are written; the defaults are the exporter's.

    Attributes
    ----------
    product : str
        "Conv" or "MatMul".
    channels, kernel_px : int
        In and out, and side of the window.
    per_tensor : bool
        One scale for all weights.
    has_bias, has_relu, quantizes_output : bool
        What follows a product.
    beside : str
        "float16" or "float32": the type between the layers.
    """

    product: str = "Conv"
    channels: int = 64
    kernel_px: int = 3
    per_tensor: bool = False
    has_bias: bool = True
    has_relu: bool = True
    quantizes_output: bool = True
    beside: str = "float16"


FORMS: Final = MappingProxyType(
    {
        "as exported": Form(),
        "one scale for all weights": Form(per_tensor=True),
        "no bias": Form(has_bias=False),
        "no bias, no ReLU": Form(has_bias=False, has_relu=False),
        "float32 beside": Form(beside="float32"),
        "float32 beside, no bias": Form(beside="float32", has_bias=False),
        "1 x 1": Form(kernel_px=1),
        "16 channels": Form(channels=16),
        "32 channels": Form(channels=32),
        "128 channels": Form(channels=128),
        "output not quantized": Form(quantizes_output=False),
        "matrix product": Form(product="MatMul", has_bias=False, has_relu=False),
    }
)


def write_network(form: Form) -> bytes:
    """Write a network of three products with explicit quantization, as ONNX."""
    onnx = require("onnx", purpose=_PURPOSE)
    helper, dtype = onnx.helper, np.dtype(form.beside)
    element = helper.np_dtype_to_tensor_dtype(dtype)
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantized(source: str, name: str) -> str:
        given = [constant(f"{name}_scale", dtype.type(0.05)), constant(f"{name}_zero", np.int8(0))]
        nodes.append(helper.make_node("QuantizeLinear", [source, *given], [f"{name}_8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_8", *given], [name]))
        return name

    def weights(name: str) -> str:
        sides = (form.kernel_px,) * 2 if form.product == "Conv" else ()
        values = random.integers(-127, 127, (form.channels, form.channels, *sides)).astype(np.int8)
        scales = dtype.type(0.01) if form.per_tensor else np.full(form.channels, 0.01, dtype)
        given = [constant(f"{name}_8", values), constant(f"{name}_scale", scales)]
        given.append(constant(f"{name}_zero", np.zeros(scales.shape, np.int8)))
        axis = {} if form.per_tensor else {"axis": 0 if form.product == "Conv" else 1}
        nodes.append(helper.make_node("DequantizeLinear", given, [name], **axis))
        return name

    tensor = "input"
    for index in range(_LAYERS):
        inputs = [quantized(tensor, f"x{index}"), weights(f"w{index}")]
        if form.has_bias:
            inputs.append(constant(f"b{index}", np.zeros(form.channels, dtype)))
        pads = {"pads": [form.kernel_px // 2] * 4} if form.product == "Conv" else {}
        tensor = f"y{index}"
        nodes.append(helper.make_node(form.product, inputs, [tensor], **pads))
        if form.has_relu:
            nodes.append(helper.make_node("Relu", [tensor], [f"r{index}"]))
            tensor = f"r{index}"
    nodes.append(
        helper.make_node("Identity", [quantized(tensor, "z") if form.quantizes_output else tensor], ["output"])
    )
    sides = [1, form.channels, _SIDE_PX, _SIDE_PX] if form.product == "Conv" else [_SIDE_PX**2, form.channels]
    ends = [[helper.make_tensor_value_info(name, element, sides)] for name in ("input", "output")]
    graph = helper.make_graph(nodes, "products", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def read_arithmetic(network: bytes, compute_capability: str) -> list[str]:
    """Build for a compute capability, and return the types that each product's tensors have, "Half+Int8" for two.

    Raises
    ------
    MeasurementError
        The network is not taken, or no plan comes of it.
    """
    trt = require("tensorrt_rtx", purpose=_PURPOSE)
    lists: list[str] = []

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            del severity
            if "Layers:" in message:
                lists.append(message)

    logger = Listener()
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(network):
        raise MeasurementError(f"TensorRT-RTX does not take the network: {str(parser.get_error(0))[:200]}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{compute_capability.replace('.', '')}"), 0)
    if builder.build_serialized_network(definition, config) is None:
        raise MeasurementError("TensorRT-RTX gives no plan")
    lines = "\n".join(lists).splitlines()
    products = [line for line in lines if any(f"LayerType: {kind}," in line for kind in _PRODUCTS)]
    return ["+".join(sorted(set(re.findall(r"Datatype: (\w+)", line)))) for line in products]


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file.")
@click.option("--compute-capability", "capabilities", multiple=True, default=("7.5", "8.6"), show_default=True)
def main(output: Path, capabilities: tuple[str, ...]) -> None:
    """List in which forms TensorRT-RTX multiplies in 8 bits."""
    rows = []
    for name, form in FORMS.items():
        for capability in capabilities:
            row: dict[str, Any] = {"form": name, **asdict(form), "compute_capability": capability}
            try:
                row["products"] = read_arithmetic(write_network(form), capability)
            except MeasurementError as error:
                row["why_not"] = str(error)
            rows.append(row)
            click.echo(f"{name}, {capability}: {', '.join(row.get('products', [row.get('why_not')]))}")
    version = require("tensorrt_rtx", purpose=_PURPOSE).__version__
    write_file(output, json.dumps({"tensorrt_rtx": version, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
