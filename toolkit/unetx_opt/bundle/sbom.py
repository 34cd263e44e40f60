"""The bill of materials: what a bundle is made of and by, as CycloneDX 1.6 JSON."""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.optional import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from unetx_opt.bundle.manifest import Manifest

__all__ = ["SBOM_NAME", "bill_of_materials"]

SBOM_NAME: Final = "sbom.cdx.json"
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "unetx-opt.bundle")


def bill_of_materials(manifest: Manifest) -> bytes:
    """List the model, the files and the tools of a bundle.

    Parameters
    ----------
    manifest : Manifest
        With the hashes of all files but the bill's own.

    Returns
    -------
    bytes
        CycloneDX 1.6 JSON; the same for the same manifest, as its serial number is derived from the content
        and its time is that of the build.

    Raises
    ------
    MissingPackageError
        The package cyclonedx-python-lib is not installed.
    """
    purpose = "writing the bill of materials"
    bom_module = require("cyclonedx.model.bom", purpose=purpose)
    component = require("cyclonedx.model.component", purpose=purpose)
    tool = require("cyclonedx.model.tool", purpose=purpose)
    output = require("cyclonedx.output.json", purpose=purpose)
    bundle = _component(
        component.ComponentType.APPLICATION,
        "bundle",
        f"{manifest.variant}-{manifest.precision.requested.value}",
        version=manifest.product.version,
        description="Segmentation engines with their input contract and evidence",
    )
    maker = _component(
        component.ComponentType.APPLICATION, "tool:unetx-opt", manifest.product.name, manifest.product.version
    )
    bom = bom_module.Bom(
        serial_number=_serial_number(manifest),
        metadata=bom_module.BomMetaData(
            tools=tool.ToolRepository(components=[maker]),
            component=bundle,
            timestamp=datetime.datetime.fromisoformat(manifest.build.created),
        ),
        components=list(_components(manifest)),
    )
    bom.register_dependency(bundle, bom.components)
    text = output.JsonV1Dot6(bom).output_as_string(indent=1)
    return (json.dumps(json.loads(text), indent=1) + "\n").encode("ascii")


def _components(manifest: Manifest) -> Iterator[Any]:
    kinds = require("cyclonedx.model.component", purpose="writing the bill of materials").ComponentType
    checkpoint = manifest.checkpoint
    yield _component(
        kinds.MACHINE_LEARNING_MODEL,
        "model",
        checkpoint.variant,
        version=checkpoint.sha256[:12],
        description=f"Checkpoint {checkpoint.source}",
        sha256=checkpoint.sha256,
    )
    for name, record in sorted(manifest.files.items()):
        yield _component(kinds.FILE, f"file:{name}", name, sha256=record.sha256)
    for name, version in sorted(_tools(manifest)):
        yield _component(kinds.LIBRARY, f"tool:{name}@{version}", name, version, description="Used to build it")


def _tools(manifest: Manifest) -> set[tuple[str, str]]:
    maps: list[Mapping[str, str]] = [manifest.build.tools, *(engine.tools for engine in manifest.engines)]
    return {(name, version) for tools in maps for name, version in tools.items()}


def _component(
    kind: Any,
    reference: str,
    name: str,
    version: str | None = None,
    *,
    description: str | None = None,
    sha256: str | None = None,
) -> Any:
    model = require("cyclonedx.model", purpose="writing the bill of materials")
    component = require("cyclonedx.model.component", purpose="writing the bill of materials")
    hashes = [] if sha256 is None else [model.HashType(alg=model.HashAlgorithm.SHA_256, content=sha256)]
    return component.Component(
        type=kind, bom_ref=reference, name=name, version=version, description=description, hashes=hashes
    )


def _serial_number(manifest: Manifest) -> uuid.UUID:
    content = json.dumps(manifest.model_dump(mode="json"), sort_keys=True)
    return uuid.uuid5(_NAMESPACE, hashlib.sha256(content.encode()).hexdigest())
