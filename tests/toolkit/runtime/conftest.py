"""A bundle whose engine is known: a 1 x 1 convolution, so that the mask is a threshold of the prepared image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.specs import EngineRecord, InputContract, ModelSpec, Precision

SIZE = 64
#: Prepared grey values above it are inside.
THRESHOLD = 0.5


def threshold_graph(classes: int = 1, *, poison: bool = False) -> Any:
    """ONNX graph: logit of class k = 10 k (image - 0.5); with `poison`, its logarithm's NaN is added."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    slopes = np.array([10.0 * max(k, classes == 1) for k in range(classes)], dtype=np.float32)
    weights = {"w": slopes.reshape(classes, 1, 1, 1), "b": (-THRESHOLD * slopes)}
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["scores"], name="head", kernel_shape=[1, 1])]
    if poison:
        nodes += [
            helper.make_node("Log", ["scores"], ["logarithm"], name="log"),
            helper.make_node("Add", ["scores", "logarithm"], ["logits"], name="add"),
        ]
    else:
        nodes[0].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("image", floats, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", floats, ["N", classes, SIZE, SIZE])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def graph_bytes() -> bytes:
    """The binary threshold graph as a file's bytes."""
    return bytes(threshold_graph().SerializeToString())


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a whole bundle with the engines of the given targets, and a step after them."""

    def write(
        targets: tuple[str, ...] = ("onnxruntime-cpu",), *, classes: int = 1, poison: bool = False, step: Any = None
    ) -> Path:
        from unetx_opt.bundle.write import staged_bundle, write_bundle

        path = tmp_path / "bundle"
        data = threshold_graph(classes, poison=poison).SerializeToString()
        with staged_bundle(path) as directory:
            records = [_write_engine(directory, target, data) for target in targets]
            write_bundle(directory, _manifest(records, classes, step))
        return path

    return write


def _write_engine(directory: Path, target: str, graph: bytes) -> EngineRecord:
    folder = directory / "engines" / target
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    if target != "openvino-cpu":
        return EngineRecord(target, (f"engines/{target}/model.onnx",))
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(model=graph), folder / "model.xml", compress_to_fp16=False)
    (folder / "model.onnx").unlink()
    files = tuple(f"engines/{target}/model.{kind}" for kind in ("xml", "bin"))
    return EngineRecord(target, files, settings={"inference_precision": "f32"})


def _manifest(records: list[EngineRecord], classes: int, step: Any) -> Any:
    from unetx_opt.bundle import manifest as m
    from unetx_opt.bundle import parts

    names = ["background", *(f"class{k}" for k in range(1, max(2, classes)))]
    return m.Manifest(
        product=parts.Product(name="unetx-opt", version="0"),
        variant="unet",
        spec=ModelSpec(width=1, depth=1, num_classes=classes),
        labels=tuple(parts.Label(index=k, name=name) for k, name in enumerate(names)),
        input=InputContract(height=SIZE, width=SIZE, lower_percentile=0.0, upper_percentile=100.0),
        postprocess=None if step is None else parts.Postprocess(**step),
        precision=parts.PrecisionRecord(requested=Precision.FP32, dtype_counts={"float32": 1}),
        operations=parts.Operations(flop=2, baseline_flop=2, ratio=1.0, by_type={"Conv": 2}, parameters=2),
        engines=tuple(parts.Engine.from_record(record) for record in records),
        checkpoint=parts.SourceCheckpoint(sha256="0" * 64, source="a test", variant="unet"),
        gate=parts.GateEvidence(name="off", images=None),
        build=parts.Build(command=(), seeds={}, tools={}, host={}, created="2000-01-01T00:00:00Z"),
    )


@pytest.fixture
def blob() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image of the engine's own size with one bright disc on a dark ground."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = (rows - 30) ** 2 + (columns - 34) ** 2 < 15**2
    return np.where(inside, 200, 20).astype(np.uint8)
