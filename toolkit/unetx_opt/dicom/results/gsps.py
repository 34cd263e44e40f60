"""Greyscale Softcopy Presentation State: outlines of the mask that a viewer draws on the source (PS3.3 A.33.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetx_opt.dicom.grayscale import is_inverted
from unetx_opt.dicom.results.outlines import trace_outlines
from unetx_opt.dicom.results.references import derive_uid, identification, plain_source
from unetx_opt.dicom.results.request import ResultRequest
from unetx_opt.errors import ImageError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["build_gsps"]

_SERIES_NUMBER = 9003
# Graphic Data has a length of 16 bits in explicit VR: two 4-byte numbers per point.
_MAX_POINTS = 8000
_REPLACED_BY = {
    "ModalityLUTSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "VOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
#: Red, green, blue of segments 1, 2, ...: as the overlay, distinct under every colour-vision deficiency.
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))


def build_gsps(request: ResultRequest) -> Dataset:
    """Write the outlines of every segment, one graphic layer each, with the grey values shown as the source says.

    Raises
    ------
    ImageError
        The mask is too ragged to outline, or the source is in colour.
    """
    if request.source.get("SamplesPerPixel", 1) != 1:
        raise ImageError("it is in colour: a greyscale presentation state cannot show it")
    highdicom: Any = require("highdicom", purpose="writing a presentation state")
    shown = _without_tables(request.source)
    annotations, layers = [], []
    for number in sorted(request.findings.segments):
        layer = _layer(request, number)
        layers.append(layer)
        objects = list(_outline(request, number))
        if objects:
            annotations.append(
                highdicom.pr.GraphicAnnotation(
                    referenced_images=[shown], graphic_layer=layer, graphic_objects=objects
                )
            )
    shape = "INVERSE" if is_inverted(request.source) else "IDENTITY"
    result: Dataset = highdicom.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[shown],
        content_label="SEGMENTATION",
        content_description="Outlines of an automatic segmentation",
        graphic_annotations=annotations or None,
        graphic_layers=layers if annotations else None,
        presentation_lut_transformation=highdicom.PresentationLUTTransformation(presentation_lut_shape=shape),
        series_description="Segmentation outlines",
        **identification(request, "gsps", _SERIES_NUMBER),
    )
    result.Laterality = request.source.Laterality
    _show_by_tables(result, request.source)
    return result


def _without_tables(source: Dataset) -> Dataset:
    """A source as highdicom can take it: it repeats numbers, and no tables, which go before numbers."""
    plain = plain_source(source)
    for table, numbers in _REPLACED_BY.items():
        if table in source:
            for keyword in (table, *numbers):
                plain.pop(keyword, None)
    return plain


def _show_by_tables(result: Dataset, source: Dataset) -> None:
    pydicom: Any = require("pydicom", purpose="writing a presentation state")
    if "ModalityLUTSequence" in source:
        result.ModalityLUTSequence = source.ModalityLUTSequence
    if "VOILUTSequence" in source:
        item = pydicom.Dataset()
        item.VOILUTSequence = source.VOILUTSequence
        result.SoftcopyVOILUTSequence = [item]


def _layer(request: ResultRequest, number: int) -> Any:
    highdicom: Any = require("highdicom", purpose="writing a presentation state")
    name = request.findings.segments[number]
    words = re.sub("[^A-Z0-9]+", "_", name.upper()).strip("_")
    color = highdicom.color.CIELabColor.from_rgb(*_COLORS[(number - 1) % len(_COLORS)])
    return highdicom.pr.GraphicLayer(
        layer_name=f"{words[:12]}_{number}", order=number, description=name[:64], display_color=color
    )


def _outline(request: ResultRequest, number: int) -> Iterator[Any]:
    highdicom: Any = require("highdicom", purpose="writing a presentation state")
    for polygon in trace_outlines(request.findings.labels == number):
        for part in _parts(polygon):
            yield highdicom.pr.GraphicObject(
                graphic_type="POLYLINE",
                graphic_data=part,
                units="PIXEL",
                tracking_id=f"{request.findings.segments[number][:50]} {number}",
                tracking_uid=derive_uid(request, "tracking", str(number)),
            )


def _parts(polygon: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Cut a long outline into polylines that share their ends."""
    for start in range(0, len(polygon) - 1, _MAX_POINTS - 1):
        yield polygon[start : start + _MAX_POINTS]
