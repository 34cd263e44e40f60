"""Every transfer syntax at every bit depth, the frames made by others: imagecodecs, pydicom and dcmtk."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from unetx_opt.dicom.decode import TRANSFER_SYNTAXES
from unetx_opt.dicom.read import read_dicom, read_dicom_bytes
from unetx_opt.dicom.suitability import SOP_CLASSES

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")

from pydicom.encaps import encapsulate  # noqa: E402

EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."
SHAPE = (33, 45)


def grey(bits, signed=False):
    """Noise over a ramp that takes every stored bit."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ramp = np.linspace(low, high, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    noise = np.random.default_rng(bits).normal(0, (high - low) / 40, SHAPE)
    return np.clip(ramp + noise, low, high).round().astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def encode(pixels, bits, syntax=EXPLICIT, frame=None, **attributes):
    """Bytes of a Computed Radiography file."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4", "CR"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    data = pixels.tobytes()
    dataset.PixelData = encapsulate([frame]) if frame else data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if frame is None and pixels.dtype.itemsize == 2 else "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def raw(pixels, bits):
    """Stored bits without a sign, as codecs that know none take them."""
    return pixels.view(f"u{pixels.dtype.itemsize}") & np.array(2**bits - 1, f"u{pixels.dtype.itemsize}")


def jpeg_lossless(pixels, bits):
    return imagecodecs.jpeg_encode(raw(pixels, bits), lossless=True, bitspersample=bits, predictor=1)


def jpeg_ls(pixels, bits):
    return imagecodecs.jpegls_encode(raw(pixels, bits))


def jpeg_2000(pixels, bits):
    return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, bitspersample=bits)


def htj2k(pixels, bits):
    return imagecodecs.htj2k_encode(pixels)


#: Lossless ways to store a frame: transfer syntax -> encoder of one frame.
LOSSLESS = {
    f"{JPEG}57": jpeg_lossless,
    f"{JPEG}70": jpeg_lossless,
    f"{JPEG}80": jpeg_ls,
    f"{JPEG}90": jpeg_2000,
    f"{JPEG}91": jpeg_2000,
    f"{JPEG}201": htj2k,
    f"{JPEG}202": htj2k,
    f"{JPEG}203": htj2k,
}
UNCOMPRESSED = ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


def name_of(syntax):
    return TRANSFER_SYNTAXES[syntax].name


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_bit_depth_of_every_lossless_codec_is_read_exactly(syntax, bits):
    pixels = grey(bits)
    image = read_dicom_bytes(encode(pixels, bits, syntax, LOSSLESS[syntax](pixels, bits)))
    assert np.array_equal(image.pixels, pixels)
    assert image.transfer_syntax_uid == syntax


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_values_of_every_lossless_codec_keep_their_sign(syntax, bits):
    pixels = grey(bits, signed=True)
    image = read_dicom_bytes(encode(pixels, bits, syntax, LOSSLESS[syntax](pixels, bits)))
    assert image.pixels.min() < 0 < image.pixels.max()
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_bit_depth_is_read_exactly_without_compression_and_with_run_lengths(bits, signed):
    pixels = grey(bits, signed)
    data = encode(pixels, bits)
    assert np.array_equal(read_dicom_bytes(data).pixels, pixels)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.compress(RLE, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert np.array_equal(read_dicom_bytes(buffer.getvalue()).pixels, pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_near_lossless_jpeg_ls_errs_by_no_more_than_it_says(bits):
    pixels, near = grey(bits), 3
    image = read_dicom_bytes(encode(pixels, bits, f"{JPEG}81", imagecodecs.jpegls_encode(pixels, level=near)))
    error = np.abs(image.pixels - pixels)
    assert 0 < error.max() <= near


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossy_jpeg_2000_is_read_closely(bits):
    pixels = grey(bits)
    frame = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=45, reversible=False, bitspersample=bits)
    image = read_dicom_bytes(encode(pixels, bits, f"{JPEG}91", frame))
    error = np.abs(image.pixels - pixels)
    assert 0 < error.max() < 2**bits / 25


def test_an_overshoot_of_a_lossy_frame_does_not_wrap_where_fewer_bits_are_stored_than_it_has():
    pixels = np.where(np.indices(SHAPE).sum(0) % 7 < 3, 1023, 0).astype(np.uint16)
    frame = imagecodecs.jpeg_encode(pixels, level=60, bitspersample=12)
    assert imagecodecs.jpeg_decode(frame).max() > 1023
    image = read_dicom_bytes(encode(pixels, 10, f"{JPEG}51", frame))
    assert image.pixels.max() == 1023
    assert np.corrcoef(image.pixels.ravel(), pixels.ravel())[0, 1] > 0.95


DCMTK = {
    "rle": (("dcmcrle",), RLE, 0),
    "lossless": (("dcmcjpeg", "+el"), f"{JPEG}57", 0),
    "lossless sv1": (("dcmcjpeg", "+e1"), f"{JPEG}70", 0),
    "extended": (("dcmcjpeg", "+ee", "+bt", "+q", "98"), f"{JPEG}51", 60),
    "jpeg-ls": (("dcmcjpls", "+el"), f"{JPEG}80", 0),
    "near-lossless": (("dcmcjpls", "+en"), f"{JPEG}81", 2),
}


@pytest.mark.parametrize("kind", DCMTK)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_what_dcmtk_compresses_is_read(tmp_path: Path, kind, signed):
    command, syntax, tolerance = DCMTK[kind]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if kind in ("extended", "near-lossless") and signed:
        pytest.skip("dcmtk compresses signed values without loss only")
    pixels = grey(12, signed)
    source, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    source.write_bytes(encode(pixels, 12, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4"))
    subprocess.run([*command, str(source), str(packed)], check=True, capture_output=True)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == syntax
    found = read_dicom(packed)
    assert np.abs(found.pixels - pixels).max() <= tolerance


def test_every_transfer_syntax_that_is_named_is_read_in_a_test_here_or_beside():
    lossy = {f"{JPEG}50", f"{JPEG}51", f"{JPEG}81"}
    assert set(TRANSFER_SYNTAXES) == {*UNCOMPRESSED, *LOSSLESS, RLE, *lossy}


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=SOP_CLASSES.get)
def test_every_class_that_can_hold_a_radiograph_is_read_without_force(sop_class):
    pixels = grey(12)
    image = read_dicom_bytes(encode(pixels, 12, SOPClassUID=sop_class, Modality="DX", NumberOfFrames=1))
    assert (image.sop_class_uid, image.notes) == (sop_class, ())
    assert np.array_equal(image.pixels, pixels)
