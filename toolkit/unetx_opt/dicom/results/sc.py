"""Secondary Capture: a picture of the mask over the image, for a PACS that shows nothing else (PS3.3 A.8.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unetx_opt.dicom.results.codes import Code
from unetx_opt.dicom.results.references import identification, reference_source
from unetx_opt.dicom.results.request import ResultRequest
from unetx_opt.dicom.results.seg import coded
from unetx_opt.errors import SpecError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["build_sc"]

_SERIES_NUMBER = 9002


def build_sc(request: ResultRequest) -> Dataset:
    """Write the overlay as an 8-bit RGB image.

    Raises
    ------
    SpecError
        The findings have no overlay.
    """
    highdicom: Any = require("highdicom", purpose="writing a Secondary Capture")
    source, overlay = request.source, request.findings.overlay_rgb
    if overlay is None or overlay.shape != (*request.findings.labels.shape, 3):
        raise SpecError("a Secondary Capture needs the overlay of its mask as (height, width, 3) uint8")
    result = highdicom.sc.SCImage(
        pixel_array=overlay,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=source.StudyInstanceUID,
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate,
        patient_sex=source.PatientSex,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate,
        study_time=source.StudyTime,
        referring_physician_name=source.ReferringPhysicianName,
        pixel_spacing=request.findings.spacing_mm,
        # highdicom demands one; what the source says takes its place below.
        patient_orientation=("L", "F"),
        specific_character_set="ISO_IR 192",
        series_description="Segmentation overlay",
        **identification(request, "sc", _SERIES_NUMBER),
    )
    result.copy_patient_and_study_information(source)
    result.PatientOrientation = source.PatientOrientation
    result.Laterality = source.Laterality
    result.ConversionType = "WSD"
    result.BurnedInAnnotation = "NO"
    result.DerivationDescription = "Overlay of an automatic segmentation, not for diagnosis"
    reference = reference_source(request)
    reference.PurposeOfReferenceCodeSequence = [
        coded(Code("121322", "DCM", "Source image for image processing operation"))
    ]
    result.SourceImageSequence = [reference]
    finished: Dataset = result
    return finished
