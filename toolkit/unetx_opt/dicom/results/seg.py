"""DICOM Segmentation: the mask itself, one segment per label (PS3.3 A.51)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetx_opt.dicom.results.codes import Code, code_of_label
from unetx_opt.dicom.results.references import derive_uid, identification, plain_source
from unetx_opt.dicom.results.request import ResultRequest
from unetx_opt.errors import SpecError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["build_seg", "coded"]

_SERIES_NUMBER = 9001
_MAX_FRACTION = 255


def build_seg(request: ResultRequest) -> Dataset:
    """Write the labels as segments; frame k of a BINARY or FRACTIONAL object is segment k, empty ones included.

    Parameters
    ----------
    request : ResultRequest
        Fractional segmentations need its probabilities.

    Returns
    -------
    pydicom.dataset.Dataset
        Explicit VR little endian, with the rows and columns of the source.

    Raises
    ------
    SpecError
        Probabilities are asked for and absent.
    """
    highdicom: Any = require("highdicom", purpose="writing a DICOM SEG")
    kind = request.options.segmentation_kind
    numbers = sorted(request.findings.segments)
    result: Dataset = highdicom.seg.Segmentation(
        source_images=[plain_source(request.source)],
        pixel_array=_fractions(request) if kind == "FRACTIONAL" else request.findings.labels[np.newaxis],
        segmentation_type=kind,
        segment_descriptions=[_describe(request, number) for number in numbers],
        max_fractional_value=_MAX_FRACTION,
        omit_empty_frames=False,
        content_label="SEGMENTATION",
        content_description="Segmentation of a chest radiograph",
        series_description="Segmentation",
        **identification(request, f"seg-{kind.lower()}", _SERIES_NUMBER),
    )
    result.PatientOrientation = request.source.PatientOrientation
    return result


def coded(code: Code) -> Any:
    """Turn a code of the tables into highdicom's."""
    highdicom: Any = require("highdicom", purpose="writing DICOM results")
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _describe(request: ResultRequest, number: int) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a DICOM SEG")
    name = request.findings.segments[number]
    label = code_of_label(name)
    algorithm = request.algorithm
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=coded(label.category),
        segmented_property_type=coded(label.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=coded(Code("123110", "DCM", "Artificial Intelligence")),
            version=algorithm.version,
            source=algorithm.manufacturer,
            parameters={"bundle": algorithm.bundle_sha256},
        ),
        tracking_uid=derive_uid(request, "tracking", str(number)),
        tracking_id=f"{name[:50]} {number}",
    )


def _fractions(request: ResultRequest) -> NDArray[np.float32]:
    """Probabilities as (1, H, W, segments)."""
    found = request.findings.probabilities_khw
    if found is None:
        raise SpecError("a fractional segmentation needs probabilities: ask for BINARY")
    foreground = found if len(found) == len(request.findings.segments) else found[1:]
    return np.clip(np.moveaxis(foreground, 0, -1)[np.newaxis], 0.0, 1.0)
