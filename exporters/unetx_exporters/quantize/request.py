"""What 8-bit graphs are asked for, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from unetx_exporters.gate import DriftOptions, Engine
from unetx_exporters.gate_images import GateImages
from unetx_exporters.quantize.candidates import LayerGroup, Plan
from unetx_exporters.quantize.images import CalibrationSet
from unetx_exporters.quantize.pareto import ParetoPoint
from unetx_exporters.quantize.search import SearchResult
from unetx_exporters.quantize.share import LEAST_SHARE
from unetx_opt.specs import InputContract

__all__ = ["GateTask", "QuantizeRequest", "QuantizedGraph"]


@dataclass(frozen=True, slots=True)
class GateTask:
    """What decides a search.

    Attributes
    ----------
    name : str
        Of the gate.
    images : GateImages
        It is decided on them.
    reference : callable
        The FP32 model.
    drift : DriftOptions
        Class names, and how logits become masks.
    """

    name: str
    images: GateImages
    reference: Engine
    drift: DriftOptions


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What 8-bit graphs are asked for.

    Attributes
    ----------
    graph : pathlib.Path
        Float32 graph.
    calibration : CalibrationSet
        Images for the ranges.
    contract : InputContract
        How an image is brought to the graph.
    schemes : tuple of str
        Keys of `SCHEMES`: what the targets of the build need.
    directory : pathlib.Path
        Where graphs are written.
    gate : GateTask or None
        None searches nothing: every layer is int8.
    state : pathlib.Path or None
        Folder that keeps what was measured, for a search that is started again.
    base_types : mapping of str to str
        Nodes that have a type whatever the search does: what float16 cannot hold.
    minimum_share : float
        Least share of the operations in int8: below it the result is no int8 engine.
    budget_s : float
        Seconds for the searches of all schemes together.
    seed : int
        Of the search.
    measured : bool
        Choose ranges, and what is done to the graph before, by the error that they leave in the logits; False takes
        the ranges of the least error of each tensor, which is quicker.
    """

    graph: Path
    calibration: CalibrationSet
    contract: InputContract
    schemes: tuple[str, ...]
    directory: Path
    gate: GateTask | None = None
    state: Path | None = None
    base_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    minimum_share: float = LEAST_SHARE
    budget_s: float = 360.0
    seed: int = 0
    measured: bool = True


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """One scheme's graph.

    Attributes
    ----------
    scheme : str
        A key of `SCHEMES`.
    path : pathlib.Path
        ONNX file.
    plan : Plan
        Types of the groups.
    groups : tuple of LayerGroup
        Whose types it gives.
    result : SearchResult or None
        How the plan was found; None without a gate.
    points : tuple of ParetoPoint
        Drift and time of some plans; empty without a gate.
    """

    scheme: str
    path: Path
    plan: Plan
    groups: tuple[LayerGroup, ...]
    result: SearchResult | None = None
    points: tuple[ParetoPoint, ...] = ()

    @property
    def asked_types(self) -> dict[str, str]:
        """Layer with weights -> type asked for it."""
        layers = {layer for group in self.groups for layer in group.layers}
        return {name: dtype for name, dtype in self.plan.layer_types(self.groups).items() if name in layers}

    def kept(self) -> dict[str, str]:
        """Layer that is not int8 -> why, as a sentence."""
        found: dict[str, str] = {}
        for index, (group, dtype) in enumerate(zip(self.groups, self.plan.types, strict=True)):
            if dtype == "int8":
                continue
            reason = f"{dtype} in the {self.scheme} graph"
            if "int8" not in group.types:
                reason += ", whose targets have no 8-bit arithmetic for it"
            elif self.result is not None:
                alone = self.result.sensitivities[index].alone
                reason += f": alone in int8 it takes {alone.disagreement:.2g} off the Dice coefficient"
            found |= dict.fromkeys(group.layers, reason)
        return found
