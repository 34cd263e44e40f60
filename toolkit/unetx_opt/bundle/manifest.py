"""The manifest: what a bundle holds, how it was made, and the evidence that it does what its checkpoint does.

``manifest.json`` is written and read here only. In Python the optional parts have defaults; in a file every
field is present, so that a missing one is never read as its default.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from unetx_opt.bundle.fields import Fields, FileName, Name, Sha256, Text, check_names
from unetx_opt.bundle.parts import (
    Build,
    Engine,
    FileRecord,
    GateEvidence,
    ImageSet,
    Label,
    Operations,
    Postprocess,
    PrecisionRecord,
    Product,
    SkippedTarget,
    SourceCheckpoint,
)
from unetx_opt.bundle.sign import SIGNATURE_NAME
from unetx_opt.bundle.strict_json import parse_object
from unetx_opt.errors import BundleError, SpecError
from unetx_opt.specs import InputContract, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "CHECKSUM_NAME",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "SCHEMA_VERSION",
    "Manifest",
    "manifest_schema",
    "parse_manifest",
    "serialize_manifest",
    "with_files",
]

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
CHECKSUM_NAME: Final = "manifest.sha256"
MAX_MANIFEST_BYTES: Final = 8 * 1024**2


class Manifest(Fields):
    """Everything about a bundle; ``files`` names every file of it but the manifest, its checksum and signature."""

    schema_version: Literal[1] = 1
    product: Product
    variant: Name
    spec: ModelSpec
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=64)]
    input: InputContract
    postprocess: Postprocess | None = None
    precision: PrecisionRecord
    operations: Operations
    engines: Annotated[tuple[Engine, ...], Field(min_length=1, max_length=100)]
    skipped: Annotated[tuple[SkippedTarget, ...], Field(max_length=100)] = ()
    files: Annotated[dict[FileName, FileRecord], Field(max_length=4096)] = Field(default_factory=dict)
    checkpoint: SourceCheckpoint
    gate: GateEvidence
    calibration: ImageSet | None = None
    build: Build
    model_card: FileName | None = None
    sbom: FileName | None = None
    signing_key_sha256: Sha256 | None = None
    notes: Annotated[tuple[Text, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_labels(self)
        _check_gate(self)
        if self.files:  # a manifest gets its files when it is written
            _check_files(self)
        return self


def _check_labels(manifest: Manifest) -> None:
    classes = max(2, manifest.spec.num_classes)
    if [label.index for label in manifest.labels] != list(range(classes)):
        raise ValueError(f"labels must have the indices 0 to {classes - 1} in this order, one for each class")
    if len({label.name for label in manifest.labels}) != classes:
        raise ValueError("two labels have the same name")
    if manifest.input.channels != manifest.spec.in_channels:
        raise ValueError(
            f"the input has {manifest.input.channels} channels, the model reads {manifest.spec.in_channels}"
        )


def _check_gate(manifest: Manifest) -> None:
    for engine in manifest.engines:
        name = "off" if engine.gate is None else engine.gate.name
        if name != manifest.gate.name:
            raise ValueError(f"the gate is {manifest.gate.name!r}, but that of {engine.target} is {name!r}")
        if engine.gate is not None and not engine.gate.passed:
            raise ValueError(f"the gate {name} failed for {engine.target}: a bundle holds engines that pass")
    if manifest.gate.images is not None and manifest.calibration is not None:
        shared = set(manifest.gate.images.image_sha256) & set(manifest.calibration.image_sha256)
        if shared:
            raise ValueError(f"{len(shared)} images both calibrated the engines and decided their gate")


def _check_files(manifest: Manifest) -> None:
    check_names([*manifest.files, MANIFEST_NAME, CHECKSUM_NAME, SIGNATURE_NAME])
    named = [name for engine in manifest.engines for name in engine.files]
    optional = (manifest.model_card, manifest.sbom, manifest.checkpoint.file)
    for name in (*named, *(name for name in optional if name is not None)):
        if name not in manifest.files:
            raise ValueError(f"{name} is used but not listed in files")
    engines = [(engine.target, engine.files, engine.settings) for engine in manifest.engines]
    if any(engine in engines[:index] for index, engine in enumerate(engines)):
        raise ValueError("two engines have the same target, files and settings")


def parse_manifest(data: bytes, source: str = MANIFEST_NAME) -> Manifest:
    """Read a manifest that came from anywhere.

    Parameters
    ----------
    data : bytes
        The content of ``manifest.json``.
    source : str
        What to call it in messages.

    Raises
    ------
    BundleError
        It is too large, not JSON, repeats a key, has another schema version, or does not fit the schema.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{source} has {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}")
    raw = parse_object(data, source)
    if "schema_version" not in raw:
        raise BundleError(f"{source} has no schema_version: it is not the manifest of a bundle")
    version = raw["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{source} has schema version {str(version)[:20]!r}, this program knows version "
            f"{SCHEMA_VERSION}: update unetx-opt, or build the bundle again"
        )
    with _one_line(source):
        manifest = Manifest.model_validate_json(data)
    absent = _absent_field(_to_json(manifest), raw)
    if absent is not None:
        raise BundleError(f"{source}: the field {absent} is missing")
    if not manifest.files:
        raise BundleError(f"{source} lists no files")
    return manifest


def with_files(
    manifest: Manifest, files: Mapping[str, FileRecord], sbom: str | None, signing_key_sha256: str | None = None
) -> Manifest:
    """Complete a manifest with the bundle's files and the key that will sign it.

    Raises
    ------
    BundleError
        A file that the manifest uses is not among them, or two names cannot stand side by side.
    """
    fields = {name: getattr(manifest, name) for name in Manifest.model_fields}
    with _one_line(MANIFEST_NAME):
        made = {"files": dict(sorted(files.items())), "sbom": sbom, "signing_key_sha256": signing_key_sha256}
        return Manifest(**{**fields, **made})


def serialize_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as the text of ``manifest.json``, the same bytes for the same content."""
    return (json.dumps(_to_json(manifest), indent=1) + "\n").encode("ascii")


def manifest_schema() -> dict[str, Any]:
    """JSON schema of ``manifest.json``, as published beside this module in ``manifest.schema.json``."""
    schema = Manifest.model_json_schema(mode="serialization")
    for part in (schema, *schema["$defs"].values()):
        if "description" in part:  # the first line says what it is; the rest is for Python
            part["description"] = part["description"].partition("\n")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json")


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise BundleError(f"{source}: {_first_problem(error)}") from None
    except SpecError as error:
        raise BundleError(f"{source}: {error}") from error


def _first_problem(error: ValidationError) -> str:
    if error.error_count() > 1000:  # each takes kilobytes once it is listed
        return f"{error.error_count()} values do not fit the schema: it is not the manifest of a bundle"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:60] for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        reason = "the text does not have the expected form, or holds characters that cannot be printed"
    more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    return " ".join(f"{place}{': ' if place else ''}{reason}{more}".split())


def _absent_field(written: Mapping[str, Any], read: Mapping[str, Any]) -> str | None:
    for key, value in written.items():
        if key not in read:
            return key
        pairs = zip(value, read[key], strict=True) if isinstance(value, list) else [(value, read[key])]
        for inner, other in pairs:
            if isinstance(inner, dict):
                absent = _absent_field(inner, other)
                if absent is not None:
                    return f"{key}.{absent}"
    return None
