"""Bundles opened and images segmented, by engines whose answer is known."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.errors import BundleError, EngineError, ImageError
from unetx_opt.runtime import Segmentation, Segmenter, open_bundle
from unetx_opt.specs import EngineRecord, InputContract

CPU_TARGETS = ("onnxruntime-cpu", "openvino-cpu")


@pytest.fixture(params=CPU_TARGETS)
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[..., Path]) -> Path:
    pytest.importorskip(request.param.partition("-")[0])
    return make_bundle((request.param,))


def test_the_mask_is_the_threshold_of_the_image(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(blob)
    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(result.labels, blob == 200)
    assert result.label_names == ("background", "class1")
    assert result.areas_px == {"class1": int((blob == 200).sum())}
    assert result.areas_mm2 is None


def test_areas_are_in_mm2_where_the_spacing_is_known(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(blob, (0.5, 0.5))
    assert result.areas_mm2 == {"class1": pytest.approx(0.25 * (blob == 200).sum())}


def test_the_aspect_alone_shapes_the_image_and_gives_no_area_in_mm2(bundle: Path, blob: Any) -> None:
    tall = np.repeat(blob, 2, axis=1)  # the pixels of this one are twice as high as wide
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(tall, pixel_aspect=2.0)
        square = segmenter.segment(tall)
    assert result.areas_mm2 is None
    np.testing.assert_array_equal(result.labels, tall == 200)
    assert not np.array_equal(square.labels, result.labels)


def test_the_mask_has_the_size_of_an_image_of_another_size(bundle: Path, blob: Any) -> None:
    image = np.repeat(np.repeat(blob, 3, axis=0), 2, axis=1)
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(image)
    assert result.labels.shape == image.shape
    assert np.mean(result.labels == (image == 200)) > 0.97


def test_probabilities_are_computed_once_and_agree_with_the_mask(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(blob)
    assert result.probabilities is result.probabilities
    np.testing.assert_array_equal(result.probabilities[0] > 0.5, result.labels == 1)


def test_a_result_cannot_be_changed(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(blob)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.target = "another"  # type: ignore[misc]
    with pytest.raises(TypeError):
        result.timings_ms["infer"] = 0.0  # type: ignore[index]


def test_the_parts_of_the_time_add_up(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        assert segmenter.warm_up() > 0
        times = segmenter.segment(blob).timings_ms
    assert times["prepare"] + times["infer"] + times["restore"] == pytest.approx(times["total"])


def test_concurrent_calls_give_each_its_own_mask(bundle: Path, blob: Any) -> None:
    images = [np.roll(blob, 3 * index, axis=1) for index in range(24)]
    with open_bundle(bundle, threads=1) as segmenter, ThreadPoolExecutor(4) as pool:
        alone = [segmenter.segment(image).labels for image in images]
        together: list[Segmentation] = list(pool.map(segmenter.segment, images))
    for image, first, second in zip(images, alone, together, strict=True):
        np.testing.assert_array_equal(first, image == 200)
        np.testing.assert_array_equal(second.labels, first)


def test_a_later_call_leaves_an_earlier_result_as_it_is(bundle: Path, blob: Any) -> None:
    with open_bundle(bundle) as segmenter:
        first = segmenter.segment(blob)
        before = first.logits_khw.copy()
        segmenter.segment(255 - blob)
        np.testing.assert_array_equal(first.logits_khw, before)


def test_a_closed_segmenter_says_so(bundle: Path, blob: Any) -> None:
    segmenter = open_bundle(bundle)
    segmenter.close()
    segmenter.close()
    with pytest.raises(EngineError, match="is closed: open the bundle again"):
        segmenter.segment(blob)


def test_an_array_that_is_no_image_is_refused(bundle: Path) -> None:
    with open_bundle(bundle) as segmenter, pytest.raises(ImageError):
        segmenter.segment(np.zeros((3, 64, 64)))


def test_classes_are_labelled_by_the_largest_logit(make_bundle: Callable[..., Path], blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(make_bundle(classes=3)) as segmenter:
        result = segmenter.segment(blob)
    np.testing.assert_array_equal(result.labels, np.where(blob == 200, 2, 0))
    assert result.probabilities.shape == (3, *blob.shape)
    assert result.areas_px == {"class1": 0, "class2": int((blob == 200).sum())}


def test_logits_that_are_not_finite_give_an_error_and_no_mask(make_bundle: Callable[..., Path], blob: Any) -> None:
    pytest.importorskip("onnxruntime")
    with (
        open_bundle(make_bundle(poison=True)) as segmenter,
        pytest.raises(EngineError, match="NaN or infinite"),
    ):
        segmenter.segment(blob)


def test_the_preferred_engine_is_opened_and_the_other_one_named(make_bundle: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    path = make_bundle(CPU_TARGETS)
    with open_bundle(path) as segmenter:
        assert segmenter.target == "openvino-cpu"
        assert segmenter.passed_over == {"onnxruntime-cpu": "openvino-cpu is preferred"}
    with open_bundle(path, "onnxruntime-cpu") as segmenter:
        assert segmenter.target == "onnxruntime-cpu"
        assert "not asked for" in segmenter.passed_over["openvino-cpu"]


def test_an_engine_that_does_not_load_gives_way_to_the_next_one(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, blob: Any
) -> None:
    pytest.importorskip("onnxruntime")
    from unetx_opt.runtime.sessions import openvino

    def fail(request: Any) -> Any:
        raise EngineError("computes float32 on this machine")

    path = make_bundle(CPU_TARGETS)
    monkeypatch.setattr(openvino, "open_openvino", fail)
    with open_bundle(path) as segmenter:
        assert segmenter.target == "onnxruntime-cpu"
        assert segmenter.passed_over == {"openvino-cpu": "computes float32 on this machine"}
        segmenter.segment(blob)
    with pytest.raises(EngineError, match=r"no engine .*not asked for.*openvino-cpu: computes float32"):
        open_bundle(path, "openvino-cpu")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("onnx-cpu", "unknown target 'onnx-cpu', expected one of tensorrt, tensorrt-rtx"),
        ("onnxruntime-cuda", "no engine for onnxruntime-cuda, it holds onnxruntime-cpu: rebuild"),
    ],
    ids=["unknown", "not in the bundle"],
)
def test_a_target_that_cannot_be_had_is_an_error(make_bundle: Callable[..., Path], target: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_bundle(make_bundle(), target)


def test_an_altered_engine_is_never_loaded(bundle: Path) -> None:
    engine = next(path for path in bundle.rglob("model.*") if path.suffix in (".onnx", ".bin"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleError, match="altered"):
        open_bundle(bundle)


def test_zero_threads_are_refused(bundle: Path) -> None:
    with pytest.raises(EngineError, match="threads is 0, expected at least 1"):
        open_bundle(bundle, threads=0)


_PROOF = """
import sys
from unetx_opt.runtime import open_bundle
early = {"numpy", "pydantic", "PIL", "scipy"} & set(sys.modules)
import numpy as np
with open_bundle(sys.argv[1]) as segmenter:
    segmenter.segment(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).probabilities
heavy = {"torch", "click", "onnx", "unetx_opt.models", "unetx_opt.training"} & set(sys.modules)
sys.exit(f"imported early: {early}, at all: {heavy}" if early or heavy else 0)
"""


def test_segmenting_needs_neither_torch_nor_click_nor_onnx(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROOF, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr


class _Instant:
    """A session that costs nothing, so that what remains is the segmenter's own time."""

    target, compute_dtype = "instant", "float32"

    def __init__(self, logits_nchw: Any) -> None:
        self.logits_nchw = logits_nchw

    def infer(self, image_nchw: Any) -> Any:
        return self.logits_nchw

    def close(self) -> None:
        pass


def test_the_segmenter_adds_little_to_the_time_of_the_engine() -> None:
    """15 % of the fastest engine's 50 ms at 512 x 512; the fastest of several runs, as other work disturbs."""
    rng = np.random.default_rng(0)
    session: Any = _Instant(rng.standard_normal((1, 1, 512, 512)).astype(np.float32))
    record = EngineRecord("instant", ("model",))
    segmenter = Segmenter(session, record, InputContract(), ("background", "lungs"))
    image = rng.integers(0, 4096, (512, 512), dtype=np.uint16)
    assert min(segmenter.segment(image).timings_ms["total"] for _ in range(20)) < 7.0
