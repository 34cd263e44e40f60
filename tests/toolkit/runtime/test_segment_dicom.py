"""`unetx-opt segment --format`: DICOM results from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.batch.outputs import SEGMENTATION_KINDS
from unetx_opt.cli.main import main
from unetx_opt.dicom.results.request import SEGMENTATION_KINDS as KNOWN_KINDS
from unetx_opt.dicom.results.write import RESULTS

pytest.importorskip("onnxruntime")
pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def write(tmp_path: Path, blob: Any) -> Callable[..., Path]:
    """Write the blob as a Computed Radiography image with some attributes changed."""

    def write_image(name: str = "chest.dcm", **attributes: Any) -> Path:
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        dataset.PatientName, dataset.PatientID, dataset.Modality = "Secret^Name", "secret-id", "CR"
        dataset.BodyPartExamined, dataset.PixelSpacing = "CHEST", [0.5, 0.5]
        dataset.Rows, dataset.Columns = blob.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        data = blob.astype(np.uint8).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OB"
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write_image


def test_every_format_is_written_and_the_seg_is_the_mask(
    bundle: Path, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(), tmp_path / "out"
    formats = ["--format", "png,seg", "--format", "sc", "--format", "gsps,sr"]
    assert main(["segment", str(bundle), str(source), "-o", str(out), *formats, "--json"]) == 0
    captured = capsys.readouterr()
    assert "Secret" not in captured.out + captured.err
    (image,) = json.loads(captured.out)["images"]
    names = ("mask.png", "overlay.png", "seg.dcm", "sc.dcm", "gsps.dcm", "sr.dcm")
    assert sorted(path.name for path in out.iterdir()) == sorted(f"chest.{name}" for name in names)
    assert [Path(image[key]).name for key in ("mask", "seg", "sr")] == [
        "chest.mask.png",
        "chest.seg.dcm",
        "chest.sr.dcm",
    ]
    with Image.open(out / "chest.mask.png") as mask:
        expected = np.asarray(mask) > 0
    seg = pydicom.dcmread(out / "chest.seg.dcm")
    assert np.array_equal(seg.pixel_array.squeeze() > 0, expected)
    assert (seg.PatientName, seg.StudyInstanceUID) == ("Secret^Name", "1.2.3.1")
    assert seg.DeviceSerialNumber == hash_manifest(bundle)
    with Image.open(out / "chest.overlay.png") as overlay:
        assert np.array_equal(pydicom.dcmread(out / "chest.sc.dcm").pixel_array, np.asarray(overlay.convert("RGB")))


def hash_manifest(bundle: Path) -> str:
    from unetx_opt.bundle.open import open_verified

    with open_verified(bundle) as opened:
        return opened.manifest_sha256


def test_stable_uids_and_kinds_are_those_of_the_options(
    bundle: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    source = write()

    def uid(folder: str, *options: str) -> Any:
        arguments = ["segment", str(bundle), str(source), "-o", str(tmp_path / folder), "--format", "seg", *options]
        assert main(arguments) == 0
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["chest.seg.dcm"]
        return pydicom.dcmread(tmp_path / folder / "chest.seg.dcm")

    first, again = uid("a", "--stable-uids"), uid("b", "--stable-uids")
    assert first.SOPInstanceUID == again.SOPInstanceUID != uid("c").SOPInstanceUID
    fractional = uid("d", "--seg-kind", "fractional", "--udi", "(01)123")
    assert fractional.SegmentationType == "FRACTIONAL"
    assert fractional.UDISequence[0].UniqueDeviceIdentifier == "(01)123"


def test_force_takes_another_body_part_with_a_note(
    bundle: Path, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(BodyPartExamined="HAND"), tmp_path / "out"
    arguments = ["segment", str(bundle), str(source), "-o", str(out), "--format", "sr"]
    assert main(arguments) == 1
    assert "Body Part Examined is HAND, expected a chest" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--force"]) == 0
    captured = capsys.readouterr()
    assert "forced: " in captured.err
    assert "HAND" in captured.err
    assert (out / "chest.sr.dcm").is_file()


def test_a_png_or_a_source_without_identity_gives_no_dicom_result_and_no_file(
    bundle: Path, write: Callable[..., Path], tmp_path: Path, blob: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(blob).save(tmp_path / "film.png")
    out = tmp_path / "out"
    nameless = write(StudyInstanceUID="")
    arguments = ["segment", str(bundle), str(tmp_path / "film.png"), str(nameless), "-o", str(out)]
    assert main([*arguments, "--format", "png,seg"]) == 1
    errors = capsys.readouterr().err
    assert "film.png is no DICOM file, and seg refers to one" in errors
    assert "StudyInstanceUID is absent" in errors
    assert not out.exists()


def test_an_unknown_format_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "b", "i", "-o", "o", "--format", "png,pdf"]) == 2
    assert "'pdf' is none of png, seg, sc, gsps, sr" in capsys.readouterr().err


def test_the_command_names_the_formats_and_kinds_that_exist() -> None:
    from unetx_opt.batch.outputs import FILES, OUTPUTS

    assert set(OUTPUTS) == {"png", *RESULTS}
    assert {key for keys in OUTPUTS.values() for key in keys} == set(FILES)
    assert SEGMENTATION_KINDS == KNOWN_KINDS
