"""Whether a DICOM image is what the networks were trained on: one grey radiograph of a chest.

Each row of `REQUIREMENTS` looks at the header alone. What fails one can be read, and is by force, but a mask of it
means nothing that was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["CHEST_CODES", "CHEST_WORDS", "REQUIREMENTS", "SOP_CLASSES", "read_code", "unsuitable"]

#: SOP class UID to name, of what can hold one radiograph.
SOP_CLASSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography",
        "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray for presentation",
        "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
        "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture",
        "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture",
    }
)
_DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"

#: Words of Body Part Examined that name a chest: PS3.16 annex L, and what machines of other languages write.
CHEST_WORDS: Final = frozenset({"CHEST", "CXR", "LUNG", "LUNGS", "THORAX", "TORACE", "TORAX"})
#: Code values of Anatomic Region that do (SNOMED CT, and the SNOMED RT that older files carry): thorax, lung.
CHEST_CODES: Final = frozenset({"51185008", "T-D3000", "39607008", "T-28000"})

_CODE: Final = re.compile(r"[A-Z0-9 _]{1,16}")
_CODE_VALUE: Final = re.compile(r"[A-Z0-9-]{1,16}")


def unsuitable(dataset: Dataset) -> Iterator[str]:
    """Give the reasons why this is no single grey chest radiograph, in words without patient data."""
    return (reason for find in REQUIREMENTS.values() if (reason := find(dataset)) is not None)


def read_code(dataset: Dataset, keyword: str) -> str:
    """Read a code string in upper case; empty where it is absent or no code string."""
    value = str(dataset.get(keyword) or "").strip().upper()
    # Anything else is no code string, and could be a person's words.
    return value if _CODE.fullmatch(value) else ""


def _frames(dataset: Dataset) -> str | None:
    frames = dataset.get("NumberOfFrames")
    if frames in (None, 1):
        return None
    return (
        f"it has {frames} frames, expected a single image"
        if isinstance(frames, int)
        else _malformed("NumberOfFrames")
    )


def _samples(dataset: Dataset) -> str | None:
    samples = dataset.get("SamplesPerPixel")
    if samples in (None, 1):
        return None
    if not isinstance(samples, int):
        return _malformed("SamplesPerPixel")
    return f"it has {samples} samples per pixel (colour), expected 1 (grey)"


def _malformed(keyword: str) -> str:
    return f"its {keyword} is malformed, expected one integer"


def _photometric(dataset: Dataset) -> str | None:
    if str(dataset.get("PhotometricInterpretation")) in ("MONOCHROME1", "MONOCHROME2"):
        return None
    return "its Photometric Interpretation is neither MONOCHROME1 nor MONOCHROME2 (grey)"


def _intent(dataset: Dataset) -> str | None:
    if str(dataset.get("SOPClassUID")) == _DX_FOR_PROCESSING:
        return "its SOP Class is raw detector data (Digital X-Ray FOR PROCESSING): send the image FOR PRESENTATION"
    if str(dataset.get("PresentationIntentType", "")) == "FOR PROCESSING":
        return "it is raw detector data (FOR PROCESSING): send the image FOR PRESENTATION"
    return None


def _sop_class(dataset: Dataset) -> str | None:
    uid = str(dataset.get("SOPClassUID", ""))
    # Without one, reading it is an error of its own.
    if uid in ("", _DX_FOR_PROCESSING) or uid in SOP_CLASSES:
        return None
    return (
        "its SOP Class is no radiograph, expected Computed Radiography, Digital X-Ray for presentation or "
        "Secondary Capture"
    )


def _body_part(dataset: Dataset) -> str | None:
    part = read_code(dataset, "BodyPartExamined")
    if part:
        named = not CHEST_WORDS.isdisjoint(re.split("[ _]", part))
        return None if named else f"its Body Part Examined is {part}, expected a chest"
    region = next(iter(dataset.get("AnatomicRegionSequence") or ()), None)
    code = "" if region is None else str(region.get("CodeValue") or "")
    if code in CHEST_CODES or not _CODE_VALUE.fullmatch(code):
        return None
    return f"its Anatomic Region has the code {code}, expected a chest"


#: What is demanded -> why an image does not meet it, or None. Absent information meets it.
REQUIREMENTS: Final[Mapping[str, Callable[[Dataset], str | None]]] = MappingProxyType(
    {
        "single frame": _frames,
        "one sample": _samples,
        "grey": _photometric,
        "for presentation": _intent,
        "radiograph": _sop_class,
        "chest": _body_part,
    }
)
