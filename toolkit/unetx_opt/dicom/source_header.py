"""The part of a radiograph's header that results repeat: who, which study, which image, how it is shown.

Results carry the patient and the study of their source, and references to it. The reader process picks these
elements, checks each against its value representation, and hands them over as text in the DICOM JSON model (PS3.18
annex F): what is malformed stays behind, and nothing else of the file gets out. The text identifies the patient: it
belongs into results and into no log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_opt.dicom.grayscale import LookupTable, read_table
from unetx_opt.errors import ImageError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

__all__ = ["KEPT_KEYWORDS", "extract_header", "parse_header"]

#: What is kept, by module.
KEPT_KEYWORDS: Final = (
    # Patient
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    # General Study
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    "StudyDescription",
    # General Series and image
    *("SeriesInstanceUID", "Modality", "Laterality", "ImageLaterality", "BodyPartExamined", "PatientOrientation"),
    *("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "SamplesPerPixel"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    # How it is shown
    *("PhotometricInterpretation", "PresentationLUTShape", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "BitsStored", "PixelRepresentation"),
)
_MAX_JSON_BYTES: Final = 1 << 19  # two tables of 65536 entries are 350 kB
_TABLES: Final = ("ModalityLUTSequence", "VOILUTSequence")
#: Value multiplicity -> how many values there may be; an empty element has none. Others are not limited.
_COUNTS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType({"1": (0, 1), "2": (0, 2)})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
#: Value representation -> what each of its values must be (PS3.5 6.2), with room for what is common and harmless.
_VALUES: Final[Mapping[str, re.Pattern[str]]] = MappingProxyType(
    {
        "AS": re.compile(r"\d{3}[DWMY]"),
        "CS": re.compile(r"[A-Z0-9 _]{0,16}"),
        "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
        "DS": re.compile(r"[0-9eE+.-]{1,16}"),
        "IS": re.compile(r"[+-]?\d{1,10}"),
        "LO": re.compile(r"[^\\]{0,64}"),
        "PN": re.compile(r"[^\\]{0,194}"),
        "SH": re.compile(r"[^\\]{0,16}"),
        "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
        # Leading zeros are not allowed and are found: a reference must be what the source says.
        "UI": re.compile(r"(?=.{1,64}$)\d+(\.\d+)*"),
        "US": re.compile(r"\d{1,5}"),
    }
)


def extract_header(dataset: Dataset, *, little_endian: bool = True) -> str:
    """Pick what results repeat.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        A header from anywhere.
    little_endian : bool
        Byte order of tables that it holds as bytes.

    Returns
    -------
    str
        DICOM JSON, at most 512 KiB, of the elements of `KEPT_KEYWORDS` that are present and well formed, and of the
        lookup tables.

    Raises
    ------
    ImageError
        It is larger.
    """
    pydicom = require("pydicom", purpose="reading a DICOM header")
    kept: Dataset = pydicom.Dataset()
    for keyword in KEPT_KEYWORDS:
        element = _sound_element(dataset, keyword)
        if element is not None:
            kept.add(element)
    for keyword in _TABLES:
        table = read_table(dataset, keyword, little_endian)
        # A table for negative values has a descriptor of another type: rare, and left to the viewer.
        if table is not None and table.first >= 0:
            setattr(kept, keyword, [_table_item(table, keyword)])
    # Every element is well formed, so that nothing is left out and nothing is guessed.
    text = json.dumps(kept.to_json_dict())
    if len(text) > _MAX_JSON_BYTES:
        raise ImageError(
            f"what results repeat of its header has {len(text)} bytes, expected at most {_MAX_JSON_BYTES}"
        )
    return text


def _table_item(table: LookupTable, keyword: str) -> Dataset:
    pydicom = require("pydicom", purpose="reading a DICOM header")
    item: Dataset = pydicom.Dataset()
    # A Modality LUT has 8 or 16 bits and nothing between (PS3.3 C.11.1.1), whatever some machines write.
    bits = 16 if keyword == "ModalityLUTSequence" and table.bits > 8 else table.bits
    descriptor = [table.entries.size % 65536, table.first, bits]
    item.add(pydicom.DataElement(0x00283002, "US", descriptor))
    if keyword == "ModalityLUTSequence":
        item.ModalityLUTType = "US"  # unspecified
    item.add(pydicom.DataElement(0x00283006, "OW", table.entries.astype("<u2").tobytes()))
    return item


def parse_header(text: str) -> Dataset:
    """Turn the text of `extract_header` into a data set again.

    Raises
    ------
    ImageError
        It lacks the study, the series or the image that results refer to.
    """
    pydicom = require("pydicom", purpose="writing DICOM results")
    dataset: Dataset = pydicom.Dataset.from_json(text)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise ImageError(f"its {keyword} is absent or malformed: DICOM results cannot refer to it, ask for PNG")
    return dataset


def _sound_element(dataset: Dataset, keyword: str) -> DataElement | None:
    """An element with the value representation and as many values as its keyword has, or None."""
    datadict = require("pydicom.datadict", purpose="reading a DICOM header")
    pydicom = require("pydicom", purpose="reading a DICOM header")
    vr = str(datadict.dictionary_VR(keyword))
    try:
        value = dataset.get(keyword)
        values = [] if value is None else [value] if isinstance(value, str | int | float) else list(value)
        # A person's name is one value; it would iterate over its letters.
        texts = [str(value)] if vr == "PN" else [str(item).strip() for item in values]
    except Exception:
        # Whatever pydicom raises on a malformed value: the element is left out.
        return None
    if value is None or not all(_VALUES[vr].fullmatch(text) and not _CONTROL.search(text) for text in texts):
        return None
    counts = _COUNTS.get(str(datadict.dictionary_VM(keyword)))
    if counts is not None and len(texts) not in counts:
        return None
    sound: DataElement = pydicom.DataElement(datadict.tag_for_keyword(keyword), vr, _plain(vr, texts))
    return sound


def _plain(vr: str, texts: list[str]) -> object:
    values: list[object] = [int(text) if vr in ("US", "IS") else text for text in texts]
    return values[0] if len(values) == 1 else values
