"""What is read of an input and written of its mask: the table of formats, and one input from file to files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import unetx_opt
from unetx_opt.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.dicom.sandbox import DicomReader
    from unetx_opt.runtime import Segmentation, Segmenter

__all__ = [
    "FILES",
    "OUTPUTS",
    "SEGMENTATION_KINDS",
    "OutputPlan",
    "Radiograph",
    "WrittenFile",
    "read_radiograph",
    "segment_radiograph",
    "write_outputs",
]

#: What `--format` takes -> the files that it gives, by their keys in `FILES`.
OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"png": ("mask", "overlay"), "seg": ("seg",), "sc": ("sc",), "gsps": ("gsps",), "sr": ("sr",)}
)
#: Key of a file -> what follows the stem in its name.
FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mask": ".mask.png",
        "overlay": ".overlay.png",
        "seg": ".seg.dcm",
        "sc": ".sc.dcm",
        "gsps": ".gsps.dcm",
        "sr": ".sr.dcm",
    }
)
#: Stated here, so that `--help` loads nothing heavy.
SEGMENTATION_KINDS: Final = ("BINARY", "FRACTIONAL", "LABELMAP")


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What is written, and where.

    Attributes
    ----------
    folder : pathlib.Path
        Of all files.
    formats : tuple of str
        Keys of `OUTPUTS`.
    seg_kind : str
        One of `SEGMENTATION_KINDS`.
    stable_uids, force : bool
        As the options of the command.
    udi : str or None
        Unique Device Identifier.
    swept : bool
        What killed writers left in `folder` has been removed, so that no file needs to look for it.
    """

    folder: Path
    formats: tuple[str, ...]
    seg_kind: str = "BINARY"
    stable_uids: bool = False
    force: bool = False
    udi: str | None = None
    swept: bool = False

    @property
    def dicom_formats(self) -> tuple[str, ...]:
        """Those that need the header of a DICOM source."""
        return tuple(name for name in self.formats if name != "png")

    def paths(self, stem: str) -> dict[str, Path]:
        """Files of one input by their keys in `FILES`."""
        return {key: self.folder / f"{stem}{FILES[key]}" for name in self.formats for key in OUTPUTS[name]}


@dataclass(frozen=True, slots=True)
class Radiograph:
    """What the engine and the results need of an input, whatever kind of file it was."""

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    pixel_aspect: float | None
    notes: tuple[str, ...]
    source_json: str | None
    read_ms: float


def read_radiograph(path: Path, reader: DicomReader, plan: OutputPlan) -> Radiograph:
    """Read a PNG or DICOM file.

    Raises
    ------
    ImageError
        It cannot be used, or is a PNG where DICOM results are asked for.
    """
    from unetx_opt.dicom.read import ReadOptions, is_dicom
    from unetx_opt.imaging.files import read_image

    started = time.perf_counter()
    if not is_dicom(path):
        if plan.dicom_formats:
            raise ImageError(
                f"{path} is no DICOM file, and {plan.dicom_formats[0]} refers to one: ask for --format png"
            )
        source = read_image(path)
        return Radiograph(source.pixels, source.spacing_mm, None, (), None, (time.perf_counter() - started) * 1e3)
    image = reader.read(path, ReadOptions(force=plan.force, with_source=bool(plan.dicom_formats)))
    read_ms = (time.perf_counter() - started) * 1e3
    return Radiograph(image.pixels, image.spacing_mm, image.pixel_aspect, image.notes, image.source_json, read_ms)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A result on disk.

    Attributes
    ----------
    path : pathlib.Path
        Where it lies.
    size : int
        In bytes.
    sha256 : str
        Of its bytes, in hex.
    """

    path: Path
    size: int
    sha256: str


def segment_radiograph(
    segmenter: Segmenter, image: Radiograph, plan: OutputPlan, stem: str
) -> tuple[dict[str, Any], dict[str, WrittenFile]]:
    """Segment one image and write its results.

    Returns
    -------
    facts : dict
        JSON types: reasons that were overruled by force, size, spacing, areas, times in ms.
    files : dict of str to WrittenFile
        By the keys of `FILES`.

    Raises
    ------
    UnetxError
        It cannot be segmented, or a result cannot be made or written.
    """
    segmentation = segmenter.segment(image.pixels, image.spacing_mm, pixel_aspect=image.pixel_aspect)
    segmented = time.perf_counter()
    files = write_outputs(image, segmentation, plan, stem, segmenter.manifest_sha256)
    written = time.perf_counter()
    facts = {
        "forced": image.notes,
        "height": image.pixels.shape[0],
        "width": image.pixels.shape[1],
        "spacing_mm": image.spacing_mm,
        "areas_px": dict(segmentation.areas_px),
        "areas_mm2": None if segmentation.areas_mm2 is None else dict(segmentation.areas_mm2),
        "timings_ms": {
            "read": image.read_ms,
            **segmentation.timings_ms,
            "write": (written - segmented) * 1e3,
        },
    }
    return facts, files


def write_outputs(
    image: Radiograph, segmentation: Segmentation, plan: OutputPlan, stem: str, bundle_sha256: str
) -> dict[str, WrittenFile]:
    """Write every file of one input, each whole or not at all; all are made before one is written.

    Returns
    -------
    dict of str to WrittenFile
        By the keys of `FILES`.

    Raises
    ------
    UnetxError
        A result cannot be made or written.
    """
    from unetx_opt.files import write_file
    from unetx_opt.imaging.files import encode_mask_png, encode_overlay_png

    encoded = dict(_encode_dicom(image, segmentation, plan, bundle_sha256))
    if "png" in plan.formats:
        encoded["mask"] = encode_mask_png(segmentation.labels, num_classes=segmentation.logits_khw.shape[0])
        encoded["overlay"] = encode_overlay_png(image.pixels, segmentation.labels)
    files = {}
    for key, path in plan.paths(stem).items():
        write_file(path, encoded[key], settle=not plan.swept)
        files[key] = WrittenFile(path, len(encoded[key]), hashlib.sha256(encoded[key]).hexdigest())
    return files


def _encode_dicom(
    image: Radiograph, segmentation: Segmentation, plan: OutputPlan, bundle_sha256: str
) -> Mapping[str, bytes]:
    if not plan.dicom_formats or image.source_json is None:
        return {}
    from unetx_opt.dicom.results.request import Algorithm, Findings, ResultOptions
    from unetx_opt.dicom.results.write import encode_results
    from unetx_opt.imaging.files import render_overlay

    findings = Findings(
        labels=segmentation.labels,
        label_names=segmentation.label_names,
        spacing_mm=image.spacing_mm,
        probabilities_khw=segmentation.probabilities if plan.seg_kind == "FRACTIONAL" else None,
        overlay_rgb=render_overlay(image.pixels, segmentation.labels) if "sc" in plan.formats else None,
    )
    algorithm = Algorithm(unetx_opt.__version__, bundle_sha256, udi=plan.udi)
    options = ResultOptions(segmentation_kind=plan.seg_kind, stable_uids=plan.stable_uids)
    return encode_results(plan.dicom_formats, image.source_json, findings, algorithm, options)
