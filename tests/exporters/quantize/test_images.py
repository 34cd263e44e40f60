"""Images for 8-bit ranges: where they come from, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unetx_exporters.gate_images import folder_gate_images, phantom_gate_images
from unetx_exporters.quantize.images import calibration_set, neighbour_correlation, refuse_shared_images
from unetx_opt.errors import DataError
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.specs import InputContract


def phantom(seed: int) -> NDArray[np.uint8]:
    return (chest_phantom(seed, size_px=64)[0] >> 4).astype(np.uint8)


def write_folder(root: Path, splits: Mapping[str, list[NDArray[np.uint8]]]) -> Path:
    rows = ["file,patient,split"]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for split, images in splits.items():
        for index, pixels in enumerate(images):
            name = f"{split}{index}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            Image.fromarray(np.full_like(pixels, 255)).save(root / "masks" / name)
            rows.append(f"{name},{split}{index},{split}")
    (root / "splits.csv").write_text("\n".join(rows) + "\n")
    return root


def test_without_data_ranges_and_gate_come_from_different_phantoms_and_the_evidence_says_so() -> None:
    for seed in (0, 1, 2**32 - 1):
        calibration = calibration_set(None, 64, seed)
        gate = phantom_gate_images(24, 64, seed)
        refuse_shared_images(calibration, gate, None)
        assert len(calibration) == len(set(calibration.sha256)) == 32
        assert "phantoms" in calibration.notes[0]


def test_images_come_as_the_network_reads_them_and_are_the_same_each_time(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"calibration": [phantom(seed) for seed in range(3)]})
    calibration = calibration_set(root, 64, 0)
    contract = InputContract(height=32, width=32)
    first, second = (list(calibration.prepared(contract)) for _ in range(2))
    assert [image.shape for image in first] == [(1, 1, 32, 32)] * 3
    assert all(image.dtype == np.float32 for image in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any("3 images only" in note for note in calibration.notes)


def test_many_images_are_sampled_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetx_exporters.quantize.images._MOST_IMAGES", 4)
    root = write_folder(tmp_path / "data", {"calibration": [phantom(seed) for seed in range(12)]})
    chosen = [calibration_set(root, 64, seed) for seed in (0, 0, 1)]
    assert chosen[0].indices == chosen[1].indices != chosen[2].indices
    assert len(chosen[0]) == 4
    assert any("4 of 12" in note for note in chosen[0].notes)


@pytest.mark.parametrize("kind", ["white noise", "one grey", "normal noise"])
def test_random_data_is_refused(kind: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = {
        "white noise": generator.integers(0, 256, (64, 64), dtype=np.uint8),
        "one grey": np.full((64, 64), 7, np.uint8),
        "normal noise": np.clip(generator.normal(128, 30, (64, 64)), 0, 255).astype(np.uint8),
    }[kind]
    root = write_folder(tmp_path / "data", {"calibration": [phantom(0), pixels]})
    with pytest.raises(DataError, match=r"calibration1\.png looks like noise"):
        calibration_set(root, 64, 0)


def test_real_radiographs_are_far_from_what_is_refused(lungs: Path) -> None:
    images = folder_gate_images(lungs, "calibration")
    assert min(neighbour_correlation(image.pixels) for image in images) > 0.9


@pytest.mark.parametrize("other", ["validation", "test"])
def test_an_image_under_another_name_in_another_split_is_refused(other: str, tmp_path: Path) -> None:
    splits = {
        "calibration": [phantom(0), phantom(1)],
        "validation": [phantom(2)],
        "test": [phantom(3)],
    }
    splits[other].append(phantom(1))
    root = write_folder(tmp_path / "data", splits)
    calibration = calibration_set(root, 64, 0)
    with pytest.raises(DataError, match=rf"{other}1\.png.*calibration images too.*another split"):
        refuse_shared_images(calibration, folder_gate_images(root, "validation"), root)


def test_the_gate_and_the_report_share_no_image(tmp_path: Path) -> None:
    splits = {"calibration": [phantom(0)], "validation": [phantom(1)], "test": [phantom(1)]}
    root = write_folder(tmp_path / "data", splits)
    with pytest.raises(DataError, match=r"test0\.png.*gate images too"):
        refuse_shared_images(calibration_set(root, 64, 0), folder_gate_images(root, "validation"), root)


def test_the_same_image_twice_counts_twice_and_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"calibration": [phantom(0), phantom(0)]})
    with pytest.raises(DataError, match="are the same, expected each once"):
        calibration_set(root, 64, 0)


def test_a_folder_without_the_split_says_so(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"validation": [phantom(0)]})
    with pytest.raises(DataError, match="no image in split 'calibration'"):
        calibration_set(root, 64, 0)


def test_a_folder_without_images_for_reports_is_no_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"calibration": [phantom(0)], "validation": [phantom(1)]})
    refuse_shared_images(calibration_set(root, 64, 0), folder_gate_images(root, "validation"), root)
