"""The parts of the manifest, one class for each JSON object in it."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from unetx_opt.bundle.fields import Count, CountMap, Fields, FileName, Name, Sha256, Text, TextMap
from unetx_opt.specs import EngineRecord, Precision

if TYPE_CHECKING:
    from unetx_opt.metrics.gates import GateDecision, GateRow

__all__ = [
    "Build",
    "Engine",
    "EngineGate",
    "FileRecord",
    "GateEvidence",
    "GateFinding",
    "ImageSet",
    "KeptLayer",
    "Label",
    "Operations",
    "Postprocess",
    "PrecisionRecord",
    "Product",
    "SkippedTarget",
    "SourceCheckpoint",
]


#: A CUDA compute capability such as "8.6".
Capability = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]


class Product(Fields):
    """The program that wrote the bundle."""

    name: Name
    version: Name


class Label(Fields):
    """One value of the mask. Index 0 is the background; a binary model has index 1 besides."""

    index: Annotated[int, Field(ge=0, le=63)]
    name: Name
    colour: Annotated[str, StringConstraints(pattern=r"^#[0-9a-f]{6}$")] | None = None


class Postprocess(Fields):
    """The step between an engine's logits and the mask, as every backend of it reads it.

    ``grid`` is where it runs: "input", on the network's grid inside the padding and on the image as the network saw
    it; its result is then brought back to the source image. Lengths among the parameters are pixels of that grid
    where its longer side is ``grid_px``, and are scaled with it.
    """

    name: Name
    grid: Literal["input"] = "input"
    parameters: Annotated[dict[Name, float], Field(max_length=100)]


class KeptLayer(Fields):
    """A layer of the typed graph that was kept in fp32, and why."""

    name: Text
    reason: Text


class PrecisionRecord(Fields):
    """The precision that was asked for, and what the typed graph holds."""

    requested: Precision
    kept_fp32: Annotated[tuple[KeptLayer, ...], Field(max_length=20_000)] = ()
    dtype_counts: CountMap


class Operations(Fields):
    """Arithmetic of one image, counted from the graph; one multiplication or addition is one FLOP."""

    flop: Count
    baseline_flop: Annotated[Count, Field(ge=1)]
    ratio: Annotated[float, Field(ge=0)]
    by_type: CountMap
    parameters: Count

    @model_validator(mode="after")
    def _check_ratio(self) -> Self:
        expected = self.flop / self.baseline_flop
        if abs(self.ratio - expected) > 1e-6 * max(1.0, expected):
            raise ValueError(f"ratio is {self.ratio}, but flop / baseline_flop is {expected:.6g}")
        return self


# As the gates compare; theirs would bring numpy and scipy to a reader of manifests.
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = MappingProxyType(
    {">=": operator.ge, ">": operator.gt, "<=": operator.le}
)


class GateFinding(Fields):
    """What one rule of a drift gate found for one class; ``value`` is None where it is not finite."""

    rule: Text
    description: Text
    class_name: Name
    value: float | None
    comparison: Literal[">=", ">", "<="]
    limit: float
    passed: bool
    worst_image: Text | None

    @model_validator(mode="after")
    def _check_verdict(self) -> Self:
        # What is not finite keeps no limit.
        keeps = self.value is not None and _COMPARISONS[self.comparison](self.value, self.limit)
        if self.passed != keeps:
            raise ValueError(f"passed is {self.passed}, but {self.value} {self.comparison} {self.limit} is {keeps}")
        return self


class EngineGate(Fields):
    """A gate's decision about one engine.

    ``evaluated`` is "engine" where the engine itself ran, "graph" where its typed graph ran under
    onnxruntime-cpu; ``why_graph`` then says why the engine could not run on the build host.
    """

    name: Name
    passed: bool
    evaluated: Literal["engine", "graph"]
    why_graph: Text | None
    has_truth: bool
    mean_agreement: float
    worst_agreement: float
    worst_agreement_image: Text
    rows: Annotated[tuple[GateFinding, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _check_reason(self) -> Self:
        if (self.evaluated == "graph") != (self.why_graph is not None):
            raise ValueError("why_graph is given if and only if evaluated is 'graph'")
        if self.passed != all(row.passed for row in self.rows):
            raise ValueError("passed contradicts the rows")
        return self

    @classmethod
    def from_decision(cls, decision: GateDecision, why_graph: str | None = None) -> Self:
        """Take a gate's decision; `why_graph` says why the typed graph ran in place of the engine."""
        return cls(
            name=decision.name,
            passed=decision.passed,
            evaluated="engine" if why_graph is None else "graph",
            why_graph=why_graph,
            has_truth=decision.has_truth,
            mean_agreement=decision.mean_agreement,
            worst_agreement=decision.worst_agreement,
            worst_agreement_image=decision.worst_agreement_image,
            rows=tuple(_finding(row) for row in decision.rows),
        )


def _finding(row: GateRow) -> GateFinding:
    fields = dataclasses.asdict(row)
    return GateFinding(**{**fields, "value": row.value if math.isfinite(row.value) else None})


class Engine(Fields):
    """One engine: the fields of `EngineRecord`, and what its gate found (None where the gate was off)."""

    target: Name
    files: Annotated[tuple[FileName, ...], Field(min_length=1, max_length=100)]
    settings: TextMap = Field(default_factory=dict)
    storage_dtype: Name
    compute_dtype: Name
    layers: TextMap = Field(default_factory=dict)
    compute_capabilities: Annotated[tuple[Capability, ...], Field(max_length=100)] = ()
    tools: TextMap = Field(default_factory=dict)
    gate: EngineGate | None = None

    @classmethod
    def from_record(cls, record: EngineRecord, gate: EngineGate | None = None) -> Self:
        """Take an engine as its builder left it."""
        return cls(
            target=record.target,
            files=record.files,
            settings=dict(record.settings),
            storage_dtype=record.storage_dtype,
            compute_dtype=record.compute_dtype,
            layers=dict(record.layers),
            compute_capabilities=record.compute_capabilities,
            tools=dict(record.tools),
            gate=gate,
        )

    @property
    def record(self) -> EngineRecord:
        """The engine as the runtime reads it."""
        return EngineRecord(
            target=self.target,
            files=self.files,
            settings=self.settings,
            storage_dtype=self.storage_dtype,
            compute_dtype=self.compute_dtype,
            layers=self.layers,
            compute_capabilities=self.compute_capabilities,
            tools=self.tools,
        )


class SkippedTarget(Fields):
    """A target that was not built, and the reason."""

    target: Name
    reason: Text


class FileRecord(Fields):
    """Hash and size in bytes of one file."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=2**40)]


class SourceCheckpoint(Fields):
    """The checkpoint that the engines come from; ``file`` is its name in the bundle where it is shipped."""

    sha256: Sha256
    source: Text
    variant: Name
    file: FileName | None = None


class ImageSet(Fields):
    """Images that were used as evidence, by hash; ``data`` is "phantom" or the name of a data folder."""

    data: Text
    split: Text | None
    count: Count
    image_sha256: Annotated[tuple[Sha256, ...], Field(max_length=50_000)]

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.count != len(self.image_sha256):
            raise ValueError(f"count is {self.count}, but {len(self.image_sha256)} image hashes are listed")
        return self


class GateEvidence(Fields):
    """Which gate decided ("off" for none), and on which images."""

    name: Name
    images: ImageSet | None

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if (self.name == "off") != (self.images is None):
            raise ValueError("images are listed if and only if the gate is not 'off'")
        return self


class Build(Fields):
    """How the bundle was made. ``command`` holds file names without their directories; ``created`` is UTC."""

    command: Annotated[tuple[Text, ...], Field(max_length=1000)]
    seeds: CountMap
    tools: TextMap
    host: TextMap
    created: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for argument in command:
            if "/" in argument or "\\" in argument:
                raise ValueError(f"{argument!r} holds a path, expected file names only")
        return command
