"""The C library's masks against those of the Python package: equal bit for bit, from the same pixels."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.runtime import open_bundle

from .conftest import SIZE_PX, Job, run, segment_jobs, sensitive_engine

SHAPES = ((64, 64), (65, 63), (16, 16), (17, 200), (200, 19), (333, 257), (40, 64), (64, 40), (511, 512), (31, 97))


def python_masks(bundle: Path, jobs: list[Job]) -> list[np.ndarray]:
    with open_bundle(bundle, "onnxruntime-cpu", threads=1) as segmenter:
        return [segmenter.segment(job.pixels, job.spacing_mm).labels for job in jobs]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        assert np.array_equal(one, other), f"image {index}: {np.count_nonzero(one != other)} pixels differ"


def phantom_jobs() -> list[Job]:
    sizes = (64, 64, 70, 91, 128, 200, 65, 64, 257, 100)
    phantoms = [chest_phantom(seed, size_px=size)[0] for seed, size in enumerate(sizes, start=2000)]
    deep = [Job(pixels, bits_stored=12) for pixels in phantoms]
    shallow = [Job((pixels[:-5] // 16).astype(np.uint8), gap=index) for index, pixels in enumerate(phantoms)]
    return [*deep, *shallow]


def odd_jobs() -> list[Job]:
    """Each combination of depth, sign and photometric sense over odd sizes, strides, spacings and stored bits."""
    rng = np.random.default_rng(11)
    jobs = []
    for index in range(40):
        shape, dtype = SHAPES[index % len(SHAPES)], np.dtype(("u1", "i1", "u2", "i2")[index // 10])
        limits, bits = np.iinfo(dtype), 8 * dtype.itemsize
        stored_bits = (0, bits, bits - 2)[index % 3]
        grey = rng.normal(limits.min + 0.6 * 2.0**bits, (2 + 9 * (index % 5)) * 2.0**bits / 100, shape)
        spacing = ((0.2, 0.2), (0.139, 0.143), (3.0, 1.0), None)[index % 4]
        stored = np.clip(grey, limits.min, limits.max).astype(dtype)
        jobs.append(Job(stored, stored_bits, 1 + index % 2, index % 7, spacing))
    flat = np.full((20, 30), 77, np.uint8)
    sparse = flat.copy()
    sparse[3, 4] = 200
    return [*jobs, Job(flat), Job(flat, photometric=1), Job(sparse)]


@st.composite
def any_job(draw: st.DrawFn) -> Job:
    """An image of any size, depth, sign, sense, stride and spacing."""
    shape = (draw(st.integers(16, 150)), draw(st.integers(16, 150)))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i1", "u2", "i2"])))
    bits = 8 * dtype.itemsize
    stored_bits = draw(st.integers(0, bits))
    limits = np.iinfo(dtype)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = 2.0 ** draw(st.integers(0, bits - 2))
    grey = random.normal(draw(st.integers(int(limits.min), int(limits.max))), spread, shape)
    column, aspect = draw(st.floats(0.05, 4.0)), draw(st.floats(1 / 15, 15.0))  # beyond 16 is refused
    spacing = draw(st.sampled_from([None, (column * aspect, column)]))
    stored = np.clip(grey, limits.min, limits.max).astype(dtype)
    return Job(stored, stored_bits, draw(st.sampled_from([1, 2])), draw(st.integers(0, 9)), spacing)


# In one process each time: a list of images, so that what one leaves behind reaches the next.
@settings(max_examples=5)
@given(jobs=st.lists(any_job(), min_size=1, max_size=6))
def test_masks_of_any_images_are_bit_equal(
    driver: Path,
    native_bundle: Path,
    onnxruntime_library: Path,
    tmp_path_factory: pytest.TempPathFactory,
    jobs: list[Job],
) -> None:
    found = segment_jobs(driver, onnxruntime_library, tmp_path_factory.mktemp("any"), native_bundle, jobs)
    assert_equal(found, python_masks(native_bundle, jobs))


def test_masks_of_any_image_are_bit_equal_where_no_rounding_is_forgiven(
    altered_bundle: Callable[..., Path], native_masks: Callable[..., list[np.ndarray]]
) -> None:
    bundle = altered_bundle(engine=sensitive_engine(1, 1, SIZE_PX, SIZE_PX))
    with open_bundle(bundle, "onnxruntime-cpu", threads=1) as segmenter:

        @given(any_job())
        def masks_are_equal(job: Job) -> None:
            assert_equal(native_masks(bundle, [job]), [segmenter.segment(job.pixels, job.spacing_mm).labels])

        masks_are_equal()


def test_masks_of_20_radiographs_are_bit_equal(
    lungs: Path, native_bundle: Path, native_masks: Callable[..., list[np.ndarray]]
) -> None:
    paths = sorted((lungs / "images").glob("*.png"))[::29][:20]
    jobs = [Job(np.asarray(Image.open(path).convert("L"))) for path in paths]
    assert len(jobs) == 20
    expected = python_masks(native_bundle, jobs)
    assert sum(0 < mask.mean() < 1 for mask in expected) >= 15
    assert_equal(native_masks(native_bundle, jobs), expected)


def test_masks_of_20_phantoms_are_bit_equal(
    native_bundle: Path, native_masks: Callable[..., list[np.ndarray]]
) -> None:
    jobs = phantom_jobs()
    assert len(jobs) == 20
    expected = python_masks(native_bundle, jobs)
    assert sum(0 < mask.mean() < 1 for mask in expected) >= 15
    assert_equal(native_masks(native_bundle, jobs), expected)


@pytest.mark.parametrize(
    ("fields", "num_classes"),
    [
        pytest.param({}, 1, id="percentiles"),
        pytest.param({}, 4, id="four-classes"),
        pytest.param({"lower_percentile": 0, "upper_percentile": 100.0, "height": 48, "width": 80}, 1, id="extremes"),
        pytest.param(
            {"value_range": [-1.0, 1.7], "padding_value": -0.3, "lower_percentile": 3.7}, 2, id="another-range"
        ),
        pytest.param(
            {"normalization": "window", "window": [-30.5, 140.25], "channels": 3, "value_range": [0.1, 3]},
            1,
            id="window-three-channels",
        ),
    ],
)
def test_masks_of_an_engine_that_forgives_no_rounding_are_bit_equal(
    fields: dict[str, Any],
    num_classes: int,
    altered_bundle: Callable[..., Path],
    native_masks: Callable[..., list[np.ndarray]],
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["input"] |= fields
        manifest["spec"] |= {"num_classes": num_classes, "in_channels": manifest["input"]["channels"]}
        names = [f"Etikett Ü{index}" for index in range(max(2, num_classes))]
        manifest["labels"] = [{"index": i, "name": name, "colour": None} for i, name in enumerate(names)]

    shape = (fields.get("channels", 1), fields.get("height", 64), fields.get("width", 64))
    bundle = altered_bundle(change, sensitive_engine(num_classes, *shape))
    jobs = odd_jobs()
    expected = python_masks(bundle, jobs)
    assert sum(len(np.unique(mask)) > 1 for mask in expected) >= 30
    assert_equal(native_masks(bundle, jobs), expected)


def test_one_rounding_of_the_input_changes_the_logits_of_the_sensitive_engine() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(sensitive_engine(1, 1, 64, 64), providers=["CPUExecutionProvider"])
    one = np.random.default_rng(0).uniform(0.25, 1, (1, 1, 64, 64)).astype(np.float32)
    other = np.nextafter(one, np.float32(2))
    logits = [session.run(["logits"], {"image": image})[0] for image in (one, other)]
    assert ((logits[0] > 0) != (logits[1] > 0)).mean() > 0.02


def test_calls_from_several_threads_give_the_same_mask(
    native_bundle: Path, native_masks: Callable[..., list[np.ndarray]]
) -> None:
    jobs = phantom_jobs()[:4]
    assert_equal(native_masks(native_bundle, jobs, threads=4), python_masks(native_bundle, jobs))


_OTHER_PYTHON = """
import sys
import numpy as np
import onnxruntime
from unetx_opt.runtime import open_bundle
bundle, source, target, folder = sys.argv[1:]
assert onnxruntime.__file__.startswith(folder), onnxruntime.__file__
films = np.load(source)
with open_bundle(bundle, "onnxruntime-cpu", threads=1) as segmenter:
    np.save(target, [segmenter.segment(film).labels for film in films])
"""


@pytest.mark.skipif(
    "UNETX_ONNXRUNTIME_FOLDERS" not in os.environ,
    reason="needs unpacked wheels of other ONNX Runtime versions: name their folders in UNETX_ONNXRUNTIME_FOLDERS",
)
def test_masks_are_bit_equal_under_other_versions_of_onnxruntime(
    native_bundle: Path, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1.30.0 leaks 14 bytes once when it starts; leaks of ours are looked for under the installed version.
    (tmp_path / "known-leaks").write_text("leak:libonnxruntime\n")
    monkeypatch.setenv("LSAN_OPTIONS", f"suppressions={tmp_path / 'known-leaks'}:print_suppressions=0")
    films = np.stack([chest_phantom(seed, size_px=150)[0][:, :140] for seed in range(4000, 4020)])
    np.save(tmp_path / "films.npy", films)
    for folder in os.environ["UNETX_ONNXRUNTIME_FOLDERS"].split(os.pathsep):
        library = next(Path(folder, "onnxruntime/capi").glob("libonnxruntime.so.*"))
        found = segment_jobs(driver, library, tmp_path, native_bundle, [Job(film, bits_stored=12) for film in films])
        arguments = (native_bundle, tmp_path / "films.npy", tmp_path / "masks.npy", folder)
        paths = os.pathsep.join([folder, *filter(None, sys.path)])
        run(sys.executable, "-c", _OTHER_PYTHON, *arguments, env=os.environ | {"PYTHONPATH": paths})
        assert_equal(found, list(np.load(tmp_path / "masks.npy")))
