"""What is no single grey chest radiograph is refused with the reason, and taken by force with a note."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.dicom.read import ReadOptions, read_dicom
from unetx_opt.dicom.sandbox import DicomReader
from unetx_opt.errors import ImageError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

FORCE = ReadOptions(force=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    """Write an 8-bit image with some attributes changed, return its path."""

    def write_image(pixels=PIXELS, **attributes):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PatientName = "Secret^Name"
        dataset.Rows, dataset.Columns = PIXELS.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        for name, value in attributes.items():
            setattr(dataset, name, value)
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        dataset["PixelData"].VR = "OB"
        path = tmp_path / "image.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write_image


@pytest.mark.parametrize(
    "part", ["", "CHEST", "chest", "THORAX", "LUNG", "PORT CHEST", "CHEST_PA", "TORAX", "No code string at all"]
)
def test_a_chest_or_no_body_part_is_read_without_a_note(write, part):
    assert read_dicom(write(BodyPartExamined=part)).notes == ()


def region(code):
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "Secret words"
    return [item]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BodyPartExamined": "HAND"}, "Body Part Examined is HAND, expected a chest"),
        ({"BodyPartExamined": "ABDOMEN"}, "Body Part Examined is ABDOMEN"),
        ({"AnatomicRegionSequence": region("85562004")}, "Anatomic Region has the code 85562004"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "SOP Class is no radiograph"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, "SOP Class is raw detector data"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector data"),
    ],
    ids=str,
)
def test_another_kind_of_image_is_refused_and_taken_by_force_with_the_same_reason(write, attributes, reason):
    path = write(**attributes)
    with pytest.raises(ImageError, match=reason) as error:
        read_dicom(path)
    assert "Secret" not in str(error.value)
    image = read_dicom(path, FORCE)
    assert np.array_equal(image.pixels, PIXELS)
    assert len(image.notes) == 1
    assert reason in image.notes[0]


def test_an_anatomic_region_of_the_chest_is_read(write):
    for code in ("51185008", "T-D3000"):
        assert read_dicom(write(AnatomicRegionSequence=region(code))).notes == ()


def test_force_takes_the_first_frame(write):
    frames = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2])
    path = write(frames, NumberOfFrames=3)
    with pytest.raises(ImageError, match="3 frames"):
        read_dicom(path)
    assert np.array_equal(read_dicom(path, FORCE).pixels, PIXELS)


@pytest.mark.parametrize("space", ["RGB", "YBR_FULL"])
def test_force_takes_the_luminance_of_colour(write, space):
    rgb = np.random.default_rng(1).integers(0, 256, (*PIXELS.shape, 3), dtype=np.uint8)
    path = write(rgb, SamplesPerPixel=3, PhotometricInterpretation=space, PlanarConfiguration=0)
    with pytest.raises(ImageError, match="colour"):
        read_dicom(path)
    found = read_dicom(path, FORCE).pixels
    assert found.shape == PIXELS.shape
    if space == "RGB":
        np.testing.assert_allclose(found, 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2], atol=1e-3)
    else:  # the first sample is the luminance, but for colours that RGB cannot hold
        inside = (np.abs(rgb[..., 1:].astype(int) - 128) < 30).all(-1) & (np.abs(rgb[..., 0].astype(int) - 128) < 60)
        assert inside.sum() > 3
        assert np.abs(found - rgb[..., 0])[inside].max() <= 1.5


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535"),
        ({"NumberOfFrames": 2**31 - 1}, "2147483647 frames"),
        ({"NumberOfFrames": 0}, "0 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "Photometric"),
        ({"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK"}, "colour"),
        ({"SOPClassUID": ""}, "SOPClassUID"),
        ({"SOPInstanceUID": "a/b"}, "SOPInstanceUID"),
        ({"BitsStored": 9}, "9 of 8"),
    ],
    ids=str,
)
def test_force_takes_no_limit_away(write, attributes, reason):
    with pytest.raises(ImageError, match=reason):
        read_dicom(write(**attributes), FORCE)


def test_the_reader_process_forces_and_notes_as_this_one(write):
    path = write(BodyPartExamined="HAND")
    with DicomReader() as reader:
        with pytest.raises(ImageError, match="HAND"):
            reader.read(path)
        image = reader.read(path, FORCE)
    assert np.array_equal(image.pixels, PIXELS)
    assert image.notes == read_dicom(path, FORCE).notes


def test_a_real_run_of_96_frames_and_a_real_hand_are_taken_by_force(dicom_samples):
    image = read_dicom(dicom_samples / "HasFragmentSequence_xa_96frames.dcm", FORCE)
    dataset = pydicom.dcmread(dicom_samples / "HasFragmentSequence_xa_96frames.dcm")
    assert image.pixels.shape == (dataset.Rows, dataset.Columns)
    assert any("96 frames" in note for note in image.notes)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", "", "LIN OD"])
def test_the_presentation_lut_shape_is_honoured_once_as_highdicom_does(write, photometric, shape):
    hd = pytest.importorskip("highdicom", reason="highdicom is not installed")
    path = write(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    found = read_dicom(path).pixels
    inverted = shape == "INVERSE" or (shape != "IDENTITY" and photometric == "MONOCHROME1")
    assert np.array_equal(found, 255 - PIXELS if inverted else PIXELS)
    if shape in ("IDENTITY", "INVERSE"):
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(dataset, keyword, "1.2.3")
        reference = hd.Image.from_dataset(dataset).get_frame(1, apply_presentation_lut=True)
        assert np.array_equal(reference, found)
