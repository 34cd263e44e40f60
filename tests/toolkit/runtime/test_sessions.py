"""The table of engines, the choice of one, and engines that are not what they claim to be."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unetx_opt.errors import EngineError
from unetx_opt.runtime.sessions import onnxruntime as ort_session
from unetx_opt.runtime.sessions.base import OpenRequest, OtherArithmeticError
from unetx_opt.runtime.sessions.onnxruntime import check_provider, open_onnxruntime, provider_list
from unetx_opt.runtime.sessions.openvino import ExecutedLayer, arithmetic_dtype, open_openvino
from unetx_opt.runtime.sessions.table import SESSIONS, choose_engine, rank_engines
from unetx_opt.specs import EngineRecord, Host

CPU_HOST = Host(
    "Linux",
    "x86_64",
    cpu_features=frozenset({"avx512_bf16"}),
    packages={"onnxruntime": "1.32", "openvino": "2026.4"},
    onnxruntime_providers=("CPUExecutionProvider",),
)
ORT_CPU = EngineRecord("onnxruntime-cpu", ("model.onnx",))
ORT_CUDA = EngineRecord("onnxruntime-cuda", ("model.onnx",))
OPENVINO = EngineRecord("openvino-cpu", ("model.xml", "model.bin"), settings={"inference_precision": "bf16"})


def test_the_table_lists_gpu_engines_first() -> None:
    assert list(SESSIONS) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino-cpu", "onnxruntime-cpu"]
    with pytest.raises(TypeError):
        SESSIONS["another"] = SESSIONS["tensorrt"]  # type: ignore[index]


@pytest.mark.parametrize("name", SESSIONS)
def test_a_bare_machine_has_a_reason_against_every_engine(name: str) -> None:
    reason = SESSIONS[name].why_not(Host("Linux", "x86_64"))
    assert reason is not None
    assert "install" in reason


@pytest.mark.parametrize(
    ("change", "record", "reason"),
    [
        ({}, ORT_CPU, None),
        ({}, OPENVINO, None),
        ({"cpu_features": frozenset({"avx2"})}, OPENVINO, "measured with bf16 arithmetic, which this CPU lacks"),
        ({"cpu_features": frozenset()}, OPENVINO, None),
        ({}, dataclasses.replace(OPENVINO, settings={"inference_precision": "f64"}), "'f64' is unknown"),
        ({"packages": {}}, OPENVINO, "openvino is not installed"),
        ({}, ORT_CUDA, "has no CUDA provider"),
        ({"onnxruntime_providers": ("CUDAExecutionProvider",)}, ORT_CUDA, "no CUDA device"),
        (
            {"onnxruntime_providers": ("CUDAExecutionProvider",), "compute_capability": "8.6"},
            ORT_CUDA,
            None,
        ),
    ],
    ids=[
        "onnxruntime",
        "bf16",
        "no bf16",
        "unknown CPU",
        "unknown hint",
        "no openvino",
        "CPU build",
        "no GPU",
        "GPU",
    ],
)
def test_an_engine_is_held_against_what_the_host_offers(
    change: dict[str, Any], record: EngineRecord, reason: str | None
) -> None:
    found = SESSIONS[record.target].why_not(dataclasses.replace(CPU_HOST, **change), record)
    assert found is None if reason is None else (found is not None and reason in found)


def test_the_first_usable_engine_in_the_order_of_the_table_is_chosen() -> None:
    assert choose_engine([ORT_CPU, OPENVINO], CPU_HOST) is OPENVINO
    assert choose_engine([ORT_CPU, OPENVINO], CPU_HOST, "onnxruntime-cpu") is ORT_CPU
    assert rank_engines([ORT_CPU, OPENVINO], CPU_HOST).usable == (OPENVINO, ORT_CPU)


def test_a_cpu_without_bf16_takes_the_float32_candidate_of_the_same_files() -> None:
    wide = dataclasses.replace(OPENVINO, settings={"inference_precision": "f32"})
    older = dataclasses.replace(CPU_HOST, cpu_features=frozenset({"avx2"}))
    assert choose_engine([OPENVINO, wide], CPU_HOST) is OPENVINO
    assert choose_engine([OPENVINO, wide], older) is wide


def test_where_nothing_runs_every_engine_is_listed_with_its_reason() -> None:
    two = dataclasses.replace(OPENVINO, files=("b.xml", "b.bin"), settings={"inference_precision": "f16"})
    other = EngineRecord("quantum", ("model.q",))
    with pytest.raises(EngineError) as caught:
        choose_engine([ORT_CPU, OPENVINO, two, other], Host("Linux", "x86_64"))
    message = str(caught.value)
    assert message.startswith("no engine of this bundle runs on this machine: ")
    assert "openvino-cpu (model.xml, inference_precision=bf16): the package openvino is not installed" in message
    assert "openvino-cpu (b.xml, inference_precision=f16): " in message
    assert "onnxruntime-cpu: the package onnxruntime is not installed" in message
    assert "quantum: this version knows no such target" in message


def test_cuda_asked_for_where_there_is_none_is_an_error_and_no_slow_engine(graph_bytes: bytes) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(EngineError, match="needs the CUDAExecutionProvider, ONNX Runtime offers"):
        open_onnxruntime(OpenRequest(ORT_CUDA, lambda name: graph_bytes))


def test_a_session_that_fell_back_to_the_cpu_is_refused(graph_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime built with CUDA, on a machine that lacks CUDA's libraries: it loads, and runs on the CPU."""
    real = pytest.importorskip("onnxruntime")
    names = [name for name in dir(real) if not name.startswith("__")]
    fake = types.SimpleNamespace(**{name: getattr(real, name) for name in names})
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake.InferenceSession = lambda data, options, providers: real.InferenceSession(
        data, providers=["CPUExecutionProvider"]
    )
    monkeypatch.setattr(ort_session, "require", lambda module, *, purpose: fake)
    with pytest.raises(EngineError, match=r"offers CPUExecutionProvider: install CUDA and cuDNN"):
        open_onnxruntime(OpenRequest(ORT_CUDA, lambda name: graph_bytes))


def test_the_provider_that_was_asked_for_passes() -> None:
    check_provider("onnxruntime-cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_an_openvino_engine_that_computes_in_another_type_is_refused(graph_bytes: bytes) -> None:
    """The hint of an arithmetic that the CPU lacks is taken without a word."""
    request = _openvino_request(graph_bytes, compute_dtype="float16", hint="f32")
    with pytest.raises(OtherArithmeticError, match=r"computes float32 on this machine, .* measured in float16"):
        open_openvino(request)


def test_an_openvino_session_reports_the_type_it_computes_in(graph_bytes: bytes) -> None:
    with open_openvino(_openvino_request(graph_bytes, compute_dtype="float32", hint="f32")) as session:
        assert (session.target, session.compute_dtype) == ("openvino-cpu", "float32")


def _openvino_request(graph: bytes, compute_dtype: str, hint: str) -> OpenRequest:
    openvino = pytest.importorskip("openvino")
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        entry = Path(directory, "model.xml")
        openvino.save_model(openvino.Core().read_model(model=graph), entry, compress_to_fp16=False)
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    settings = {"inference_precision": hint}
    record = dataclasses.replace(OPENVINO, settings=settings, compute_dtype=compute_dtype)
    return OpenRequest(record, files.__getitem__, threads=1)


def _onnxruntime_request(graph: bytes) -> OpenRequest:
    pytest.importorskip("onnxruntime")
    return OpenRequest(ORT_CPU, lambda name: graph, threads=1)


OPENERS: dict[str, Callable[[bytes], Any]] = {
    "onnxruntime": lambda graph: open_onnxruntime(_onnxruntime_request(graph)),
    "openvino": lambda graph: open_openvino(_openvino_request(graph, "float32", "f32")),
}


@pytest.mark.parametrize("name", OPENERS)
def test_an_input_of_the_wrong_shape_is_named_with_the_right_one(name: str, graph_bytes: bytes) -> None:
    with OPENERS[name](graph_bytes) as session:
        with pytest.raises(EngineError, match=r"failed on an input of shape \(1, 1, 32, 32\), expected .*64"):
            session.infer(np.zeros((1, 1, 32, 32), np.float32))
        assert session.infer(np.ones((1, 1, 64, 64), np.float32)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("name", OPENERS)
def test_batches_and_strided_inputs_are_read_as_they_are(name: str, graph_bytes: bytes) -> None:
    rng = np.random.default_rng(7)
    batch = rng.random((4, 1, 64, 128), np.float32)[::2, :, :, ::2]
    with OPENERS[name](graph_bytes) as session:
        np.testing.assert_allclose(session.infer(batch), 10 * batch - 5, atol=1e-5)


@pytest.mark.parametrize("name", OPENERS)
def test_a_closed_session_says_so(name: str, graph_bytes: bytes) -> None:
    session = OPENERS[name](graph_bytes)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="is closed"):
        session.infer(np.zeros((1, 1, 64, 64), np.float32))


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x08" * 20], ids=["empty", "text", "bytes"])
def test_a_file_that_is_no_graph_is_an_engine_error(data: bytes) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    with pytest.raises(EngineError, match=r"cannot load model.onnx"):
        open_onnxruntime(OpenRequest(ORT_CPU, lambda name: data))
    with pytest.raises(EngineError, match=r"cannot load model.xml"):
        open_openvino(OpenRequest(OPENVINO, lambda name: data))


def test_files_that_do_not_belong_to_the_target_are_refused() -> None:
    with pytest.raises(EngineError, match=r"has 1 files, expected model.xml and model.bin"):
        open_openvino(OpenRequest(dataclasses.replace(OPENVINO, files=("a.xml",)), lambda name: b""))
    with pytest.raises(EngineError, match=r"has 2 files, expected one .onnx"):
        open_onnxruntime(OpenRequest(dataclasses.replace(ORT_CPU, files=("a", "b")), lambda name: b""))
    with pytest.raises(EngineError, match=r"no target of ONNX Runtime"):
        open_onnxruntime(OpenRequest(OPENVINO, lambda name: b""))


def test_the_arithmetic_is_that_of_most_convolutions() -> None:
    layers = [
        ExecutedLayer("Convolution", ("a",), "bfloat16"),
        ExecutedLayer("MatMul", ("b",), "bfloat16"),
        ExecutedLayer("Convolution", ("c",), "float32"),
        *[ExecutedLayer("Pooling", ("d",), "float32")] * 5,
    ]
    assert arithmetic_dtype(layers) == "bfloat16"
    assert arithmetic_dtype([]) == "float32"


def test_listing_the_table_loads_no_engine() -> None:
    assert "openvino" not in vars(sys.modules["unetx_opt.runtime.sessions.table"])


def test_tf32_is_off_for_float32_engines_alone() -> None:
    assert provider_list("onnxruntime-cuda", "float32") == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert provider_list("onnxruntime-cuda", "float16") == [("CUDAExecutionProvider", {})]
    assert provider_list("onnxruntime-cpu", "float32") == [("CPUExecutionProvider", {})]
