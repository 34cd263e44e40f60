"""Structured Report after TID 1500: the area of every segment (PS3.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unetx_opt.dicom.results.codes import Code, code_of_label
from unetx_opt.dicom.results.references import derive_uid, identification
from unetx_opt.dicom.results.request import ResultRequest
from unetx_opt.dicom.results.seg import coded
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["build_sr"]

_SERIES_NUMBER = 9004
_AREA = Code("42798000", "SCT", "Area")
_SQUARE_MM = Code("mm2", "UCUM", "square millimeter")
_PIXELS = Code("{pixels}", "UCUM", "pixels")
_PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
_REPORT = Code("126000", "DCM", "Imaging Measurement Report")


def build_sr(request: ResultRequest, segmentation: Dataset | None = None) -> Dataset:
    """Report areas in mm2, or in pixels where the spacing is unknown.

    Parameters
    ----------
    request : ResultRequest
        What was found.
    segmentation : pydicom.dataset.Dataset, optional
        The SEG of the same findings; measurements then refer to its segments, and to the source image alone
        otherwise.
    """
    highdicom: Any = require("highdicom", purpose="writing a structured report")
    report = highdicom.sr.MeasurementReport(
        observation_context=_observer(request),
        procedure_reported=coded(_PROCEDURE),
        imaging_measurements=[
            _measure(request, number, segmentation) for number in sorted(request.findings.segments)
        ],
        # No image library: highdicom's demands a spacing and an orientation of every radiograph.
        title=coded(_REPORT),
    )
    numbers = identification(request, "sr", _SERIES_NUMBER)
    result: Dataset = highdicom.sr.ComprehensiveSR(
        evidence=[request.source] + ([] if segmentation is None else [segmentation]),
        content=report,
        is_complete=True,
        series_description="Segmentation measurements",
        **numbers,
    )
    _keep_one_reference(result)
    return result


def _observer(request: ResultRequest) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a structured report")
    algorithm = request.algorithm
    device = highdicom.sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid(request, "device", of_series=True),
        name=algorithm.name,
        manufacturer_name=algorithm.manufacturer,
        model_name=algorithm.name,
        serial_number=algorithm.bundle_sha256,
    )
    return highdicom.sr.ObservationContext(
        observer_device_context=highdicom.sr.ObserverContext(
            observer_type=coded(Code("121007", "DCM", "Device")), observer_identifying_attributes=device
        )
    )


def _measure(request: ResultRequest, number: int, segmentation: Dataset | None) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a structured report")
    name = request.findings.segments[number]
    source = request.source
    shared = {
        "tracking_identifier": highdicom.sr.TrackingIdentifier(
            identifier=f"{name[:50]} {number}", uid=derive_uid(request, "tracking", str(number))
        ),
        "finding_type": coded(code_of_label(name).kind),
        "algorithm_id": _algorithm(request),
        "measurements": [_area(request, number)],
    }
    if segmentation is None:
        image = highdicom.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)
        return highdicom.sr.MeasurementsAndQualitativeEvaluations(source_images=[image], **shared)
    return highdicom.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=highdicom.sr.ReferencedSegmentationFrame(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            frame_number=1,
            segment_number=number,
            source_image=highdicom.sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID),
        ),
        **shared,
    )


def _algorithm(request: ResultRequest) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a structured report")
    algorithm = request.algorithm
    return highdicom.sr.AlgorithmIdentification(
        name=algorithm.name, version=algorithm.version, parameters=[f"bundle={algorithm.bundle_sha256}"]
    )


def _area(request: ResultRequest, number: int) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a structured report")
    pixels = int(np.count_nonzero(request.findings.labels == number))
    spacing_mm = request.findings.spacing_mm
    if spacing_mm is None:
        return highdicom.sr.Measurement(name=coded(_AREA), value=pixels, unit=coded(_PIXELS))
    area_mm2 = pixels * spacing_mm[0] * spacing_mm[1]
    return highdicom.sr.Measurement(name=coded(_AREA), value=area_mm2, unit=coded(_SQUARE_MM))


def _keep_one_reference(dataset: Dataset) -> None:
    """Leave the segment number alone where highdicom gives the frame number, too: PS3.3 10.3 allows one of them."""
    for item in dataset.get("ContentSequence") or ():
        for reference in item.get("ReferencedSOPSequence") or ():
            if "ReferencedSegmentNumber" in reference and "ReferencedFrameNumber" in reference:
                del reference.ReferencedFrameNumber
        _keep_one_reference(item)
