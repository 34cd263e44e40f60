"""The typed graph whose neighbourhood gates are operators: written where a target takes it, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from unetx_exporters.graphs import GraphRequest, GraphSet, make_graphs
from unetx_exporters.onnx.precision import layer_types
from unetx_exporters.targets import TARGETS
from unetx_exporters.tensorrt.attest import arithmetic_nodes
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import variant_spec
from unetx_opt.specs import InputContract, Precision


def _graphs(folder: Path, precision: Precision, **spec: Any) -> GraphSet:
    model = build_model(variant_spec("attention", width=4, depth=2, **spec)).eval()
    contract = InputContract(height=32, width=32)
    return make_graphs(model, GraphRequest(precision, contract, folder, gate_operator=True))


def test_the_graph_with_operators_is_typed_and_named_as_the_one_without(tmp_path: Path) -> None:
    graphs = _graphs(tmp_path, Precision.FP16)
    assert graphs.gated is not None
    assert graphs.gated in graphs.files
    gated = onnx.load(graphs.gated)
    assert {node.domain for node in gated.graph.node if node.op_type == "AttentionGate"} == {"unetx"}
    assert len(gated.functions) == 1
    nodes = arithmetic_nodes(graphs.typed)
    assert arithmetic_nodes(graphs.gated) == nodes
    types = layer_types(gated)
    assert {node: types[node] for node in nodes} == {node: graphs.layer_types[node] for node in nodes}


def test_without_neighbourhood_gates_there_is_none(tmp_path: Path) -> None:
    assert _graphs(tmp_path, Precision.FP32, gate="additive").gated is None


def test_only_tensorrt_takes_it() -> None:
    assert [name for name, row in TARGETS.items() if row.takes_gates] == ["tensorrt"]
