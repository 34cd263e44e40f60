"""Engines for ONNX Runtime: what is shipped, what it computes in, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.onnxruntime import attest
from unetx_exporters.onnxruntime.build import (
    build_onnxruntime_cpu,
    build_onnxruntime_cuda,
    why_not_build_onnxruntime_cpu,
    why_not_build_onnxruntime_cuda,
)
from unetx_exporters.onnxruntime.layers import layer_dtypes, storage_dtype
from unetx_opt.errors import EngineError, ExportError
from unetx_opt.runtime.cuda_device import CudaDevice
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.runtime.sessions.onnxruntime import open_onnxruntime
from unetx_opt.specs import EngineRecord, Host

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Requests = Callable[..., Any]
HOST = Host("Linux", "x86_64", packages={"onnxruntime": "1.32", "onnx": "1.18"})


def _infer(record: EngineRecord, directory: Path, images: Any) -> Any:
    with open_onnxruntime(OpenRequest(record, lambda name: (directory / name).read_bytes())) as session:
        return session.infer(images)


def test_fp32_ships_the_graph_as_it_is(make_request: Requests) -> None:
    request = make_request("fp32")
    (record,) = build_onnxruntime_cpu(request)
    assert record.target == "onnxruntime-cpu"
    assert record.files == ("engines/onnxruntime-cpu/model.onnx",)
    assert (record.storage_dtype, record.compute_dtype) == ("float32", "float32")
    assert record.layers == dict.fromkeys(("down", "bottom", "up", "merge", "head"), "float32")
    assert (request.directory / record.files[0]).read_bytes() == request.graph_fp32.read_bytes()
    assert "onnxruntime" in record.tools


def test_fp16_stores_half_and_says_that_it_computes_float32(make_request: Requests) -> None:
    request = make_request("fp16")
    (record,) = build_onnxruntime_cpu(request)
    assert (record.storage_dtype, record.compute_dtype) == ("float16", "float32")
    assert set(record.layers.values()) == {"float32"}
    size = (request.directory / record.files[0]).stat().st_size
    assert size < request.graph_fp32.stat().st_size


def test_the_built_engine_runs_and_agrees_between_precisions(make_request: Requests) -> None:
    images = np.random.default_rng(3).random((2, 1, 32, 32), np.float32)
    logits = {}
    for precision in ("fp32", "fp16", "int8"):
        request = make_request(precision)
        (record,) = build_onnxruntime_cpu(request)
        logits[precision] = _infer(record, request.directory, images)
    scale = np.abs(logits["fp32"]).max()
    np.testing.assert_allclose(logits["fp16"], logits["fp32"], atol=2e-3 * scale)
    assert np.corrcoef(logits["int8"].ravel(), logits["fp32"].ravel())[0, 1] > 0.98


def test_int8_is_attested_layer_by_layer(make_request: Requests) -> None:
    (record,) = build_onnxruntime_cpu(make_request("int8"))
    assert (record.storage_dtype, record.compute_dtype) == ("int8", "int8")
    # The CPU provider has no 8-bit transposed convolution.
    assert record.layers == {"down": "int8", "bottom": "int8", "up": "float32", "merge": "int8", "head": "float32"}


def test_int8_that_would_run_in_float32_is_refused(make_request: Requests, tiny_unet: Any) -> None:
    request = make_request("int8", graph=tiny_unet())
    with pytest.raises(ExportError, match=r"3 of 5 layers .*: down \(int8 asked, float32\), bottom "):
        build_onnxruntime_cpu(request)


def test_fp16_without_a_half_weight_is_refused(make_request: Requests, tiny_unet: Any) -> None:
    request = make_request("fp16", graph_stored=tiny_unet())
    with pytest.raises(ExportError, match="no weight of the graph is stored as float16"):
        build_onnxruntime_cpu(request)


def test_a_weight_that_was_left_in_float32_is_named(make_request: Requests, tiny_unet: Any) -> None:
    from onnx import numpy_helper

    model = tiny_unet(stored="float16")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "merge.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    request = make_request("fp16", graph_stored=model)
    with pytest.raises(ExportError, match="stored otherwise: merge"):
        build_onnxruntime_cpu(request)
    kept = {**request.layer_types, "merge": "float32"}
    (record,) = build_onnxruntime_cpu(dataclasses.replace(request, layer_types=kept))
    assert record.compute_dtype == "float32"


def test_a_file_that_is_no_graph_is_an_export_error(make_request: Requests, tiny_unet: Any) -> None:
    model = tiny_unet()
    model.graph.node[0].op_type = "NoSuchOperation"
    request = make_request("fp32", graph_stored=model)
    with pytest.raises(ExportError, match="ONNX Runtime cannot load the graph for onnxruntime-cpu"):
        build_onnxruntime_cpu(request)


def test_cuda_takes_the_typed_graph(make_request: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attest, "probe_cuda_device", CudaDevice)
    request = make_request("fp16")
    (record,) = build_onnxruntime_cuda(request)
    assert (record.storage_dtype, record.compute_dtype) == ("float16", "float16")
    assert (request.directory / record.files[0]).read_bytes() == request.graph.read_bytes()


def test_cuda_with_a_layer_of_another_type_is_refused(
    make_request: Requests, tiny_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attest, "probe_cuda_device", CudaDevice)
    with pytest.raises(ExportError, match=r"down \(float16 asked, float32\)"):
        build_onnxruntime_cuda(make_request("fp16", graph=tiny_unet()))


def test_cuda_that_falls_back_to_the_cpu_fails_the_attestation(
    make_request: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attest, "probe_cuda_device", lambda: CudaDevice("13.0", "a GPU", "8.6"))
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(EngineError, match="needs the CUDA"):
        build_onnxruntime_cuda(make_request("fp16"))


def test_cuda_has_no_int8(make_request: Requests) -> None:
    with pytest.raises(ExportError, match="has no 8-bit convolution"):
        build_onnxruntime_cuda(make_request("int8"))


def test_reasons_say_what_to_install() -> None:
    assert why_not_build_onnxruntime_cpu(HOST) is None
    assert "install" in (why_not_build_onnxruntime_cpu(Host("Linux", "x86_64")) or "")
    assert "no CUDA provider" in (why_not_build_onnxruntime_cuda(HOST) or "")
    with_cuda = dataclasses.replace(HOST, onnxruntime_providers=("CUDAExecutionProvider",))
    assert why_not_build_onnxruntime_cuda(with_cuda) is None
    bare = dataclasses.replace(with_cuda, packages={"onnxruntime": "1.32"})
    assert "onnx is not installed" in (why_not_build_onnxruntime_cuda(bare) or "")


def test_types_are_read_from_the_weights_of_any_graph(tiny_unet: Any) -> None:
    assert set(layer_dtypes(tiny_unet(stored="float16")).values()) == {"float32"}
    assert set(layer_dtypes(tiny_unet(stored="float16", computed="float16")).values()) == {"float16"}
    # Q/DQ pairs around a convolution are a request for int8; until they are fused it computes float32.
    assert set(layer_dtypes(tiny_unet(quantized=True)).values()) == {"float32"}
    assert storage_dtype(tiny_unet(stored="float16")) == "float16"
    assert storage_dtype(tiny_unet(quantized=True)) == "int8"
