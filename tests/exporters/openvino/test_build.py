"""Engines for OpenVINO: candidates, deterministic files, and layers read back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.openvino import build
from unetx_exporters.openvino.attest import attest_openvino, check_layers
from unetx_exporters.openvino.build import (
    build_openvino_cpu,
    candidates,
    why_not_build_openvino_cpu,
    write_ir,
)
from unetx_opt.errors import ExportError
from unetx_opt.runtime.host import probe_host
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.runtime.sessions.openvino import ExecutedLayer, open_openvino
from unetx_opt.specs import EngineRecord, Host, Precision

pytest.importorskip("onnx")
pytest.importorskip("openvino")

Requests = Callable[..., Any]
LAYERS = ("down", "bottom", "up", "merge", "head")
HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & probe_host().cpu_features)


def _hints(records: tuple[EngineRecord, ...]) -> list[str]:
    return [record.settings["inference_precision"] for record in records]


def test_fp32_has_one_candidate_and_computes_float32(make_request: Requests) -> None:
    request = make_request("fp32")
    (record,) = build_openvino_cpu(request)
    assert record.files == ("engines/openvino-cpu/model.xml", "engines/openvino-cpu/model.bin")
    assert record.settings == {"inference_precision": "f32"}
    assert (record.storage_dtype, record.compute_dtype) == ("float32", "float32")
    assert {name: record.layers[name] for name in LAYERS} == dict.fromkeys(LAYERS, "float32")
    assert all((request.directory / name).is_file() for name in record.files)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")
def test_fp16_offers_bf16_beside_f32_from_the_same_files(make_request: Requests) -> None:
    records = build_openvino_cpu(make_request("fp16"))
    assert _hints(records)[:2] == ["f32", "bf16"]
    assert len({record.files for record in records}) == 1
    assert {record.storage_dtype for record in records} == {"float16"}
    assert [record.compute_dtype for record in records[:2]] == ["float32", "bfloat16"]
    assert {records[1].layers[name] for name in LAYERS} == {"bfloat16"}


def test_int8_is_attested_layer_by_layer(make_request: Requests) -> None:
    for record in build_openvino_cpu(make_request("int8")):
        assert record.compute_dtype == "int8"
        assert {record.layers[name] for name in LAYERS[:-1]} == {"int8"}
        assert record.layers["head"] == {"f32": "float32"}.get(record.settings["inference_precision"], "bfloat16")


def test_candidates_are_what_the_plugin_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_plugin_capabilities", lambda: frozenset({"FP32", "FP16", "INT8"}))
    assert _hints(candidates(Precision.FP16)) == ["f32", "f16"]
    monkeypatch.setattr(build, "_plugin_capabilities", lambda: frozenset({"FP32"}))
    assert _hints(candidates(Precision.INT8)) == ["f32"]
    monkeypatch.setattr(build, "_plugin_capabilities", lambda: frozenset({"FP32", "BF16", "FP16"}))
    assert _hints(candidates(Precision.FP32)) == ["f32"]


def test_arithmetic_that_the_cpu_lacks_is_found_out(make_request: Requests) -> None:
    """The plugin takes the hint without a word and computes in another type."""
    import openvino

    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has float16 arithmetic")
    request = make_request("fp16")
    (first, *_) = build_openvino_cpu(request)
    asked = EngineRecord(first.target, first.files, settings={"inference_precision": "f16"})
    with pytest.raises(ExportError, match=r"openvino-cpu f16: 5 of 5 layers .* down \(float16 asked, "):
        attest_openvino(asked, request)


def test_an_arithmetic_that_the_plugin_does_not_keep_is_no_candidate_and_the_reason_is_told(
    make_request: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has float16 arithmetic")
    monkeypatch.setattr(build, "_plugin_capabilities", lambda: frozenset({"FP32", "FP16"}))
    told: dict[str, str] = {}
    request = dataclasses.replace(make_request("fp16"), leave_out=told.__setitem__)
    assert _hints(build_openvino_cpu(request)) == ["f32"]
    ((name, reason),) = told.items()
    assert name == "openvino-cpu f16"
    assert reason.startswith("5 of 5 layers do not compute in the type asked for: down (float16 asked, ")
    assert "leave the target out" not in reason


def test_int8_that_would_run_in_floating_point_is_refused(make_request: Requests, tiny_unet: Any) -> None:
    with pytest.raises(ExportError, match=r"down \(int8 asked, float32\)"):
        build_openvino_cpu(make_request("int8", graph=tiny_unet()))


def test_fp16_without_a_half_weight_is_refused(make_request: Requests, tiny_unet: Any) -> None:
    with pytest.raises(ExportError, match="no weight of the graph is stored as float16"):
        build_openvino_cpu(make_request("fp16", graph_stored=tiny_unet()))


def test_every_candidate_runs_and_agrees(make_request: Requests) -> None:
    request = make_request("fp16")
    images = np.random.default_rng(3).random((2, 1, 32, 32), np.float32)
    logits = []
    for record in build_openvino_cpu(request):
        with open_openvino(OpenRequest(record, _reader(request.directory))) as session:
            assert session.compute_dtype == record.compute_dtype
            logits.append(session.infer(images))
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=0.02 * np.abs(logits[0]).max())


def _reader(directory: Path) -> Callable[[str], bytes]:
    return lambda name: (directory / name).read_bytes()


_WRITE = "import sys; from pathlib import Path; from unetx_exporters.openvino.build import write_ir; "
_WRITE += "write_ir(Path(sys.argv[1]), Path(sys.argv[2]))"


def test_the_same_graph_gives_the_same_bytes_anywhere(make_request: Requests, tmp_path: Path) -> None:
    request = make_request("fp16")
    written = []
    for number in range(2):
        entry = tmp_path / f"somewhere-{number}" / "model.xml"
        entry.parent.mkdir()
        write_ir(request.graph_stored, entry)
        written.append((entry.read_bytes(), entry.with_suffix(".bin").read_bytes()))
    elsewhere = tmp_path / "elsewhere" / "model.xml"
    elsewhere.parent.mkdir()
    path = ":".join(entry for entry in sys.path if entry)
    subprocess.run(
        [sys.executable, "-c", _WRITE, str(request.graph_stored), str(elsewhere)],
        check=True,
        env={"PYTHONPATH": path},
    )
    written.append((elsewhere.read_bytes(), elsewhere.with_suffix(".bin").read_bytes()))
    assert len(set(written)) == 1


def test_the_ir_names_no_path_of_the_machine(make_request: Requests, tmp_path: Path) -> None:
    request = make_request("fp32")
    build_openvino_cpu(request)
    text = (request.directory / "engines/openvino-cpu/model.xml").read_text(encoding="utf-8")
    for path in (tmp_path, Path.home(), Path.cwd()):
        assert str(path) not in text
    assert ".onnx" not in text


def test_a_graph_that_cannot_be_read_is_an_export_error(make_request: Requests, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x08broken")
    with pytest.raises(ExportError, match="OpenVINO cannot read the graph"):
        write_ir(broken, tmp_path / "model.xml")


def test_layers_are_compared_with_the_hint_and_the_request() -> None:
    record = candidates(Precision.FP32)[0]
    layers = [
        ExecutedLayer("Convolution", ("a", "a.relu"), "int8"),
        ExecutedLayer("Convolution", ("b",), "bfloat16"),
        ExecutedLayer("Pooling", ("c",), "bfloat16"),
    ]
    with pytest.raises(ExportError, match=r"1 of 2 layers .*: b \(float32 asked, bfloat16\)"):
        check_layers(record, layers, {"a": "int8"})
    check_layers(record, layers[:1], {"a": "int8"})


def test_a_machine_without_openvino_is_told_what_to_install() -> None:
    assert "pip install 'unetx-opt[cpu]'" in (
        why_not_build_openvino_cpu(Host("Linux", "x86_64", packages={"onnx": "1"})) or ""
    )
    assert "unetx-opt[export]" in (why_not_build_openvino_cpu(Host("Linux", "x86_64")) or "")
    assert why_not_build_openvino_cpu(Host("Linux", "x86_64", packages={"openvino": "2026", "onnx": "1"})) is None
