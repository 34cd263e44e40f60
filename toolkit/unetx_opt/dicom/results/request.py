"""What every DICOM result is made from: the source's header, what was found in it, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError, SpecError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Algorithm", "Findings", "ResultOptions", "ResultRequest"]

SEGMENTATION_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What made the mask.

    Attributes
    ----------
    version : str
        Of this program.
    bundle_sha256 : str
        SHA-256 (hex) of the bundle's manifest, which identifies weights and engines.
    name, manufacturer : str
        As objects name them.
    udi : str or None
        Unique Device Identifier of the product that this is part of.
    """

    version: str
    bundle_sha256: str
    name: str = "unetx-opt"
    manufacturer: str = "unetx-opt"
    udi: str | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """A mask on the grid of its source.

    Attributes
    ----------
    labels : numpy.ndarray
        (H, W) uint8 indices into `label_names`.
    label_names : tuple of str
        The background first.
    spacing_mm : tuple of float or None
        Distance between rows and between columns.
    probabilities_khw : numpy.ndarray or None
        (K, H, W) float32 in [0, 1], K 1 of a binary mask; for fractional segmentations.
    overlay_rgb : numpy.ndarray or None
        (H, W, 3) uint8 picture; for Secondary Capture.
    """

    labels: NDArray[np.uint8]
    label_names: tuple[str, ...]
    spacing_mm: tuple[float, float] | None = None
    probabilities_khw: NDArray[np.float32] | None = field(default=None, repr=False)
    overlay_rgb: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def segments(self) -> Mapping[int, str]:
        """Segment number, which is the label's index, to label name; without the background."""
        return {number: name for number, name in enumerate(self.label_names) if number > 0}


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """How results are written.

    Attributes
    ----------
    segmentation_kind : str
        BINARY, which every receiver knows; FRACTIONAL for probabilities; LABELMAP, which few know yet.
    stable_uids : bool
        Derive UIDs from the source and the bundle, so that the same work done twice is the same object.
    created : datetime.datetime or None
        When the results are said to be made, in local time; None is now.
    """

    segmentation_kind: str = "BINARY"
    stable_uids: bool = False
    created: datetime | None = None

    def __post_init__(self) -> None:
        if self.segmentation_kind not in SEGMENTATION_KINDS:
            raise SpecError(
                f"segmentation kind is {self.segmentation_kind!r}, expected one of {', '.join(SEGMENTATION_KINDS)}"
            )


@dataclass(frozen=True, slots=True)
class ResultRequest:
    """Everything that a result is made from.

    Attributes
    ----------
    source : pydicom.dataset.Dataset
        As `unetx_opt.dicom.results.references.prepare_source` gives it.
    findings : Findings
        On the grid of the source.
    algorithm : Algorithm
        What made them.
    options : ResultOptions
        How they are written.
    salt : str
        What makes UIDs of this request differ from those of another; empty where they are stable.

    Raises
    ------
    ImageError
        The mask has another size than the source, or a label without a name.
    """

    source: Dataset = field(repr=False)
    findings: Findings
    algorithm: Algorithm
    options: ResultOptions = ResultOptions()
    salt: str = ""

    def __post_init__(self) -> None:
        labels: NDArray[Any] = self.findings.labels
        grid = (int(self.source.Rows), int(self.source.Columns))
        if labels.dtype != np.uint8 or labels.shape != grid:
            raise ImageError(f"mask is {labels.dtype} of shape {labels.shape}, expected uint8 {grid} as its source")
        if labels.max(initial=0) >= len(self.findings.label_names):
            raise ImageError(f"mask has label {labels.max()}, expected 0 to {len(self.findings.label_names) - 1}")
