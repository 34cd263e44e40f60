"""A DICOM radiograph from a file: checked before it is decoded, as a picture after."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.dicom.decode import DEFLATED, TRANSFER_SYNTAXES, decode_pixels
from unetx_opt.dicom.grayscale import luminance, render_grayscale
from unetx_opt.dicom.header import check_header, read_aspect, read_spacing, read_uid
from unetx_opt.dicom.preflight import MAX_FILE_BYTES, check_deflated, check_items, count_elements
from unetx_opt.dicom.source_header import extract_header
from unetx_opt.dicom.suitability import read_code, unsuitable
from unetx_opt.errors import ImageError, UnetxError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DicomImage", "ReadOptions", "is_dicom", "read_bytes", "read_dicom", "read_dicom_bytes"]

_PREFIX_END: Final = 132
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read.

    Attributes
    ----------
    force : bool
        Take what is no single grey chest radiograph, too: the first frame, colour as luminance, any body part, raw
        detector data. Limits and damage are refused as ever.
    with_source : bool
        Also give the part of the header that DICOM results repeat, which identifies the patient.
    """

    force: bool = False
    with_source: bool = False


@dataclass(frozen=True, slots=True)
class DicomImage:
    """A radiograph and what later stages need of its header; nothing that identifies a patient unless asked for.

    Attributes
    ----------
    pixels : numpy.ndarray
        (H, W) float32, larger is brighter (see `unetx_opt.dicom.grayscale`).
    spacing_mm : tuple of float or None
        Distance between rows and between columns: Pixel Spacing, otherwise Imager Pixel Spacing (at the detector,
        so that the patient is a little smaller), otherwise Nominal Scanned Pixel Spacing. None where all are absent
        or invalid.
    pixel_aspect : float or None
        Height of a pixel over its width, from the spacing or from Pixel Aspect Ratio.
    sop_class_uid, sop_instance_uid : str
        Checked to be UIDs.
    transfer_syntax_uid : str
        As the file was encoded.
    modality, body_part : str
        Upper case, empty where absent.
    photometric : str
        MONOCHROME1 or MONOCHROME2, as stored; of a forced colour image its colour space.
    notes : tuple of str
        Why it would have been refused without force.
    source_json : str or None
        See `unetx_opt.dicom.source_header.extract_header`; kept out of the representation.
    """

    pixels: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None
    pixel_aspect: float | None
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    body_part: str
    photometric: str
    notes: tuple[str, ...] = ()
    source_json: str | None = field(default=None, repr=False)

    @property
    def relative_spacing(self) -> tuple[float, float] | None:
        """What `unetx_opt.imaging.preprocess.prepare_image` takes as spacing, which only uses the ratio."""
        if self.spacing_mm is not None or self.pixel_aspect is None:
            return self.spacing_mm
        return self.pixel_aspect, 1.0


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix (PS3.10 section 7.1).

    Parameters
    ----------
    path : pathlib.Path
        Any file; one that cannot be read is not DICOM.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(_PREFIX_END)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path, options: ReadOptions | None = None) -> DicomImage:
    """Read a grey single-frame radiograph of a chest.

    Parameters
    ----------
    path : pathlib.Path
        Computed Radiography, Digital X-Ray for presentation, or Secondary Capture; any transfer syntax of
        `unetx_opt.dicom.decode.TRANSFER_SYNTAXES`.
    options : ReadOptions, optional
        What else is taken, and what else is given.

    Returns
    -------
    DicomImage
        The picture as a viewer would show it first.

    Raises
    ------
    ImageError
        The file is missing, too large, no DICOM, damaged, or no such image. Sizes are checked before pixels are
        decoded. The message has no value of the header beyond sizes and kinds.
    MissingPackageError
        pydicom or a codec is not installed.
    """
    data = read_bytes(path)
    try:
        return read_dicom_bytes(data, options)
    except ImageError as error:
        raise ImageError(f"{path} cannot be used: {error}") from error


def read_dicom_bytes(data: bytes, options: ReadOptions | None = None) -> DicomImage:
    """Read a grey single-frame radiograph from the bytes of a file, see `read_dicom`.

    Raises
    ------
    ImageError
        They are no such file; the message names no file.
    MissingPackageError
        pydicom or a codec is not installed.
    """
    if data[128:_PREFIX_END] != b"DICM":
        raise ImageError("it is no DICOM file: it has no prefix DICM at byte 128")
    require("pydicom", purpose="reading a DICOM file")
    try:
        with _silence_pydicom():
            return _read_image(data, options or ReadOptions())
    except UnetxError:
        raise
    except Exception as error:
        # pydicom and the codecs raise nearly everything on damaged input, RecursionError and MemoryError included.
        # Their messages may quote the header.
        raise ImageError(f"damaged or unsupported DICOM ({type(error).__name__} while reading it)") from error


@contextlib.contextmanager
def _silence_pydicom() -> Iterator[None]:
    """Keep malformed values, which may name the patient, out of warnings and logs: pydicom quotes them in both."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("pydicom")
    logger.addFilter(refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(refuse)


def read_bytes(path: Path) -> bytes:
    """Read a whole file of at most 256 MiB.

    Raises
    ------
    ImageError
        It is no file, too large, or cannot be read.
    """
    try:
        if not path.is_file():
            raise ImageError(f"{path} is no file: pass a DICOM file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{path} has {size} bytes, expected at most {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error
    return data


def _read_image(data: bytes, options: ReadOptions) -> DicomImage:
    filereader = require("pydicom.filereader", purpose="reading a DICOM file")
    syntax_uid = _read_transfer_syntax(data)
    # From memory: a length that lies cannot make it reserve more than the file has.
    dataset: Dataset = filereader.read_partial(io.BytesIO(data), stop_when=count_elements())
    spacing_mm = read_spacing(dataset)
    return DicomImage(
        pixels=_read_picture(dataset, syntax_uid, options),
        spacing_mm=spacing_mm,
        pixel_aspect=spacing_mm[0] / spacing_mm[1] if spacing_mm else read_aspect(dataset),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=read_uid(dataset, "SOPInstanceUID"),
        transfer_syntax_uid=syntax_uid,
        modality=read_code(dataset, "Modality"),
        body_part=read_code(dataset, "BodyPartExamined"),
        photometric=str(dataset.PhotometricInterpretation),
        notes=tuple(unsuitable(dataset)),
        source_json=extract_header(dataset, little_endian=syntax_uid != _BIG_ENDIAN) if options.with_source else None,
    )


def _read_picture(dataset: Dataset, syntax_uid: str, options: ReadOptions) -> NDArray[np.float32]:
    layout = check_header(dataset, force=options.force)
    stored = decode_pixels(dataset, syntax_uid, layout)
    if stored.shape[:2] != (layout.rows, layout.columns) or stored.ndim != (2 if layout.samples == 1 else 3):
        raise ImageError(f"its pixels decode to shape {stored.shape}, expected {(layout.rows, layout.columns)}")
    if layout.samples != 1:
        return luminance(stored)
    return render_grayscale(stored, layout.stored_range, dataset, little_endian=syntax_uid != _BIG_ENDIAN)


def _read_transfer_syntax(data: bytes) -> str:
    filereader = require("pydicom.filereader", purpose="reading a DICOM file")
    file = io.BytesIO(data)
    file.seek(_PREFIX_END)
    meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax_uid = str(meta.get("TransferSyntaxUID", ""))
    if syntax_uid not in TRANSFER_SYNTAXES:
        known = ", ".join(syntax.name for syntax in TRANSFER_SYNTAXES.values())
        raise ImageError(f"its transfer syntax is absent or not read, expected one of {known}")
    if syntax_uid == DEFLATED:
        check_deflated(data[file.tell() :])
    else:
        check_items(data)
    return syntax_uid
