"""`unetx-opt inspect`: what a bundle holds, read from its verified manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt.cli.output import echo_json
from unetx_opt.models.receptive_field import receptive_field_px

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

    from unetx_opt.bundle.manifest import Manifest
    from unetx_opt.bundle.open import Bundle
    from unetx_opt.bundle.parts import Engine, EngineGate

__all__ = ["inspect"]

_WIDTH_WITHOUT_TERMINAL = 160


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and what follows from it as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds, after checking every byte of it."""
    from unetx_opt.bundle.open import open_verified

    with open_verified(bundle) as opened:
        if as_json:
            echo_json(_to_json(opened))
        else:
            _print(opened)


def _to_json(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "kind": bundle.kind,
        "manifest_sha256": bundle.manifest_sha256,
        "derived": {
            "size_bytes": sum(record.size for record in manifest.files.values()),
            "gflop_per_image": manifest.operations.flop / 1e9,
            "operations_change_percent": _change_percent(manifest),
            "receptive_field_px": receptive_field_px(manifest.spec),
            "engines": [
                {
                    "target": engine.target,
                    "size_bytes": _engine_size(manifest, engine),
                    "layer_counts": dict(Counter(engine.layers.values())),
                    "gate": _verdict(engine.gate),
                }
                for engine in manifest.engines
            ],
        },
        "manifest": manifest.model_dump(mode="json"),
    }


def _print(bundle: Bundle) -> None:
    import sys

    from rich.console import Console

    # Nothing in a manifest is markup, and a pipe must not be folded at 80 columns.
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    manifest = bundle.manifest
    console.print(_facts_table(_facts(bundle)))
    console.print(_engine_table(manifest))
    for target in manifest.skipped:
        console.print(f"Not built: {target.target}: {target.reason}")
    console.print(_gate_table(manifest))
    console.print(_file_table(manifest))
    console.print(_facts_table(_origin(manifest)))


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    size = sum(record.size for record in manifest.files.values())
    yield (
        "Bundle",
        f"{bundle.path} ({bundle.kind}, {len(manifest.files)} files besides the manifest, {_megabytes(size)})",
    )
    yield "Manifest", f"SHA-256 {bundle.manifest_sha256}, every byte checked"
    yield "Variant", manifest.variant
    yield "Model", _describe_spec(manifest)
    field_px = receptive_field_px(manifest.spec)
    yield "Receptive field", f"{field_px} x {field_px} px of the input"
    yield "Labels", ", ".join(f"{label.index} {label.name}" for label in manifest.labels)
    yield "Operations", _describe_operations(manifest)
    yield "Parameters", f"{manifest.operations.parameters:,}"
    yield "Input", _describe_input(manifest)
    if manifest.postprocess is not None:
        settings = ", ".join(f"{name} {value:g}" for name, value in manifest.postprocess.parameters.items())
        where = "on the network's grid, then brought to the image"
        yield "Postprocess", f"{manifest.postprocess.name} ({settings or 'no parameters'}), {where}"
    yield (
        "Precision",
        f"{manifest.precision.requested.value}: {_counts(manifest.precision.dtype_counts)} in the graph",
    )
    for layer in manifest.precision.kept_fp32:
        yield "Kept in fp32", f"{layer.name}: {layer.reason}"
    for note in manifest.notes:
        yield "Note", note


def _origin(manifest: Manifest) -> Iterator[tuple[str, str]]:
    build, checkpoint = manifest.build, manifest.checkpoint
    shipped = f"shipped as {checkpoint.file}" if checkpoint.file else "not shipped"
    yield "Checkpoint", f"{checkpoint.source} ({checkpoint.variant}, {shipped}), SHA-256 {checkpoint.sha256}"
    if manifest.calibration is not None:
        yield "Calibration", f"{manifest.calibration.count} images of {manifest.calibration.data}"
    yield "Made by", f"{manifest.product.name} {manifest.product.version} at {build.created}"
    yield "Command", " ".join(build.command)
    yield "Tools", ", ".join(f"{name} {version}" for name, version in build.tools.items())
    yield "Seeds", ", ".join(f"{name} {seed}" for name, seed in build.seeds.items())
    yield "Build host", ", ".join(f"{name} {value}" for name, value in build.host.items())
    yield "Model card", manifest.model_card or "none"
    yield "Bill of materials", manifest.sbom or "none"


def _describe_spec(manifest: Manifest) -> str:
    spec = manifest.spec
    parts = [f"width {spec.width}", f"depth {spec.depth}", f"{spec.upsampling.value} upsampling"]
    if spec.gate is not None:
        levels = ", ".join(map(str, spec.gate_levels)) or "none"
        parts.append(f"added skips, {spec.gate.value} gate at levels {levels}, window {spec.gate_window}")
    if spec.dilations:
        parts.append(f"dilations {', '.join(map(str, spec.dilations))}")
    return ", ".join(parts)


def _describe_operations(manifest: Manifest) -> str:
    operations = manifest.operations
    change = _change_percent(manifest)
    compared = "as many as" if abs(change) < 0.05 else f"{change:+.1f} % against"
    return (
        f"{operations.flop / 1e9:.4g} GFLOP for one image, {compared} unet at equal width "
        f"({operations.baseline_flop / 1e9:.4g})"
    )


def _change_percent(manifest: Manifest) -> float:
    return (manifest.operations.ratio - 1.0) * 100.0


def _describe_input(manifest: Manifest) -> str:
    contract = manifest.input
    if contract.window is not None:
        grey = f"grey values {contract.window[0]:g} to {contract.window[1]:g}"
    else:
        grey = f"percentiles {contract.lower_percentile:g} to {contract.upper_percentile:g}"
    low, high = contract.value_range
    return (
        f"{contract.height} x {contract.width} px, {contract.channels} channel(s), {grey} become {low:g} to "
        f"{high:g}, padding {contract.padding_value:g}"
    )


def _verdict(gate: EngineGate | None) -> str:
    if gate is None:
        return "not gated"
    verdict = f"{gate.name} {'passed' if gate.passed else 'FAILED'}"
    if gate.evaluated == "engine":
        return f"{verdict}, by running the engine"
    return f"{verdict}, by its graph via onnxruntime-cpu: {gate.why_graph}"


def _engine_size(manifest: Manifest, engine: Engine) -> int:
    return sum(manifest.files[name].size for name in engine.files)


def _engine_table(manifest: Manifest) -> Table:
    table = _table("Engine", "Files", "Size", "Stored", "Computed", "Layers", "Runs on", "Settings", "Gate")
    for engine in manifest.engines:
        capabilities = ", ".join(engine.compute_capabilities)
        table.add_row(
            engine.target,
            "\n".join(engine.files),
            _megabytes(_engine_size(manifest, engine)),
            engine.storage_dtype,
            engine.compute_dtype,
            _counts(Counter(engine.layers.values())),
            f"CUDA {capabilities}" if capabilities else "CPU",
            ", ".join(f"{name}={value}" for name, value in engine.settings.items()),
            _verdict(engine.gate),
        )
    return table


def _gate_table(manifest: Manifest) -> Table | str:
    images = manifest.gate.images
    if images is None:
        return "Gate off: whether the engines keep the model's accuracy was not checked"
    split = f", split {images.split}" if images.split else ""
    table = _table("Engine", "Class", "Rule", "Found", "Expected", "Verdict", "Worst image")
    table.title = f"Gate {manifest.gate.name} on {images.count} image(s) of {images.data}{split}"
    for engine in manifest.engines:
        for row in engine.gate.rows if engine.gate is not None else ():
            found = "none" if row.value is None else f"{row.value:.6g}"
            verdict = "passed" if row.passed else "FAILED"
            expected = f"{row.comparison} {row.limit:g}"
            table.add_row(
                engine.target, row.class_name, row.description, found, expected, verdict, row.worst_image or ""
            )
    return table


def _file_table(manifest: Manifest) -> Table:
    table = _table("File", "Bytes", "SHA-256")
    for name, record in manifest.files.items():
        table.add_row(name, str(record.size), record.sha256)
    return table


def _facts_table(facts: Iterator[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "not read back"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size} bytes"
