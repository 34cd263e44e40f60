"""Bounded field types of the manifest: nothing in it is unlimited, and every text can be printed as it is."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from unetx_opt.files import relative_name

__all__ = [
    "COUNT_MAX",
    "Count",
    "CountMap",
    "Fields",
    "FileName",
    "Name",
    "Sha256",
    "Text",
    "TextMap",
    "check_names",
]

COUNT_MAX: Final = 2**53  # the largest count that every JSON reader keeps exactly

# Control characters move a terminal's cursor, and bidirectional overrides reorder what a reader sees.
_PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"


class Fields(BaseModel):
    """Base of the manifest's parts: frozen, no unknown field, no conversion between types, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )


def _file_name(name: str) -> str:
    if relative_name(name) is None:
        raise ValueError(f"{name!r} is not a safe relative file name")
    return name


def check_names(names: list[str]) -> None:
    """Refuse a set of file names that some file system cannot hold side by side.

    Raises
    ------
    ValueError
        Two names differ only in case, or one names a directory of another.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            raise ValueError(f"the names {other} and {name} are the same where case is ignored")
    for name in names:
        parts = name.lower().split("/")
        for end in range(1, len(parts)):
            other = seen.get("/".join(parts[:end]), "")
            if other:
                raise ValueError(f"{other} is a file, and a directory of {name}")


#: A short name: of a variant, a target, a data type, a package.
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_PRINTABLE)]
#: A line of text.
Text = Annotated[str, StringConstraints(max_length=4000, pattern=_PRINTABLE)]
#: A file of the bundle, relative to its root.
FileName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_file_name)]
#: SHA-256 in lower-case hexadecimal digits.
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: A number of things.
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
#: Names with a line of text each.
TextMap = Annotated[dict[Text, Text], Field(max_length=20_000)]
#: Names with a count each.
CountMap = Annotated[dict[Name, Count], Field(max_length=1000)]
