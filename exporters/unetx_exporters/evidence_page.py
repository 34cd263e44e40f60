"""The rest of the evidence on the gate's page: what engines compute, junctions, calibration, search, versions.

The gate writes its page as soon as it is decided; what is known only at the end of a build is put behind it, so that
one page answers for the whole bundle.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_exporters.gate_report import table_html
from unetx_opt.errors import ExportError
from unetx_opt.files import write_file

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest
    from unetx_opt.bundle.parts import Engine

__all__ = ["complete_page", "render_sections"]

_END: Final = "\n</main>"
_MOST_SENSITIVE: Final = 8


def complete_page(page: Path, manifest: Manifest) -> None:
    """Put what the whole build found behind the gate's part of its page.

    Parameters
    ----------
    page : pathlib.Path
        As `write_gate_report` wrote it; the other evidence lies beside it.
    manifest : Manifest
        Of the bundle.

    Raises
    ------
    ExportError
        The page is not one of this module's.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(_END) != 1:
        raise ExportError(f"{page.name} has {text.count(_END)} ends of its content, expected 1: build again")
    sections = "\n".join(render_sections(manifest, page.parent))
    write_file(page, text.replace(_END, f"\n{sections}{_END}").encode("utf-8"))


def render_sections(manifest: Manifest, evidence: Path) -> list[str]:
    """Render the sections, those without content left out.

    Parameters
    ----------
    manifest : Manifest
        Engines with their layers, calibration, versions.
    evidence : pathlib.Path
        Folder with ``junctions.json`` and ``search.json``, which may be missing.
    """
    found = (
        _attestation(manifest),
        _junctions(evidence),
        _calibration(manifest),
        _search(evidence),
        _origin(manifest),
    )
    return [section for section in found if section]


def _attestation(manifest: Manifest) -> str:
    names = [_engine_name(engine, manifest.engines) for engine in manifest.engines]
    rows = "\n".join(
        _row(name, engine.storage_dtype, engine.compute_dtype, _counts(engine.layers.values()))
        for name, engine in zip(names, manifest.engines, strict=True)
    )
    layers = dict.fromkeys(layer for engine in manifest.engines for layer in engine.layers)
    listed = "\n".join(
        _row(layer, *(engine.layers.get(layer, "\N{EN DASH}") for engine in manifest.engines)) for layer in layers
    )
    return (
        "<h2>What each engine computes</h2>\n<p>Read back from the built engines, layer by layer.</p>\n"
        + table_html("Types as they were read back", ("Engine", "Stored", "Most convolutions", "Layers"), rows)
        + f"\n<details><summary>All {len(layers)} layers</summary>\n"
        + table_html("Type of each layer in each engine", ("Layer", *names), listed)
        + "\n</details>"
    )


def _engine_name(engine: Engine, engines: Sequence[Engine]) -> str:
    if sum(other.target == engine.target for other in engines) == 1:
        return engine.target
    return " ".join([engine.target, *engine.settings.values()])


def _junctions(evidence: Path) -> str:
    rows = _read(evidence / "junctions.json").get("rows", [])
    worst: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["engine"], row["weights"]
        if key not in worst or _share(row) > _share(worst[key]):
            worst[key] = row
    if not worst:
        return ""
    body = "\n".join(
        _row(engine, weights, row["tensor"], row["against"], f"{row['error']:.3g}", f"{row['limit']:.3g}")
        for (engine, weights), row in worst.items()
    )
    header = ("Engine", "Weights", "Tensor", "Against", "Error", "Limit")
    return (
        f"<h2>Skip junctions</h2>\n<p>{len(rows)} comparisons of engines with PyTorch and ONNX Runtime where skip "
        "connections join; junctions.json lists them.</p>\n"
        + table_html("The comparison nearest to its limit", header, body)
    )


def _share(row: Mapping[str, Any]) -> float:
    return float(row["error"] or 0.0) / float(row["limit"]) if row["limit"] else 0.0


def _calibration(manifest: Manifest) -> str:
    images = manifest.calibration
    if images is None:
        return ""
    source = images.data if images.split is None else f"{images.data}, split {images.split}"
    return (
        f"<h2>Calibration</h2>\n<p>8-bit ranges come from {images.count} images of {escape(source)}, none of which "
        "decides the gate; manifest.json lists them by the SHA-256 of their pixels.</p>"
    )


def _search(evidence: Path) -> str:
    schemes = _read(evidence / "search.json").get("schemes", [])
    return "\n".join(_scheme(scheme, evidence) for scheme in schemes)


def _scheme(scheme: Mapping[str, Any], evidence: Path) -> str:
    measured = [group for group in scheme["groups"] if group["sensitivity"] is not None]
    measured.sort(key=lambda group: -(group["sensitivity"]["alone"]["disagreement"] or 0.0))
    body = "\n".join(
        _row(group["name"], group["dtype"], f"{group['sensitivity']['alone']['disagreement'] or 0.0:.2g}")
        for group in measured[:_MOST_SENSITIVE]
    )
    methods = Counter(found["method"] for found in scheme["preparation"]["ranges"].values())
    helped = [step["name"] for step in scheme["preparation"]["steps"] if step["kept"]]
    text = (
        f"{scheme['int8_share']:.0%} of the operations are int8. Ranges: {_counts(methods.elements())}. Corrected, "
        f"because it made the error smaller: {', '.join(helped) or 'nothing'}."
    )
    header = ("Layer", "Type", "Dice that it takes off alone in int8")
    return (
        f"<h2>Search, {escape(scheme['scheme'])} graph</h2>\n<p>{escape(text)}</p>\n"
        + (table_html("The most sensitive layers", header, body) if body else "")
        + _picture(evidence / f"pareto-{scheme['scheme']}.svg", f"Drift against time, {scheme['scheme']} graph")
    )


def _picture(path: Path, title: str) -> str:
    if not path.is_file():
        return ""
    # As a picture and not as part of the page: its style is its own.
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'\n<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(title)}: a point is a plan of the search, the ring is what was built.</figcaption>"
        "</figure>"
    )


def _origin(manifest: Manifest) -> str:
    entries: list[tuple[str, str]] = [
        ("Checkpoint", f"{manifest.checkpoint.source}, SHA-256 {manifest.checkpoint.sha256}"),
        ("Command", " ".join(manifest.build.command)),
        ("Made by", f"{manifest.product.name} {manifest.product.version} at {manifest.build.created}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in manifest.build.tools.items())),
        *((f"Kept wider: {kept.name}", kept.reason) for kept in manifest.precision.kept_fp32),
        *((f"Not built: {row.target}", row.reason) for row in manifest.skipped),
        *(("Note", note) for note in manifest.notes),
    ]
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries)
    return f"<h2>How the bundle was made</h2>\n<dl>{items}</dl>"


def _row(name: str, *cells: str) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    )


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(values).most_common())


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return found
