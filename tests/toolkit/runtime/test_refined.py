"""Bundles whose masks need a step after the engine: opened, segmented, timed, shown, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_opt.cli.main import main
from unetx_opt.errors import BundleError, EngineError, MissingPackageError
from unetx_opt.imaging.dense_crf import BACKENDS
from unetx_opt.imaging.files import read_image
from unetx_opt.runtime import open_bundle

pytestmark = [
    pytest.mark.skipif(BACKENDS["grid"].why_not() is not None, reason=str(BACKENDS["grid"].why_not())),
]

ENERGIES = {
    "smoothness_sxy": 2.0,
    "smoothness_compat": 3.0,
    "bilateral_sxy": 8.0,
    "bilateral_srgb": 40.0,
    "bilateral_compat": 4.0,
}
CRF = {"name": "dense_crf", "parameters": {**ENERGIES, "iterations": 4.0, "grid_px": 64.0}}


@pytest.fixture
def speckled(blob: Any) -> Any:
    """The disc a little brighter than the ground, with noise of the same size; the whole range of grey values."""
    noisy = np.where(blob == 200, 150, 105) + np.random.default_rng(0).normal(0, 25, blob.shape)
    noisy[0, 0], noisy[0, 1] = 0, 255
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture
def image_file(tmp_path: Path, speckled: Any) -> Path:
    Image.fromarray(speckled).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def test_the_mask_is_the_definitions(make_bundle: Callable[..., Path], speckled: Any) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(make_bundle(step=CRF)) as refined:
        result = refined.segment(speckled)
    logits = 10 * (speckled.astype(np.float64) / 255 - 0.5)
    both = np.stack([np.zeros_like(logits), logits])
    wanted = infer_mean_field(both, speckled, Energies(**ENERGIES), 4)
    assert (result.labels == (wanted[1] > wanted[0])).mean() > 0.995
    assert (result.labels != (speckled > 127)).mean() > 0.05
    np.testing.assert_array_equal(result.logits_khw[0] > 0, result.labels == 1)
    assert np.abs(result.probabilities[0] - wanted[1]).mean() < 0.01


def test_the_step_is_timed_and_the_parts_of_the_time_add_up(make_bundle: Callable[..., Path], blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(make_bundle(step=CRF)) as segmenter:
        assert segmenter.warm_up() > 0
        times = segmenter.segment(blob).timings_ms
        assert segmenter.refiner is not None and segmenter.refiner.name == "dense_crf"
    assert list(times) == ["prepare", "infer", "refine", "restore", "total"]
    assert times["refine"] > 0
    assert sum(times.values()) == pytest.approx(2 * times["total"])


def test_a_bundle_without_a_step_has_no_time_for_one(make_bundle: Callable[..., Path], blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(make_bundle()) as segmenter:
        assert segmenter.refiner is None
        assert "refine" not in segmenter.segment(blob).timings_ms


def test_logits_that_are_not_finite_never_reach_the_step(make_bundle: Callable[..., Path], blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with (
        open_bundle(make_bundle(poison=True, step=CRF)) as segmenter,
        pytest.raises(EngineError, match="NaN or infinite"),
    ):
        segmenter.segment(blob)


def test_several_classes_are_refined(make_bundle: Callable[..., Path], speckled: Any, blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(make_bundle(classes=3, step=CRF)) as segmenter:
        result = segmenter.segment(speckled)
    assert result.logits_khw.shape == (3, *blob.shape)
    # The third class has the steepest logits, so that it takes the disc.
    wanted = np.where(blob == 200, 2, 0)
    assert (result.labels == wanted).mean() > 0.95 > (np.where(speckled > 127, 2, 0) == wanted).mean()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"name": "graph_cut", "parameters": {}},
            "the bundle's masks cannot be made here: unknown step 'graph_cut', this version has dense_crf",
        ),
        ({"name": "dense_crf", "parameters": {"iterations": 4.0}}, "missing ['bilateral_compat'"),
    ],
    ids=["unknown step", "missing parameters"],
)
def test_a_step_that_cannot_be_run_is_refused_with_one_line(
    make_bundle: Callable[..., Path],
    image_file: Path,
    capsys: pytest.CaptureFixture[str],
    step: Any,
    message: str,
) -> None:
    pytest.importorskip("onnxruntime")
    path = make_bundle(step=step)
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    output = image_file.parent / "out"
    for command in (["segment", path, image_file, "-o", output], ["verify", path]):
        assert main([str(part) for part in command]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.strip().count("\n") == 0
    assert not output.exists() or not list(output.iterdir())


def test_without_its_package_the_extra_is_named_and_nothing_is_opened(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.imaging.dense_crf import backends

    path = make_bundle(step=CRF)
    monkeypatch.setattr(backends, "find", lambda module: False)
    with pytest.raises(MissingPackageError, match=r"dense_crf cannot run: numba .*'unetx-opt\[crf\]'"):
        open_bundle(path)


def test_the_commands_run_and_show_the_step(
    make_bundle: Callable[..., Path], speckled: Any, image_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    path, output = make_bundle(step=CRF), image_file.parent / "out"
    assert main(["segment", str(path), str(image_file), "-o", str(output), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["images"]
    assert result["timings_ms"]["refine"] > 0
    with open_bundle(path) as segmenter:
        wanted = segmenter.segment(speckled).labels
    np.testing.assert_array_equal(read_image(output / "film.mask.png").pixels > 0, wanted)
    assert main(["verify", str(path)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "dense_crf (smoothness_sxy 2, smoothness_compat 3, " in shown
    assert "grid_px 64" in shown and "on the network's grid" in shown
    assert "Receptive field" in shown
    assert main(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["postprocess"] == {**CRF, "grid": "input"}
    # Depth 1: two convolutions, a pooling, two at half resolution, and two after the upsampling.
    assert document["derived"]["receptive_field_px"] == 18
