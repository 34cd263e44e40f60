"""Codes for what a label names: SNOMED CT, with the categories of PS3.16 CID 7150."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["LABEL_CODES", "UNKNOWN_LABEL", "Code", "LabelCode", "code_of_label"]


@dataclass(frozen=True, slots=True)
class Code:
    """One coded concept.

    Attributes
    ----------
    value, scheme, meaning : str
        Code Value, Coding Scheme Designator and Code Meaning.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class LabelCode:
    """What a segment shows.

    Attributes
    ----------
    category, kind : Code
        Segmented Property Category and Segmented Property Type.
    """

    category: Code
    kind: Code


_ANATOMY: Final = Code("123037004", "SCT", "Anatomical Structure")
_TISSUE: Final = Code("85756007", "SCT", "Tissue")

#: Label name in lower case, with blanks -> its code.
LABEL_CODES: Final[Mapping[str, LabelCode]] = MappingProxyType(
    {
        "lung": LabelCode(_ANATOMY, Code("39607008", "SCT", "Lung")),
        "lungs": LabelCode(_ANATOMY, Code("39607008", "SCT", "Lung")),
        "left lung": LabelCode(_ANATOMY, Code("44029006", "SCT", "Left lung")),
        "right lung": LabelCode(_ANATOMY, Code("3341006", "SCT", "Right lung")),
        "heart": LabelCode(_ANATOMY, Code("80891009", "SCT", "Heart")),
    }
)
#: For a label that the table does not know: the segment's own label says what it is.
UNKNOWN_LABEL: Final = LabelCode(_TISSUE, _TISSUE)


def code_of_label(name: str) -> LabelCode:
    """Find the code of a label name, whatever its case and with ``_`` or ``-`` for blanks."""
    return LABEL_CODES.get(" ".join(name.casefold().replace("_", " ").replace("-", " ").split()), UNKNOWN_LABEL)
