"""``table.json``: what was measured and what follows from it; its schema is published beside this module."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from unetx_opt.bundle.fields import Count, Fields, Name, Sha256, Text

__all__ = [
    "SCHEMA_NAME",
    "ClaimRecord",
    "DataRecord",
    "Difference",
    "EngineLatency",
    "Finding",
    "GraphRecord",
    "Interval",
    "PrintedFigures",
    "Reproduction",
    "Score",
    "SeedFigures",
    "SettingsRecord",
    "StepLatency",
    "VariantRecord",
    "Verdict",
    "WeightsRecord",
    "table_schema",
]

SCHEMA_NAME: Final = "table.schema.json"


class Verdict(StrEnum):
    """The answer to a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    NOT_DECIDABLE = "not decidable"


class Interval(Fields):
    """An estimate and its 95 % interval; the bounds are null where the sample is too small for one, and ``why`` says
    in which way.
    """

    value: float
    low: float | None
    high: float | None
    why: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two bounds or none")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} is upside down")
        return self


class PrintedFigures(Fields):
    """The article's row: its data set is not the one measured here, and it names no device."""

    model: Text
    accuracy: float
    accuracy_spread: float
    miou: float
    miou_spread: float
    latency_ms: float


class Score(Fields):
    """A figure over images: mean, standard deviation of the sample, 95 % bootstrap interval of the mean."""

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: Count


class Difference(Fields):
    """This variant minus another one, paired by image; ``p_holm`` is adjusted (Holm) over the variants that
    are compared with the baseline or, where that is not the other one, over those that the combination is compared
    with.
    """

    minus: Name
    figure: Name
    mean: float
    low: float
    high: float
    p_value: float
    p_holm: float | None
    n: Count


class GraphRecord(Fields):
    """The traced float32 graph: one multiplication or addition is one FLOP; bytes are those of an engine that fuses
    nothing, an upper bound.
    """

    structure_sha256: Sha256
    width: Count
    depth: Count
    parameters: Count
    flop: Count
    flop_ratio: float | None
    bytes_moved: Count
    bytes_ratio: float | None


class EngineLatency(Fields):
    """One engine: the median time of one inference of one image, without the step behind it and with it.

    Ratios are to the baseline's engine of the same kind, paired by round; null where there is none to compare with.
    """

    engine: Name
    precision: Name
    target: Name
    compute_dtype: Name
    ms: Interval
    rounds: Count
    ratio: Interval | None
    ms_with_step: Interval | None
    ratio_with_step: Interval | None


class StepLatency(Fields):
    """The step behind the network, on the grid of its input: the median time for one image."""

    name: Name
    ms: Interval
    rounds: Count


class WeightsRecord(Fields):
    """Where the weights come from, as their file says."""

    source: Text
    sha256: Sha256
    trained_on: Text | None
    trained_size_px: Count | None
    seed: Count | None


class SeedFigures(Fields):
    """The same variant trained from several seeds: figure -> seed -> its mean over the images."""

    figures: Annotated[dict[Name, dict[Name, float]], Field(max_length=20)]


class VariantRecord(Fields):
    """A row of the table; ``missing`` says why there is nothing to show, ``left_out`` what was not built or timed."""

    name: Name
    summary: Text
    missing: Text | None = None
    printed: PrintedFigures | None = None
    weights: WeightsRecord | None = None
    graph: GraphRecord | None = None
    scores: dict[Name, Score] = Field(default_factory=dict)
    scores_by_precision: dict[Name, dict[Name, Score]] = Field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    latencies: tuple[EngineLatency, ...] = ()
    step: StepLatency | None = None
    left_out: dict[Name, Text] = Field(default_factory=dict)
    seeds: SeedFigures | None = None


class DataRecord(Fields):
    """The images behind the accuracy columns."""

    name: Text
    kind: Literal["folder", "nih", "phantom"]
    split: Name | None
    images: Count
    available: Count
    images_sha256: Sha256
    note: Text


class Finding(Fields):
    """One figure that a claim is decided by; ``verdict`` is null where it is shown and decides nothing.

    ``judged`` is the interval that the rule was put to, where that is wider than the one of the estimate.
    """

    subject: Text
    estimate: Interval | None
    judged: Interval | None = None
    unit: Literal["accuracy", "ratio", ""]
    null: float | None
    printed: float | None
    verdict: Verdict | None
    note: Text


class ClaimRecord(Fields):
    """A claim of the article, the rule, what was found, the answer."""

    id: Name
    claim: Text
    remark: Text
    rule: Text
    verdict: Verdict
    reason: Text
    findings: tuple[Finding, ...]


class SettingsRecord(Fields):
    """How it was run; ``cut`` lists what ``--quick`` left out."""

    size_px: Count
    quick: bool
    precisions: tuple[Name, ...]
    targets: tuple[Name, ...]
    gate: Name
    cut: tuple[Text, ...]
    left_out: dict[Name, Text]
    clock: Text
    stopped: Text


class Reproduction(Fields):
    """The whole of ``table.json``."""

    schema_version: Literal[1] = 1
    program: Name
    version: Name
    created: Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]
    seconds: float
    device: Text
    environment: dict[str, Any]
    disturbances: tuple[Text, ...]
    data: DataRecord
    settings: SettingsRecord
    variants: tuple[VariantRecord, ...]
    claims: tuple[ClaimRecord, ...]


def table_schema() -> dict[str, Any]:
    """JSON schema of ``table.json``, as published in ``table.schema.json``."""
    schema = Reproduction.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
