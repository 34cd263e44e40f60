"""Small valid radiographs in every transfer syntax, the material of the mutations."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["PATIENT", "SHAPE", "VALID", "encode_dataset", "valid_bytes", "valid_dataset"]

_PURPOSE: Final = "making DICOM files"
#: Name and id of the patient in every file: no message may contain either.
PATIENT: Final = ("Secret^Name", "secret-id-77")
#: Rows and columns.
SHAPE: Final = (48, 64)
#: Kinds whose grey values go through a table; those of the others are rescaled.
_WITH_TABLE: Final = frozenset({"implicit", "jpeg-ls", "rle"})
_Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ValidFile:
    """One kind of valid file.

    Attributes
    ----------
    syntax : str
        Transfer syntax UID.
    bits : int
        Stored per pixel; more than 8 take 16.
    compress : callable or None
        f(pixels, bits) -> one frame.
    """

    syntax: str
    bits: int
    compress: Callable[[_Pixels, int], bytes] | None = None


def _jpeg(pixels: _Pixels, bits: int) -> bytes:
    return bytes(_codecs().jpeg_encode(pixels, level=90, bitspersample=bits))


def _jpeg_lossless(pixels: _Pixels, bits: int) -> bytes:
    return bytes(_codecs().jpeg_encode(pixels, lossless=True, bitspersample=bits, predictor=1))


def _jpeg_ls(pixels: _Pixels, bits: int) -> bytes:
    return bytes(_codecs().jpegls_encode(pixels))


def _jpeg_2000(pixels: _Pixels, bits: int) -> bytes:
    return bytes(_codecs().jpeg2k_encode(pixels, codecformat="j2k", level=0, bitspersample=bits))


def _htj2k(pixels: _Pixels, bits: int) -> bytes:
    return bytes(_codecs().htj2k_encode(pixels))


def _rle(pixels: _Pixels, bits: int) -> bytes:
    encoders = require("pydicom.pixels.encoders.native", purpose=_PURPOSE)
    planes = [pixels] if pixels.dtype.itemsize == 1 else [(pixels >> 8).astype("u1"), (pixels & 255).astype("u1")]
    segments = [bytes(encoders._encode_segment(plane.tobytes(), columns=plane.shape[1])) for plane in planes]
    offsets = np.zeros(16, "<u4")
    offsets[0] = len(segments)
    offsets[1 : 1 + len(segments)] = 64 + np.cumsum([0, *(len(segment) for segment in segments[:-1])])
    return offsets.tobytes() + b"".join(segments)


#: Name -> kind, in the order in which the corpus goes through them.
VALID: Final[Mapping[str, ValidFile]] = MappingProxyType(
    {
        "explicit": ValidFile("1.2.840.10008.1.2.1", 12),
        "implicit": ValidFile("1.2.840.10008.1.2", 16),
        "big-endian": ValidFile("1.2.840.10008.1.2.2", 12),
        "deflated": ValidFile("1.2.840.10008.1.2.1.99", 12),
        "jpeg-baseline": ValidFile("1.2.840.10008.1.2.4.50", 8, _jpeg),
        "jpeg-extended": ValidFile("1.2.840.10008.1.2.4.51", 12, _jpeg),
        "jpeg-lossless": ValidFile("1.2.840.10008.1.2.4.57", 16, _jpeg_lossless),
        "jpeg-lossless-sv1": ValidFile("1.2.840.10008.1.2.4.70", 12, _jpeg_lossless),
        "jpeg-ls": ValidFile("1.2.840.10008.1.2.4.80", 12, _jpeg_ls),
        "jpeg-2000": ValidFile("1.2.840.10008.1.2.4.90", 12, _jpeg_2000),
        "htj2k": ValidFile("1.2.840.10008.1.2.4.201", 16, _htj2k),
        "rle": ValidFile("1.2.840.10008.1.2.5", 12, _rle),
    }
)


@functools.cache
def valid_bytes(name: str) -> bytes:
    """Make the valid file of a row of `VALID`."""
    return encode_dataset(valid_dataset(name), VALID[name].syntax)


def valid_dataset(name: str) -> Dataset:
    """Make the data set of a row of `VALID`: a Computed Radiography image with all that the reader looks at."""
    kind = VALID[name]
    pixels = _pixels(kind.bits)
    pydicom = require("pydicom", purpose=_PURPOSE)
    dataset: Dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4.5"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    dataset.PatientName, dataset.PatientID = PATIENT
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20240102", "101112", "A1"
    dataset.Modality, dataset.BodyPartExamined, dataset.InstanceNumber = "CR", "CHEST", 1
    dataset.PatientOrientation, dataset.PixelSpacing = ["L", "F"], [0.2, 0.3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = SHAPE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        8 * pixels.dtype.itemsize,
        kind.bits,
        kind.bits - 1,
    )
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2**kind.bits // 2, 2**kind.bits, "LINEAR"
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    if name in _WITH_TABLE:
        dataset.ModalityLUTSequence = [_table_item(2**kind.bits)]
    encaps = require("pydicom.encaps", purpose=_PURPOSE)
    little = kind.syntax != "1.2.840.10008.1.2.2"
    plain = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    dataset.PixelData = plain if kind.compress is None else encaps.encapsulate([kind.compress(pixels, kind.bits)])
    dataset["PixelData"].VR = "OW" if kind.compress is None and pixels.dtype.itemsize == 2 else "OB"
    return dataset


def encode_dataset(dataset: Dataset, syntax: str) -> bytes:
    """Write a data set as a file."""
    pydicom = require("pydicom", purpose=_PURPOSE)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    buffer = io.BytesIO()
    implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return buffer.getvalue()


def _pixels(bits: int) -> _Pixels:
    """A bright disc on a gradient with a little noise."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc = np.hypot(rows - 24, columns - 30) < 15
    noise = np.random.default_rng(0).random(SHAPE) * 0.02
    scaled = np.clip(0.2 * columns / SHAPE[1] + 0.6 * disc + noise, 0.0, 1.0) * (2**bits - 1)
    return np.asarray(scaled.round().astype(np.uint8 if bits <= 8 else np.uint16))


def _table_item(count: int) -> Dataset:
    pydicom = require("pydicom", purpose=_PURPOSE)
    item: Dataset = pydicom.Dataset()
    item.add(pydicom.DataElement(0x00283002, "US", [count % 65536, 0, 16]))
    item.ModalityLUTType = "US"
    item.add(pydicom.DataElement(0x00283006, "OW", np.arange(count, dtype="<u2").tobytes()))
    return item


def _codecs() -> Any:
    return require("imagecodecs", purpose=_PURPOSE)
