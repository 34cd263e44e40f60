"""What results share: the source as highdicom takes it, who they refer to, their UIDs, and who made them."""

from __future__ import annotations

import contextlib
import logging
import uuid
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.dicom.header import read_spacing
from unetx_opt.dicom.results.request import ResultRequest
from unetx_opt.dicom.source_header import parse_header
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "derive_uid",
    "finish_result",
    "identification",
    "plain_source",
    "prepare_source",
    "reference_source",
    "silence_libraries",
]

#: Namespace of UIDs derived by this program (RFC 9562, version 5).
_NAMESPACE: Final = uuid.UUID("6f2b0f0e-5d5a-5c1e-9d4b-1d9c2a7e8b10")
#: Elements that results must have, empty where the source has none (type 2).
_REQUIRED: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("ReferringPhysicianName", "AccessionNumber", "Laterality", "PatientOrientation"),
)
_SINGLE_FRAME: Final = "1.2.840.10008.5.1.4.1.1.1"
_DROPPED: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def prepare_source(source_json: str) -> Dataset:
    """Make the header of a source fit to derive results from.

    Parameters
    ----------
    source_json : str
        Of `unetx_opt.dicom.source_header.extract_header`.

    Returns
    -------
    pydicom.dataset.Dataset
        With every element of type 2, with a Pixel Spacing that is valid or absent, text in UTF-8.

    Raises
    ------
    ImageError
        There is no study, series or image that results could refer to.
    """
    with silence_libraries():
        source = parse_header(source_json)
        spacing_mm = read_spacing(source)
        for keyword in _DROPPED:
            if keyword in source:
                delattr(source, keyword)
        for keyword in _REQUIRED:
            if keyword not in source:
                setattr(source, keyword, "")
        source.SpecificCharacterSet = "ISO_IR 192"
        if source.PatientSex not in ("M", "F", "O"):
            source.PatientSex = ""
        if "Modality" not in source:
            source.Modality = "OT"
        if "SamplesPerPixel" not in source:
            source.SamplesPerPixel = 1
        _settle_display(source)
        # A zero or absent spacing must not become a statement of the result.
        if spacing_mm is not None:
            source.PixelSpacing = [_decimal(side) for side in spacing_mm]
    return source


def _settle_display(source: Dataset) -> None:
    """Leave out windows that show nothing, and complete a rescaling, as reading the picture does."""
    windows = [_values(source, keyword) for keyword in ("WindowCenter", "WindowWidth")]
    if len(windows[0]) != len(windows[1]) or not windows[1] or min(windows[1]) < 1:
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in source:
                delattr(source, keyword)
    if "RescaleSlope" in source or "RescaleIntercept" in source:
        source.RescaleSlope = (_values(source, "RescaleSlope") or [1.0])[0]
        source.RescaleIntercept = (_values(source, "RescaleIntercept") or [0.0])[0]
        source.RescaleType = source.get("RescaleType") or "US"


def _values(source: Dataset, keyword: str) -> list[float]:
    value = source.get(keyword)
    if value is None:
        return []
    return [float(value)] if isinstance(value, str | int | float) else [float(item) for item in value]


def derive_uid(request: ResultRequest, *purpose: str, of_series: bool = False) -> str:
    """Derive a UID from the source, the bundle and a purpose (PS3.5 B.2: 2.25 and a UUID as a number).

    Parameters
    ----------
    request : ResultRequest
        With its salt, which is empty where UIDs are stable.
    *purpose : str
        What distinguishes it from other UIDs of the request.
    of_series : bool
        Depend on the source's series only, so that the results of its images share one.
    """
    source = request.source
    root = source.SeriesInstanceUID if of_series else source.SOPInstanceUID
    name = "/".join((str(root), request.algorithm.bundle_sha256, request.salt, *purpose))
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def identification(request: ResultRequest, kind: str, series_number: int) -> dict[str, Any]:
    """Give the arguments that every constructor of highdicom takes: UIDs, numbers, equipment."""
    algorithm = request.algorithm
    return {
        "series_instance_uid": derive_uid(request, kind, "series", of_series=True),
        "series_number": series_number,
        "sop_instance_uid": derive_uid(request, kind),
        "instance_number": max(1, int(request.source.get("InstanceNumber") or 1)),
        "manufacturer": algorithm.manufacturer,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        # The weights make the device: the hash is 64 characters, as many as a serial number may have.
        "device_serial_number": algorithm.bundle_sha256,
    }


def reference_source(request: ResultRequest) -> Dataset:
    """Make the item that refers to the source image."""
    pydicom = require("pydicom", purpose="writing DICOM results")
    item: Dataset = pydicom.Dataset()
    item.ReferencedSOPClassUID = request.source.SOPClassUID
    item.ReferencedSOPInstanceUID = request.source.SOPInstanceUID
    return item


def plain_source(source: Dataset) -> Dataset:
    """A copy whose SOP Class is one of single frames: highdicom looks for functional groups in the others.

    `finish_result` puts the class of the source into every reference again.
    """
    pydicom = require("pydicom", purpose="writing DICOM results")
    plain: Dataset = pydicom.Dataset()
    plain.update(source)
    # The elements are shared: one that is assigned to would change in the source, too.
    del plain.SOPClassUID
    plain.SOPClassUID = _SINGLE_FRAME
    return plain


def _name_source_class(item: Dataset, source: Dataset) -> None:
    if item.get("ReferencedSOPInstanceUID") == source.SOPInstanceUID:
        item.ReferencedSOPClassUID = source.SOPClassUID
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                _name_source_class(child, source)


def finish_result(result: Dataset, request: ResultRequest) -> Dataset:
    """Add what highdicom leaves out and set the time of creation in every place."""
    _name_source_class(result, request.source)
    created = request.options.created or datetime.now()
    day, time = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    for keyword in ("InstanceCreationDate", "ContentDate", "PresentationCreationDate", "DateOfSecondaryCapture"):
        if keyword in result:
            setattr(result, keyword, day)
    for keyword in ("InstanceCreationTime", "ContentTime", "PresentationCreationTime", "TimeOfSecondaryCapture"):
        if keyword in result:
            setattr(result, keyword, time)
    if request.algorithm.udi is not None:
        pydicom = require("pydicom", purpose="writing DICOM results")
        item: Dataset = pydicom.Dataset()
        item.UniqueDeviceIdentifier = request.algorithm.udi
        result.UDISequence = [item]
    return result


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Keep names and numbers of patients, which pydicom and highdicom quote, out of warnings and logs."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _decimal(value: float) -> str:
    """At most 16 characters, as a decimal string may have."""
    return next(text for digits in range(15, 0, -1) if len(text := f"{value:.{digits}g}") <= 16)
