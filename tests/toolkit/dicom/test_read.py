import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from unetx_opt.dicom.read import ReadOptions, is_dicom, read_dicom
from unetx_opt.errors import ImageError, UnetxError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402

CR = "1.2.840.10008.5.1.4.1.1.1"
DX_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
PATIENT = "Secret^Name"
FORCE = ReadOptions(force=True)


def ramp(bits=12, signed=False, shape=(32, 40)):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    return np.linspace(low, high, shape[0] * shape[1]).round().astype(kind).reshape(shape)


def header(pixels, bits, photometric="MONOCHROME2", **attributes):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CR, "1.2.3.4"
    dataset.PatientName, dataset.PatientID = PATIENT, "secret-id"
    dataset.Modality, dataset.BodyPartExamined = "CR", "CHEST"
    dataset.PhotometricInterpretation = photometric
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def write(path, pixels, bits=12, syntax=EXPLICIT, frame=None, **attributes):
    """Write a file; `frame` is its compressed pixel data."""
    dataset = header(pixels, bits, **attributes)
    order = ">" if syntax == BIG_ENDIAN else "<"
    dataset.PixelData = encapsulate([frame]) if frame else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW" if frame is None and dataset.BitsAllocated == 16 else "OB"
    return save(path, dataset, syntax)


def save(path, dataset, syntax=EXPLICIT):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CR, "1.2.3.4"
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    implicit, little = syntax == "1.2.840.10008.1.2", syntax != BIG_ENDIAN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.dcm"


def test_plain_values_and_the_header_are_read(path):
    image = read_dicom(write(path, ramp(), PixelSpacing=[0.2, 0.1]))
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels, ramp())
    assert (image.spacing_mm, image.pixel_aspect, image.relative_spacing) == ((0.2, 0.1), 2.0, (0.2, 0.1))
    assert (image.sop_class_uid, image.sop_instance_uid) == (CR, "1.2.3.4")
    assert (image.modality, image.body_part, image.photometric) == ("CR", "CHEST", "MONOCHROME2")
    assert image.transfer_syntax_uid == EXPLICIT
    assert PATIENT not in repr(image)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "attributes",
    [{}, {"RescaleSlope": -2.5, "RescaleIntercept": 7}, {"WindowCenter": 30, "WindowWidth": 51}],
    ids=["plain", "rescaled", "windowed"],
)
def test_monochrome1_with_inverted_pixels_is_the_same_picture(tmp_path, bits, signed, attributes):
    pixels = ramp(bits, signed)
    low, high = int(pixels.min()), int(pixels.max())
    mirrored = dict(attributes)
    if "WindowCenter" in attributes:
        # The linear function is centred half a grey level below its center.
        mirrored["WindowCenter"] = low + high - attributes["WindowCenter"] + 1
    expected = read_dicom(write(tmp_path / "2.dcm", pixels, bits, **attributes))
    inverted = (low + high - pixels.astype(np.int64)).astype(pixels.dtype)
    actual = read_dicom(write(tmp_path / "1.dcm", inverted, bits, photometric="MONOCHROME1", **mirrored))
    np.testing.assert_allclose(actual.pixels, expected.pixels, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_windows_agree_with_pydicom(path, function, signed):
    attributes = {"WindowCenter": [40.5, 1], "WindowWidth": [300, 2], "RescaleSlope": 0.5, "RescaleIntercept": -100}
    if function:
        attributes["VOILUTFunction"] = function
    pixels = ramp(12, signed)
    image = read_dicom(write(path, pixels, **attributes))
    dataset = pydicom.dcmread(path)
    reference = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    # pydicom's output spans the rescaled range, half of the stored one.
    shown = image.pixels * np.float32(0.5)
    np.testing.assert_allclose(shown - shown.min(), reference - reference.min(), atol=0.01)


@pytest.mark.parametrize("width", [0, -5], ids=str)
def test_a_window_that_is_not_positive_is_left_out(path, width):
    image = read_dicom(write(path, ramp(), WindowCenter=100, WindowWidth=width))
    assert np.array_equal(image.pixels, ramp())


def test_a_window_that_hides_the_whole_image_is_left_out(path):
    image = read_dicom(write(path, ramp(), WindowCenter=60000, WindowWidth=10))
    assert np.array_equal(image.pixels, ramp())


def lut_item(entries, first, bits, *, packed=False):
    item = Dataset()
    if not packed:
        item.LUTDescriptor = [len(entries) % 65536, first, bits]
        item.LUTData = [int(entry) for entry in entries]
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
        return item
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = np.asarray(entries).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("packed", [False, True], ids=["US", "OW"])
def test_lookup_tables_agree_with_pydicom(path, keyword, packed):
    entries = (np.linspace(0, 1, 3000) ** 2 * 65535).astype("<u2")
    attributes = {keyword: [lut_item(entries, 500, 16, packed=packed)]}
    image = read_dicom(write(path, ramp(), **attributes))
    dataset = pydicom.dcmread(path)
    expected = (apply_voi_lut if keyword == "VOILUTSequence" else apply_modality_lut)(ramp(), dataset)
    assert np.array_equal(image.pixels, expected)


def test_a_table_of_65536_entries_is_written_as_zero_and_read_whole(path):
    entries = np.arange(65536, dtype="<u2")[::-1]
    image = read_dicom(write(path, ramp(16), 16, ModalityLUTSequence=[lut_item(entries, 0, 16, packed=True)]))
    assert np.array_equal(image.pixels, 65535 - ramp(16).astype(np.float32))


def test_a_voi_table_wins_over_a_window_and_monochrome1_inverts_after_it(path):
    entries = np.linspace(0, 255, 4096).astype(int)
    image = read_dicom(
        write(
            path,
            ramp(),
            photometric="MONOCHROME1",
            VOILUTSequence=[lut_item(entries, 0, 8)],
            WindowCenter=1,
            WindowWidth=1,
        )
    )
    assert np.array_equal(image.pixels, 255 - entries[ramp()])


def test_unused_high_bits_are_ignored(path):
    pixels = ramp(12)
    image = read_dicom(write(path, pixels | 0x7000, 12))
    assert np.array_equal(image.pixels, pixels)


def jpeg2000(pixels, **options):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, **options)


def jpeg_lossless(pixels, bits):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    return imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=bits, predictor=1)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (16, False), (12, True)], ids=str)
def test_uncompressed_transfer_syntaxes_are_read(path, syntax, bits, signed):
    pixels = ramp(bits, signed)
    assert np.array_equal(read_dicom(write(path, pixels, bits, syntax)).pixels, pixels)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg_lossless_is_read_exactly(path, syntax, bits):
    pixels = ramp(bits)
    image = read_dicom(write(path, pixels, bits, syntax, frame=jpeg_lossless(pixels, bits)))
    assert np.array_equal(image.pixels, pixels)


def test_signed_jpeg_lossless_gets_its_sign_from_the_stored_bits(path):
    pixels = ramp(12, signed=True)
    frame = jpeg_lossless(pixels.view("u2") & 0xFFF, 12)
    image = read_dicom(write(path, pixels, 12, "1.2.840.10008.1.2.4.70", frame=frame))
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_2000_is_read_exactly(path, bits):
    pixels = ramp(bits)
    image = read_dicom(
        write(path, pixels, bits, "1.2.840.10008.1.2.4.90", frame=jpeg2000(pixels, bitspersample=bits))
    )
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("bits", [8, 12])
def test_lossy_jpeg_is_read_closely(path, bits):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    pixels = ramp(bits)
    frame = imagecodecs.jpeg_encode(pixels, level=95, bitspersample=bits)
    syntax = "1.2.840.10008.1.2.4.50" if bits == 8 else "1.2.840.10008.1.2.4.51"
    image = read_dicom(write(path, pixels, bits, syntax, frame=frame))
    assert np.abs(image.pixels - pixels).max() < 2**bits / 20


@pytest.mark.parametrize("syntax", [RLE, "1.2.840.10008.1.2.4.80"], ids=["RLE", "JPEG-LS"])
@pytest.mark.parametrize("bits", [8, 12])
def test_what_pydicom_compresses_is_read_exactly(path, syntax, bits):
    pixels = ramp(bits)
    dataset = pydicom.dcmread(write(path, pixels, bits))
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    assert np.array_equal(read_dicom(path).pixels, pixels)


@pytest.mark.parametrize(
    ("attributes", "spacing_mm", "aspect"),
    [
        ({}, None, None),
        ({"PixelSpacing": [0, 0]}, None, None),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), 0.5),
        ({"PixelSpacing": [0.3, 0.3], "ImagerPixelSpacing": [0.1, 0.2]}, (0.3, 0.3), 1.0),
        ({"PixelSpacing": [-0.1, 0.1]}, None, None),
        ({"PixelSpacing": [1000, 0.1]}, None, None),
        ({"PixelSpacing": None}, None, None),
        ({"NominalScannedPixelSpacing": [0.2, 0.2]}, (0.2, 0.2), 1.0),
        ({"PixelAspectRatio": [2, 1]}, None, 2.0),
        ({"PixelAspectRatio": [0, 0]}, None, None),
    ],
    ids=str,
)
def test_the_spacing_comes_from_the_first_valid_element(path, attributes, spacing_mm, aspect):
    image = read_dicom(write(path, ramp(), **attributes))
    assert (image.spacing_mm, image.pixel_aspect) == (spacing_mm, aspect)
    assert image.relative_spacing == (spacing_mm if spacing_mm or not aspect else (aspect, 1.0))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"NumberOfFrames": 96}, "96 frames"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "Photometric"),
        ({"SOPClassUID": MR}, "SOP Class is no radiograph"),
        ({"SOPClassUID": DX_PROCESSING}, "SOP Class"),
        ({"SOPClassUID": ""}, "SOPClassUID"),
        ({"SOPInstanceUID": "../../etc/passwd"}, "SOPInstanceUID"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector data"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535"),
        ({"Rows": 0}, "0 x 40"),
        ({"Rows": None}, "Rows is absent"),
        ({"Rows": 320}, "damaged"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 of 32 bits"),
        ({"BitsStored": 17}, "17 of 16"),
        ({"HighBit": 15}, "High Bit is 15, expected 11"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "Rescale Slope"),
        ({"VOILUTFunction": "CUBIC", "WindowCenter": 1, "WindowWidth": 10}, "VOI LUT Function"),
        ({"VOILUTSequence": [lut_item([1, 2, 3], 0, 40)]}, "malformed LUT Descriptor"),
        ({"ModalityLUTSequence": [Dataset()]}, "malformed LUT Descriptor"),
    ],
    ids=str,
)
def test_what_is_no_grey_single_radiograph_is_refused_with_the_reason(path, attributes, message):
    write(path, ramp(), **attributes)
    with pytest.raises(ImageError, match=message) as error:
        read_dicom(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_missing_pixel_element_or_transfer_syntax_is_named(path):
    save(path, header(ramp(), 12))
    with pytest.raises(ImageError, match="no Pixel Data"):
        read_dicom(path)
    write(path, ramp(), syntax="1.2.840.10008.1.2.4.102", frame=b"mpeg")
    with pytest.raises(ImageError, match="transfer syntax"):
        read_dicom(path)


def test_a_file_that_deflates_a_bomb_is_refused_without_inflating_it_whole(path, monkeypatch):
    monkeypatch.setattr("unetx_opt.dicom.preflight.MAX_FILE_BYTES", 1 << 24)
    write(path, ramp(), syntax=DEFLATED)
    data = path.read_bytes()
    meta_end = 132 + 12 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    body = b"".join(packer.compress(zeros) for _ in range(20)) + packer.flush()
    path.write_bytes(data[:meta_end] + body)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ImageError, match="inflates to more than"):
        read_dicom(path)


def test_a_compressed_frame_that_claims_another_size_is_refused_before_it_is_decoded(path):
    frame = bytearray(jpeg2000(ramp(8)))
    frame[8:16] = struct.pack(">II", 65535, 65535)
    write(path, ramp(8), 8, "1.2.840.10008.1.2.4.90", frame=bytes(frame))
    with pytest.raises(ImageError, match="compressed frame is 65535 x 65535"):
        read_dicom(path)
    frame = bytearray(jpeg_lossless(ramp(8), 8))
    at = frame.index(b"\xff\xc3")
    frame[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    write(path, ramp(8), 8, "1.2.840.10008.1.2.4.70", frame=bytes(frame))
    with pytest.raises(ImageError, match="compressed frame is 65500 x 65500"):
        read_dicom(path)
    write(path, ramp(8), 8, "1.2.840.10008.1.2.4.50", frame=b"\xff\xd8\xff\xd9")
    with pytest.raises(ImageError, match="no frame header"):
        read_dicom(path)


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("codec", ["JPEG Lossless", "JPEG Extended", "JPEG Baseline", "JPEG 2000", "JPEG-LS"])
def test_a_truncated_compressed_frame_is_refused(path, codec, share):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    bits = 8 if codec == "JPEG Baseline" else 12
    pixels = np.random.default_rng(0).integers(0, 2**bits - 1, (64, 64), dtype=np.uint8 if bits == 8 else np.uint16)
    syntax, frame = {
        "JPEG Lossless": ("1.2.840.10008.1.2.4.70", lambda: jpeg_lossless(pixels, 12)),
        "JPEG Extended": ("1.2.840.10008.1.2.4.51", lambda: imagecodecs.jpeg_encode(pixels, bitspersample=12)),
        "JPEG Baseline": ("1.2.840.10008.1.2.4.50", lambda: imagecodecs.jpeg_encode(pixels)),
        "JPEG 2000": ("1.2.840.10008.1.2.4.90", lambda: jpeg2000(pixels, bitspersample=12)),
        "JPEG-LS": ("1.2.840.10008.1.2.4.80", lambda: imagecodecs.jpegls_encode(pixels)),
    }[codec]
    whole = frame()
    write(path, pixels, bits, syntax, frame=whole)
    assert read_dicom(path).pixels.shape == (64, 64)
    write(path, pixels, bits, syntax, frame=whole[: int(len(whole) * share)])
    with pytest.raises(ImageError):
        read_dicom(path)


def test_pixel_data_that_claims_four_gigabytes_is_refused(path):
    data = write(path, ramp()).read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00OW") + 8
    path.write_bytes(data[:at] + struct.pack("<I", 0xFFFFFFFE) + data[at + 4 : at + 104])
    with pytest.raises(ImageError, match="damaged"):
        read_dicom(path)


def test_twenty_thousand_nested_sequences_are_refused(path):
    data = write(path, ramp()).read_bytes()
    opening = b"\x08\x00\x11\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    meta_end = 132 + 12 + struct.unpack("<I", data[140:144])[0]
    path.write_bytes(data[:meta_end] + opening * 20_000)
    with pytest.raises(ImageError):
        read_dicom(path)


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(128) + b"DICM", bytes(200), b"\x89PNG\r\n\x1a\n"], ids=str)
def test_what_is_not_dicom_is_an_image_error(path, data):
    path.write_bytes(data)
    assert is_dicom(path) == (data[128:132] == b"DICM")
    with pytest.raises(ImageError):
        read_dicom(path)


@pytest.mark.parametrize("name", ["/nowhere/image.dcm", "/dev/zero", "/"])
def test_what_is_no_file_is_an_image_error(name):
    assert not is_dicom(Path(name))
    with pytest.raises(ImageError, match="no file"):
        read_dicom(Path(name))


@pytest.mark.parametrize("syntax", [EXPLICIT, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", RLE])
def test_damage_anywhere_gives_one_clear_line_without_patient_data(path, syntax, caplog):
    rng = np.random.default_rng(0)
    pixels = ramp(12)
    frames = {
        "1.2.840.10008.1.2.4.70": lambda: jpeg_lossless(pixels, 12),
        "1.2.840.10008.1.2.4.90": lambda: jpeg2000(pixels, bitspersample=12),
    }
    if syntax == RLE:
        dataset = pydicom.dcmread(write(path, pixels, PixelSpacing=[0.1, 0.1], WindowCenter=5, WindowWidth=9))
        dataset.compress(RLE)
        dataset.save_as(path)
    else:
        write(path, pixels, 12, syntax, frame=frames[syntax]() if syntax in frames else None, WindowCenter=5)
    whole = path.read_bytes()
    for number in range(120):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for position in rng.integers(128, len(whole), size=number % 3 * 2).tolist():
                damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                assert read_dicom(path).pixels.ndim == 2
            except UnetxError as error:
                assert "\n" not in str(error)
                assert "secret" not in str(error).lower()
        assert not caught
    assert "secret" not in caplog.text.lower()


def test_values_of_the_header_reach_neither_logs_nor_warnings_nor_the_image(path, caplog, recwarn, monkeypatch):
    with monkeypatch.context() as writing:
        # The test's own pydicom names the value that it is made to write.
        writing.setattr(logging.getLogger("pydicom"), "disabled", True)
        write(path, ramp(), BodyPartExamined=PATIENT, Modality="cr")
    caplog.clear()
    recwarn.clear()
    image = read_dicom(path)
    assert (image.modality, image.body_part) == ("CR", "")
    assert not caplog.records
    assert not recwarn.list


EXPECTED_SAMPLES = {
    "CR-ModalitySequenceLUT.dcm": ((1576, 1976), (0.15, 0.15), "CR", ""),
    "nih_dx_implicit_mono2_8bit.dcm": ((1024, 1024), None, "DX", ""),
    "rsna_cr_pa_jpegbaseline_fake_mono1.dcm": ((1024, 1024), (0.168, 0.168), "CR", "CHEST"),
    "rsna_cr_pa_jpegbaseline_mono2_8bit.dcm": ((1024, 1024), (0.168, 0.168), "CR", "CHEST"),
    "vlut_04_voilut.dcm": ((512, 512), None, "OT", ""),
}
REFUSED_SAMPLES = {
    "HasFragmentSequence_xa_96frames.dcm": "96 frames",
    "pydicom_MR_truncated.dcm": "SOP Class is no radiograph",
    "pydicom_badVR.dcm": "NumberOfFrames",
    "pydicom_no_meta.dcm": "no DICOM file",
    "wg04_RG3_J2KR_extremity_mono1_10bit.dcm": "Body Part Examined is EXTREMITY, expected a chest",
}


@pytest.mark.parametrize("name", EXPECTED_SAMPLES)
def test_real_radiographs_are_read(dicom_samples, name):
    image = read_dicom(dicom_samples / name)
    found = (image.pixels.shape, image.spacing_mm, image.modality, image.body_part)
    assert found == EXPECTED_SAMPLES[name]
    assert np.isfinite(image.pixels).all()
    assert image.pixels.std() > 1


@pytest.mark.parametrize("name", REFUSED_SAMPLES)
def test_real_files_that_are_no_radiograph_are_refused(dicom_samples, name):
    with pytest.raises(ImageError, match=REFUSED_SAMPLES[name]):
        read_dicom(dicom_samples / name)


@pytest.mark.parametrize("name", ["nih_dx_implicit_mono2_8bit.dcm", "vlut_04_voilut.dcm"])
def test_real_pictures_agree_with_pydicom(dicom_samples, name):
    dataset = pydicom.dcmread(dicom_samples / name)
    reference = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    assert np.array_equal(read_dicom(dicom_samples / name).pixels, reference)


def test_the_same_pixels_as_monochrome1_give_the_inverted_picture(dicom_samples):
    plain = read_dicom(dicom_samples / "rsna_cr_pa_jpegbaseline_mono2_8bit.dcm")
    inverted = read_dicom(dicom_samples / "rsna_cr_pa_jpegbaseline_fake_mono1.dcm")
    assert np.array_equal(inverted.pixels, 255 - plain.pixels)


def test_bone_is_brighter_than_air_in_a_real_monochrome1_film(dicom_samples):
    image = read_dicom(dicom_samples / "wg04_RG3_J2KR_extremity_mono1_10bit.dcm", FORCE)
    assert (image.pixels.shape, image.spacing_mm, image.body_part) == ((1760, 1760), None, "EXTREMITY")
    # The leg's shaft against the air beside it.
    assert image.pixels[600, 780:860].mean() > image.pixels[600, 480:560].mean() + 100
