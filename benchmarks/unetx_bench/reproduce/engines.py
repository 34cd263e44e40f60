"""Bundles of one variant at every precision, and the facts of its graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_bench.reproduce.plan import Plan
from unetx_bench.reproduce.record import GraphRecord
from unetx_bench.reproduce.stages import WORK_NAME, Workplace
from unetx_bench.reproduce.weights import Weights
from unetx_exporters.options import BuildOptions
from unetx_opt import __version__
from unetx_opt.bundle.manifest import MANIFEST_NAME, Manifest
from unetx_opt.errors import BundleError
from unetx_opt.models.variants import VARIANTS
from unetx_opt.optional import require
from unetx_opt.specs import Precision

if TYPE_CHECKING:
    import onnx

__all__ = ["Built", "build_variant", "discard_bundles", "graph_facts"]

#: The target whose fp32 engine is the traced graph, byte for byte.
_PLAIN_GRAPH: Final = "onnxruntime-cpu"
_BUNDLES: Final = "bundles"
_PHANTOMS: Final = "phantoms"


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle of this run.

    Attributes
    ----------
    path : pathlib.Path
        Its folder.
    precision : Precision
        What was asked for.
    manifest : Manifest
        What it holds.
    sha256 : str
        Of its manifest, which identifies it.
    """

    path: Path
    precision: Precision
    manifest: Manifest
    sha256: str

    @property
    def step(self) -> str | None:
        """Name of the step behind the network."""
        return None if self.manifest.postprocess is None else self.manifest.postprocess.name


def build_variant(
    variant: str, precision: Precision, weights: Weights, plan: Plan, size_px: int, tell: Callable[[str], None]
) -> Built:
    """Build one bundle, or take the one that an earlier run left.

    Parameters
    ----------
    variant : str
        A key of the table of variants.
    precision : Precision
        What the engines store and, where they can, compute in.
    weights : Weights
        Of the variant.
    plan : Plan
        Targets, data and gate.
    size_px : int
        Height and width of the input.
    tell : callable
        Told what is going on.

    Raises
    ------
    UnetxError
        It cannot be built, or fails its gate.
    """
    from unetx_exporters.pipeline import build_bundle

    data = _PHANTOMS if plan.build_data is None else f"data-{plan.data_identity}"
    path = plan.options.output / WORK_NAME / _BUNDLES / data / f"{variant}-{precision}"
    options = BuildOptions(
        variant=variant,
        precision=precision,
        output=path,
        targets=plan.targets,
        checkpoint=weights.path,
        size_px=size_px,
        data=plan.build_data,
        gate=plan.extent.gate,
        pictures=False,
        overwrite=True,
        command=("unetx-opt", "reproduce"),
    )
    kept = _open(path, precision) if path.is_dir() else None
    if kept is not None and _fits(kept.manifest, options, weights):
        return kept
    tell(f"building {variant} {precision}")
    build_bundle(options)
    built = _open(path, precision)
    assert built is not None  # noqa: S101  (it was just written and is whole)
    return built


def discard_bundles(output: Path) -> None:
    """Remove the bundles that runs in an output built, whole or damaged; what else lies there stays."""
    root = output / WORK_NAME / _BUNDLES
    names = tuple(f"{variant}-{precision}" for variant in VARIANTS for precision in Precision)
    for path in (folder / name for folder in (root / _PHANTOMS, *root.glob("data-*")) for name in names):
        if (path / MANIFEST_NAME).is_file() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _open(path: Path, precision: Precision) -> Built | None:
    from unetx_opt.bundle.open import open_verified

    try:
        with open_verified(path) as bundle:
            return Built(path, precision, bundle.manifest, bundle.manifest_sha256)
    except BundleError:
        return None


def _fits(manifest: Manifest, options: BuildOptions, weights: Weights) -> bool:
    """Whether a kept bundle is what would be built now; its folder stands for its data."""
    return (
        manifest.product.version == __version__
        and manifest.variant == options.variant
        and manifest.checkpoint.sha256 == weights.record.sha256
        and manifest.precision.requested is options.precision
        and (manifest.input.height, manifest.input.width) == (options.size_px, options.size_px)
        and {engine.target for engine in manifest.engines} == set(options.targets)
        and manifest.gate.name == options.gate_name
    )


def graph_facts(
    variant: str, weights: Weights, bundles: Sequence[Built], size_px: int, place: Workplace
) -> GraphRecord:
    """Count the float32 graph of a variant for one image, and hash it; the ratios are left open.

    Parameters
    ----------
    variant : str
        A key of the table of variants.
    weights : Weights
        Of the variant.
    bundles : sequence of Built
        Its bundles: the graph is the very one that the fp32 engine of ONNX Runtime holds, where there is one.
        Otherwise the network is traced.
    size_px : int
        Height and width of the input.
    place : Workplace
        Where the result is kept.

    Raises
    ------
    UnetxError
        The graph cannot be traced at this size, or holds an operator that cannot be counted.
    """
    key = {"weights": weights.record.sha256, "size_px": size_px, "version": __version__}
    facts = place.recall(f"graph-{variant}", key, lambda: _count(variant, weights, bundles, size_px))
    return GraphRecord(**facts, flop_ratio=None, bytes_ratio=None)


def _count(variant: str, weights: Weights, bundles: Sequence[Built], size_px: int) -> dict[str, Any]:
    from unetx_exporters.onnx.digest import structure_sha256
    from unetx_exporters.onnx.operations import count_operations

    graph = _stored_graph(bundles) or _trace(variant, weights, size_px)
    count = count_operations(graph)
    spec = bundles[0].manifest.spec
    return {
        "structure_sha256": structure_sha256(graph),
        "width": spec.width,
        "depth": spec.depth,
        "parameters": count.parameters,
        "flop": count.total_flop,
        "bytes_moved": count.bytes_moved,
    }


def _stored_graph(bundles: Sequence[Built]) -> onnx.ModelProto | None:
    from unetx_opt.bundle.open import open_verified

    for built in bundles:
        names = [engine.files[0] for engine in built.manifest.engines if engine.target == _PLAIN_GRAPH]
        if built.precision is Precision.FP32 and names:
            package = require("onnx", purpose="reading a graph")
            with open_verified(built.path) as bundle:
                graph: onnx.ModelProto = package.load_model_from_string(bundle.read(names[0]))
            return graph
    return None


def _trace(variant: str, weights: Weights, size_px: int) -> onnx.ModelProto:
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_opt.models.checkpoint import load_model, read_checkpoint

    checkpoint = read_checkpoint(weights.path, variant=variant)
    return trace_onnx(load_model(checkpoint), size_px, size_px).model
