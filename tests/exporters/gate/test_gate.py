"""Drift of engines against a reference: fair turns, honest figures, and what cannot be measured."""

from __future__ import annotations

import time

import numpy as np
import pytest

from unetx_exporters.gate import DriftOptions, measure_drift
from unetx_exporters.gate_images import GateImage, image_sha256
from unetx_opt.errors import DataError, ExportError, SpecError
from unetx_opt.metrics.gates import decide_gate
from unetx_opt.specs import InputContract

CONTRACT = InputContract(height=64, width=64)


def blob_image(index: int, shape: tuple[int, int] = (64, 64)) -> GateImage:
    """Make a soft bright disc on a dark ground, a little different for each index."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius = min(shape) * (0.2 + 0.005 * index)
    distance = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2 - index % 5)
    pixels = np.rint(255 / (1 + np.exp((distance - radius) / 2))).astype(np.uint8)
    return GateImage(f"blob-{index}", image_sha256(pixels), pixels, (distance < radius).astype(np.uint8))


def blob_images(count: int = 24, **options) -> list[GateImage]:
    return [blob_image(index, **options) for index in range(count)]


def threshold(image_nchw: np.ndarray) -> np.ndarray:
    """Stand in for a network: bright is foreground."""
    return (image_nchw - np.float32(0.5)) * np.float32(10)


def three_classes(image_nchw: np.ndarray) -> np.ndarray:
    image = image_nchw[:, 0]
    return np.stack([0.4 - image, 0.3 - np.abs(image - 0.6), image - 0.7], axis=1).astype(np.float32)


def changed_on(indices, change):
    """Make an engine that equals `threshold` but for the calls of the given numbers."""
    calls = iter(range(10_000))

    def engine(image_nchw: np.ndarray) -> np.ndarray:
        logits = threshold(image_nchw)
        return change(logits) if next(calls) in indices else logits

    return engine


def moved(logits: np.ndarray) -> np.ndarray:
    return np.roll(logits, 3, axis=2)


def test_an_engine_that_computes_the_same_has_no_drift_and_passes():
    measured = measure_drift(threshold, {"same": threshold}, blob_images(), CONTRACT)
    assert all(
        drift.dice_engine_vs_reference == 1.0
        and drift.hausdorff_shift_px == drift.max_logit_difference == drift.score_difference == 0.0
        for drift in measured.drifts["same"]
    )
    assert decide_gate("strict", measured.drifts["same"]).passed
    assert measured.worst_cases["same"] == ()
    assert [image.name for image in measured.images] == [f"blob-{index}" for index in range(24)]
    assert measured.images[0].sha256 == blob_image(0).sha256


def test_a_rounded_engine_passes_and_a_moved_one_does_not():
    engines = {
        "float16": lambda image: threshold(image).astype(np.float16).astype(np.float32),
        "moved": lambda image: moved(threshold(image)),
    }
    measured = measure_drift(threshold, engines, blob_images(), CONTRACT, DriftOptions(class_names=("blob",)))
    decisions = {name: decide_gate("strict", drifts) for name, drifts in measured.drifts.items()}
    assert decisions["float16"].passed
    assert {row.rule for row in decisions["moved"].failures} >= {"worst_dice_difference", "hausdorff_shift_px"}
    assert {drift.hausdorff_shift_px for drift in measured.drifts["moved"]} == {3.0}
    assert 0 < max(drift.max_logit_difference for drift in measured.drifts["float16"]) < 0.01
    assert {drift.class_name for drift in measured.drifts["moved"]} == {"blob"}


def test_masks_are_compared_on_the_grid_of_the_image():
    images = blob_images(2, shape=(128, 96))
    measured = measure_drift(threshold, {"moved": lambda image: moved(threshold(image))}, images, CONTRACT)
    # 3 pixels of the network are 6 of an image of twice its height.
    assert [drift.hausdorff_shift_px for drift in measured.drifts["moved"]] == [pytest.approx(6.0, abs=0.5)] * 2
    assert (measured.images[0].height_px, measured.images[0].width_px) == (128, 96)
    assert measured.drifts["moved"][0].dice_reference_vs_truth > 0.95


def test_nan_logits_are_counted_and_fail_the_gate():
    def broken(logits):
        logits[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
        return logits

    measured = measure_drift(threshold, {"broken": changed_on({5}, broken)}, blob_images(), CONTRACT)
    drift = measured.drifts["broken"][5]
    assert drift.non_finite_logits == 3 and drift.max_logit_difference == np.inf and drift.is_broken
    failures = decide_gate("standard", measured.drifts["broken"]).failures
    assert ("non_finite", "blob-5") in [(row.rule, row.worst_image) for row in failures]


def test_an_emptied_mask_fails_and_is_the_worst_case():
    engine = changed_on({3, 7}, lambda logits: np.full_like(logits, -1) if logits.max() > 0 else logits)
    measured = measure_drift(threshold, {"emptied": engine}, blob_images(), CONTRACT, DriftOptions(worst_cases=1))
    assert [drift.name for drift in measured.drifts["emptied"] if drift.engine_empty] == ["blob-3", "blob-7"]
    assert [case.drift.name for case in measured.worst_cases["emptied"]] == ["blob-3"]
    assert "empty_mask" in {row.rule for row in decide_gate("standard", measured.drifts["emptied"]).failures}


def test_without_a_truth_the_agreement_decides():
    images = [GateImage(image.name, image.sha256, image.pixels) for image in blob_images()]
    measured = measure_drift(threshold, {"moved": lambda image: moved(threshold(image))}, images, CONTRACT)
    assert all(drift.dice_engine_vs_truth is None for drift in measured.drifts["moved"])
    assert not decide_gate("standard", measured.drifts["moved"]).passed


def test_every_class_but_the_background_is_compared():
    images = [
        GateImage(
            image.name, image.sha256, image.pixels, (image.pixels > 100).astype(np.uint8) + (image.pixels > 180)
        )
        for image in blob_images(2)
    ]
    measured = measure_drift(three_classes, {"same": three_classes}, images, CONTRACT)
    assert [(drift.name, drift.class_name) for drift in measured.drifts["same"]] == [
        ("blob-0", "class 1"),
        ("blob-0", "class 2"),
        ("blob-1", "class 1"),
        ("blob-1", "class 2"),
    ]
    assert all(not drift.reference_empty for drift in measured.drifts["same"])
    with pytest.raises(SpecError, match=r"1 class names were given \(lungs\), expected 2"):
        measure_drift(three_classes, {"same": three_classes}, images, CONTRACT, DriftOptions(class_names=("lungs",)))


def test_engines_take_turns_so_that_none_is_always_first():
    order = []

    def named(name):
        def engine(image_nchw):
            order.append(name)
            return threshold(image_nchw)

        return engine

    done = []
    engines = {name: named(name) for name in "abc"}
    measure_drift(named("reference"), engines, blob_images(4), CONTRACT, DriftOptions(progress=done.append))
    calls = ["".join(order[start + 1 : start + 4]) for start in range(0, len(order), 4)]
    assert order[::4] == ["reference"] * 4
    assert calls == ["abc", "bca", "cab", "abc"]
    assert done == [f"blob-{index}" for index in range(4)]


def test_an_engine_that_computes_in_place_does_not_change_what_others_read():
    def in_place(image_nchw):
        image_nchw[:] = -1.0
        return image_nchw

    measured = measure_drift(threshold, {"in place": in_place, "same": threshold}, blob_images(3), CONTRACT)
    assert {drift.max_logit_difference for drift in measured.drifts["same"]} == {0.0}


def test_the_time_of_each_engine_is_its_own():
    def slow(image_nchw):
        time.sleep(0.004)
        return threshold(image_nchw)

    measured = measure_drift(threshold, {"slow": slow, "fast": threshold}, blob_images(3), CONTRACT)
    assert measured.median_call_ms("slow") >= 4.0
    assert measured.median_call_ms("fast") < measured.median_call_ms("slow")


def test_what_a_model_does_after_its_logits_is_part_of_the_comparison():
    options = DriftOptions(decide_pixels=lambda logits, image, geometry: (image[0] > 0.4).astype(np.uint8))
    measured = measure_drift(
        threshold, {"moved": lambda image: moved(threshold(image))}, blob_images(2), CONTRACT, options
    )
    assert [drift.dice_engine_vs_reference for drift in measured.drifts["moved"]] == [1.0, 1.0]


def test_a_reference_with_nan_is_an_error_about_the_checkpoint():
    broken = changed_on({1}, lambda logits: logits * np.nan)
    with pytest.raises(ExportError, match="reference gives 4096 NaN or infinite logits on image blob-1"):
        measure_drift(broken, {"same": threshold}, blob_images(3), CONTRACT)


@pytest.mark.parametrize(
    "engine",
    [lambda image: threshold(image)[:, :, :32], lambda image: threshold(image).astype(np.float64)],
    ids=["half the rows", "float64"],
)
def test_logits_of_another_shape_or_type_are_an_error(engine):
    with pytest.raises(ExportError, match=r"engine odd gives logits .* expected float32 \(1, 1, 64, 64\)"):
        measure_drift(threshold, {"odd": engine}, blob_images(1), CONTRACT)


def test_the_same_image_twice_is_an_error():
    twin = GateImage("twin", blob_image(0).sha256, blob_image(0).pixels, blob_image(0).truth)
    with pytest.raises(DataError, match="images blob-0 and twin are the same"):
        measure_drift(threshold, {"same": threshold}, [*blob_images(2), twin], CONTRACT)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(DataError, match="no image was given"):
        measure_drift(threshold, {"same": threshold}, [], CONTRACT)
    with pytest.raises(SpecError, match="no engine was given"):
        measure_drift(threshold, {}, blob_images(1), CONTRACT)


def test_memory_does_not_grow_with_the_number_of_images():
    alive = []

    def images():
        import weakref

        for index in range(12):
            image = blob_image(index)
            alive.append(weakref.ref(image.pixels))
            yield image

    measure_drift(threshold, {"moved": lambda image: moved(threshold(image))}, images(), CONTRACT)
    # The last image can still be held by the loop that has just ended.
    assert sum(reference() is not None for reference in alive[:-1]) == 0
