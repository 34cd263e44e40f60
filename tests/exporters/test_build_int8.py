"""Whole int8 builds: calibrated, searched, watched, judged, and described in the manifest."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import torch

from unetx_exporters import pipeline
from unetx_exporters.evidence_page import complete_page, render_sections
from unetx_exporters.int8 import turing_notes
from unetx_exporters.onnxruntime import build as ort_build
from unetx_exporters.options import BuildOptions
from unetx_exporters.pipeline import build_bundle
from unetx_exporters.request import BuildRequest
from unetx_exporters.result import BuildResult
from unetx_exporters.targets import TARGETS
from unetx_opt.bundle.open import open_verified
from unetx_opt.cli.main import main
from unetx_opt.errors import ExportError, SpecError
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.models.checkpoint import load_model, read_checkpoint, write_checkpoint
from unetx_opt.runtime import open_bundle
from unetx_opt.runtime.host import probe_host
from unetx_opt.specs import EngineRecord, Host, Precision

SIZE_PX = 64
CPU_TARGETS = ("onnxruntime-cpu", "openvino-cpu")


@pytest.fixture(scope="module")
def built(exact_products: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    del exact_products  # a CPU without them is refused
    output = tmp_path_factory.mktemp("bundle") / "int8"
    options = BuildOptions(
        "attention",
        Precision.INT8,
        output,
        targets=CPU_TARGETS,
        checkpoint=tiny_checkpoint,
        size_px=SIZE_PX,
        repeat_builds=2,
    )
    return build_bundle(options)


def test_both_cpu_targets_run_in_int8_and_keep_the_standard_gate(built: BuildResult) -> None:
    assert {engine.target for engine in built.engines} == set(CPU_TARGETS)
    assert built.gate == "standard"
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    for engine in manifest.engines:
        assert engine.compute_dtype == "int8"
        assert engine.gate is not None
        assert engine.gate.passed
        assert engine.gate.evaluated == "engine"
    pixels, mask = chest_phantom(77, size_px=SIZE_PX)
    with open_bundle(built.bundle) as segmenter:
        labels = segmenter.segment(pixels).labels
    assert 2 * (labels & mask).sum() / (labels.sum() + mask.sum()) > 0.7


def test_the_manifest_lists_calibration_images_that_no_gate_image_is_among(built: BuildResult) -> None:
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    assert manifest.calibration is not None
    assert manifest.gate.images is not None
    assert manifest.calibration.data == "phantom"
    assert manifest.calibration.count == 32
    assert not set(manifest.calibration.image_sha256) & set(manifest.gate.images.image_sha256)
    assert any("phantoms" in note for note in manifest.notes)


def test_the_evidence_holds_the_search_its_picture_the_junctions_and_the_repeated_builds(built: BuildResult) -> None:
    folder = built.bundle / "evidence"
    (searched,) = json.loads((folder / "search.json").read_text())["schemes"]
    assert searched["scheme"] == "cpu"
    assert {found["method"] for found in searched["preparation"]["ranges"].values()}
    assert [step["name"] for step in searched["preparation"]["steps"]]
    assert searched["int8_share"] >= 0.5
    assert all(group["sensitivity"]["alone"]["disagreement"] >= 0 for group in searched["groups"])
    assert searched["steps"][-1]["images"] == 24
    assert [point["chosen"] for point in searched["pareto"]].count(True) == 1
    picture = ElementTree.parse(folder / "pareto-cpu.svg").getroot()
    circles = [element for element in picture if element.tag.endswith("circle")]
    assert len(circles) == len(searched["pareto"]) + 1
    rows = json.loads((folder / "junctions.json").read_text())["rows"]
    assert {row["weights"] for row in rows} == {"trained", "random"}
    assert {row["engine"].split()[0] for row in rows} == set(CPU_TARGETS)
    assert all(row["passed"] for row in rows)
    assert any(row["tensor"].startswith("junction.skip") for row in rows)
    repeats = json.loads((folder / "repeats.json").read_text())["engines"]
    assert all(len(row["file_sha256"]) == len(row["median_ms"]) == 2 for row in repeats)
    assert all(row["disagreement"][0] == 0.0 for row in repeats)
    with open_verified(built.bundle) as bundle:
        assert any(note.startswith("2 builds of the same graphs") for note in bundle.manifest.notes)


def test_the_page_answers_for_the_whole_bundle(built: BuildResult) -> None:
    page = (built.bundle / "evidence/gate.html").read_text()
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    for engine in manifest.engines:
        for layer, dtype in engine.layers.items():
            assert re.search(rf'<th scope="row">{re.escape(layer)}</th>(<td>[^<]*</td>)*<td>{dtype}</td>', page)
    assert "32 images of phantom" in page
    assert "junction.skip" in page
    assert manifest.checkpoint.sha256 in page
    assert f"openvino {manifest.build.tools['openvino']}" in page
    picture = base64.b64encode((built.bundle / "evidence/pareto-cpu.svg").read_bytes()).decode()
    assert f"data:image/svg+xml;base64,{picture}" in page
    assert page.index("Rules of the gate") < page.index("What each engine computes") < page.index("</main>")
    assert page.endswith("</main>\n</body>\n</html>\n")


def test_what_came_from_outside_is_escaped_on_the_page(built: BuildResult) -> None:
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    hostile = "<script>alert('x')</script>"
    engine = manifest.engines[0].model_copy(update={"layers": {hostile: hostile}, "settings": {"a": hostile}})
    changed = manifest.model_copy(
        update={
            "notes": (hostile,),
            "engines": (engine, engine),
            "build": manifest.build.model_copy(update={"command": (hostile,), "tools": {hostile: hostile}}),
        }
    )
    shown = "".join(render_sections(changed, built.bundle / "evidence"))
    assert "<script" not in shown
    assert shown.count(html.escape(hostile)) >= 6


def test_a_page_of_another_program_is_not_completed(built: BuildResult, tmp_path: Path) -> None:
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    page = tmp_path / "gate.html"
    page.write_text("<html></html>")
    with pytest.raises(ExportError, match=r"gate\.html has 0 ends of its content, expected 1"):
        complete_page(page, manifest)


def test_nothing_of_the_search_is_left_beside_the_bundle(built: BuildResult) -> None:
    assert [path.name for path in built.bundle.parent.iterdir()] == [built.bundle.name]


def without_vnni() -> Host:
    """This machine, if its CPU had no exact 8-bit products."""
    return dataclasses.replace(probe_host(), machine="x86_64", cpu_features=frozenset({"sse2", "avx2"}))


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_a_cpu_target_that_cannot_be_judged_here_is_refused_before_any_work(
    target: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "probe_host", without_vnni)
    stages: list[str] = []
    options = BuildOptions("attention", Precision.INT8, tmp_path / "x", (target,), tiny_checkpoint, SIZE_PX)
    with pytest.raises(ExportError, match=rf"target {target} cannot be built here: .*lacks VNNI.*or take fp16"):
        build_bundle(options, lambda stage, done, total: stages.append(stage))
    assert stages == []
    assert list(tmp_path.iterdir()) == []


def test_without_vnni_the_other_targets_are_built_and_the_manifest_says_why_not_these(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx builds the other target")
    monkeypatch.setattr(pipeline, "probe_host", without_vnni)
    options = BuildOptions(
        "attention",
        Precision.INT8,
        tmp_path / "x",
        (),
        tiny_checkpoint,
        SIZE_PX,
        compute_capabilities=("7.5", "8.6"),
    )
    built = build_bundle(options)
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    assert {row.target for row in manifest.skipped if "lacks VNNI" in row.reason} == set(CPU_TARGETS)
    assert {engine.target for engine in manifest.engines} == {"tensorrt-rtx"}
    # Each was judged by the graph that it was built from, and both pass.
    engines = {engine.compute_capabilities: engine for engine in manifest.engines}
    turing, ampere = engines[("7.5",)], engines[("8.6",)]
    assert turing.settings["convolutions"] == "matrix products"
    assert turing.gate is not None
    assert turing.gate.passed
    assert dict(turing.layers) == dict(ampere.layers)
    assert "int8" in turing.layers.values()


def test_what_becomes_of_turing_is_said() -> None:
    options = BuildOptions("unet", Precision.INT8, Path("x"))
    (note,) = turing_notes(options, [TARGETS["tensorrt-rtx"]])
    assert note.startswith("There is no tensorrt-rtx engine for compute capability 7.5")
    (note,) = turing_notes(dataclasses.replace(options, compute_capabilities=("8.6", "7.5")), list(TARGETS.values()))
    assert "computes its convolutions as 8-bit matrix products" in note
    assert turing_notes(options, [TARGETS["openvino-cpu"]]) == ()
    assert turing_notes(dataclasses.replace(options, compute_capabilities=("8.6",)), list(TARGETS.values())) == ()


@pytest.fixture
def ruined_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The small model with 1e4 added within its last block and taken off again: 8 bits hold nothing else."""
    model = load_model(read_checkpoint(tiny_checkpoint))
    block = model.decoder[0].get_submodule("block")
    with torch.no_grad():
        block.get_parameter("norm1.bias").add_(1e4)
        taken = 1e4 * block.get_parameter("conv2.weight").sum((1, 2, 3))
        block.get_buffer("norm2.running_mean").add_(taken)
    write_checkpoint(tmp_path / "ruined.safetensors", model, "attention")
    return tmp_path / "ruined.safetensors"


@pytest.mark.usefixtures("exact_products")
def test_a_search_without_time_exits_3_with_the_gate_the_image_and_the_layer_and_can_go_on(
    ruined_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--variant", "attention", "--precision", "int8", "--target", "onnxruntime-cpu"]
    arguments += ["--checkpoint", str(ruined_checkpoint), "--size", str(SIZE_PX), "-o", str(tmp_path / "x")]
    assert main([*arguments, "--budget", "0.0001"]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "gate standard fails on 24 images" in error
    assert "image phantom-0-" in error
    assert "the most sensitive layer is " in error
    assert "raise --budget" in error
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.search" / "cpu.json").is_file()


def _fuse_wrongly(request: BuildRequest, *, unless_barred: bool) -> tuple[EngineRecord, ...]:
    """Give an engine that reads a skip connection scaled, as long as its junctions have no barrier."""
    records = _real_build(request)
    path = request.directory / records[0].files[0]
    model = onnx.load(path)
    barred = any(node.name.endswith(".barrier") for node in model.graph.node)
    if not (barred and unless_barred):
        for tensor in model.graph.initializer:
            if tensor.name == "decoder.0.up.project.bias":
                values = onnx.numpy_helper.to_array(tensor) + 30
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)
    return records


_real_build = ort_build.build_onnxruntime_cpu


@pytest.mark.parametrize("mended", [True, False], ids=["with a barrier it is right", "always wrong"])
def test_a_wrong_junction_is_mended_by_a_barrier_or_named(
    mended: bool, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ort_build, "build_onnxruntime_cpu", lambda request: _fuse_wrongly(request, unless_barred=mended)
    )
    options = BuildOptions(
        "attention",
        Precision.FP32,
        tmp_path / "x",
        targets=("onnxruntime-cpu",),
        checkpoint=tiny_checkpoint,
        size_px=SIZE_PX,
        gate="off",
    )
    if mended:
        build_bundle(options)
        with open_verified(options.output) as bundle:
            (note,) = [note for note in bundle.manifest.notes if note.startswith("Fusions are broken")]
        assert "onnxruntime-cpu with trained weights differs from PyTorch first at junction.skip0" in note
    else:
        with pytest.raises(ExportError, match=r"first at junction\.skip0.*with fusions broken at the junctions"):
            build_bundle(options)
        assert not options.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"budget_minutes": 0.0}, "budget is 0.0 minutes"), ({"repeat_builds": 0}, "0 builds were asked for")],
    ids=str,
)
def test_a_wrong_option_is_refused(changes: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        BuildOptions("unet", Precision.INT8, tmp_path / "x", **changes)  # type: ignore[arg-type]


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("variant", ["unet", "attention"])
def test_int8_keeps_the_standard_gate_on_real_radiographs(variant: str, lungs: Path, tmp_path: Path) -> None:
    options = BuildOptions(
        variant, Precision.INT8, tmp_path / "x", data=lungs, targets=("openvino-cpu",), size_px=128
    )
    build_bundle(options)
    with open_verified(options.output) as bundle:
        manifest = bundle.manifest
    assert manifest.calibration is not None
    assert (manifest.calibration.data, manifest.calibration.split) == ("lungs", "calibration")
    assert manifest.gate.images is not None
    assert manifest.gate.images.count == 56
    for engine in manifest.engines:
        assert engine.gate is not None
        assert engine.gate.passed
        assert engine.gate.mean_agreement > 0.99
