"""`unetx-opt segment`: files in, masks and overlays out, one bad input among good ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main

pytest.importorskip("onnxruntime")

Run = Callable[..., int]


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def png(tmp_path: Path, blob: Any) -> Path:
    path = tmp_path / "chest.png"
    Image.fromarray(blob).save(path)
    return path


def test_a_mask_and_an_overlay_appear_for_each_input(
    bundle: Path, png: Path, tmp_path: Path, blob: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "results"
    assert main(["segment", str(bundle), str(png), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["chest.mask.png", "chest.overlay.png"]
    with Image.open(out / "chest.mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), np.where(blob == 200, 255, 0))
    with Image.open(out / "chest.overlay.png") as overlay:
        assert overlay.size == blob.shape[::-1]
    captured = capsys.readouterr()
    assert "chest.mask.png: class1 " in captured.out
    assert "first run" in captured.out
    assert "engine: onnxruntime-cpu, computes float32" in captured.err


def test_json_is_one_document_with_files_areas_and_times(
    bundle: Path, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], blob: Any
) -> None:
    second = tmp_path / "second.png"
    second.write_bytes(png.read_bytes())
    out = tmp_path / "out"
    assert main(["segment", str(bundle), str(png), str(second), "-o", str(out), "--json", "--threads", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["target"] == "onnxruntime-cpu"
    assert document["compute_dtype"] == "float32"
    first, other = document["images"]
    assert Path(first["mask"]).is_file()
    assert Path(first["overlay"]).is_file()
    assert first["areas_px"] == {"class1": int((blob == 200).sum())}
    assert first["areas_mm2"] is None
    assert (first["first_run"], other["first_run"]) == (True, False)
    assert set(first["timings_ms"]) == {"read", "prepare", "infer", "restore", "total", "write"}


def test_a_result_never_replaces_an_input(
    bundle: Path, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("chest.png", "chest.mask.png"):
        (folder / name).write_bytes(png.read_bytes())
    assert main(["segment", str(bundle), str(folder), "-o", str(tmp_path / "x" / ".." / "films")]) == 1
    assert "chest.mask.png is an input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(
        ("chest.png", "chest.mask.png"), png.read_bytes()
    )


def test_an_unreadable_input_does_not_stop_the_others(
    bundle: Path, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, absent = tmp_path / "broken.png", tmp_path / "absent.png"
    broken.write_bytes(png.read_bytes()[:100])
    last = tmp_path / "last.png"
    last.write_bytes(png.read_bytes())
    out = tmp_path / "out"
    inputs = [str(path) for path in (broken, absent, png, last)]
    assert main(["segment", str(bundle), *inputs, "-o", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    images = json.loads(captured.out)["images"]
    assert [image["error"] is None for image in images] == [False, False, True, True]
    assert "broken.png" in images[0]["error"]
    assert images[2]["first_run"]
    assert "error: 2 of 4 inputs could not be segmented" in captured.err
    assert sorted(path.name for path in out.glob("*.mask.png")) == ["chest.mask.png", "last.mask.png"]


@pytest.mark.parametrize("workers", [[], ["--workers", "1"]], ids=["here", "workers"])
def test_a_result_that_no_file_system_can_name_does_not_stop_the_others(
    bundle: Path, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: list[str]
) -> None:
    folder, out = tmp_path / "films", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "n" * 250 + ".png", "z.png"):
        (folder / name).write_bytes(png.read_bytes())
    assert main(["segment", str(bundle), str(folder), "-o", str(out), *workers]) == 1
    assert "File name too long" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*.mask.png")) == ["a.mask.png", "z.mask.png"]


def test_inputs_of_one_name_do_not_overwrite_one_another(bundle: Path, png: Path, tmp_path: Path, blob: Any) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    Image.fromarray(255 - blob).save(folder / "chest.png")
    (folder / "Chest.PNG").write_bytes(png.read_bytes())
    (folder / ".hidden").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["segment", str(bundle), str(png), str(folder), "-o", str(out)]) == 0
    names = sorted(path.name for path in out.glob("*.mask.png"))
    assert names == ["Chest-2.mask.png", "chest-3.mask.png", "chest.mask.png"]
    assert (out / "chest-3.mask.png").read_bytes() != (out / "chest.mask.png").read_bytes()


def test_dicom_is_read_with_its_pixel_spacing(
    bundle: Path, tmp_path: Path, dicom_samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    source = dicom_samples / "nih_dx_implicit_mono2_8bit.dcm"
    assert main(["segment", str(bundle), str(source), "-o", str(tmp_path / "out"), "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    with Image.open(image["mask"]) as mask:
        assert mask.size == (image["width"], image["height"])
    assert (image["areas_mm2"] is None) == (image["spacing_mm"] is None)


def test_a_target_that_the_bundle_lacks_is_an_error(
    bundle: Path, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(bundle), str(png), "-o", str(out), "--target", "tensorrt"]) == 1
    assert "error: the bundle has no engine for tensorrt" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_bundle_is_an_error(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(tmp_path / "none"), str(png), "-o", str(tmp_path / "out")]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["b"], ["b", "i"], ["b", "i", "-o", "o", "--threads", "0"]])
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    assert main(["segment", *arguments]) == 2
