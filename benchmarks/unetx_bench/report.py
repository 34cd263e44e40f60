"""``report.json``: everything that a benchmark found; the schema is published beside this module.

Every picture, table and page is made from this file alone: samples, environment, gates, drift of every image, limits
and profiles are in it, and the pictures of worst cases lie beside it under the names that it gives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unetx_bench.ceilings import Ceilings
from unetx_bench.clock import ClockFigures
from unetx_bench.coldstart import ColdStart
from unetx_bench.energy import EnergyFigure
from unetx_bench.environment import Environment, State
from unetx_bench.errors import MeasurementError
from unetx_bench.load import LoadWindow, OtherProcess
from unetx_bench.profile import EngineProfile
from unetx_bench.roofline import Roofline
from unetx_bench.statistics import Comparison, Estimate

__all__ = [
    "REPORT_NAME",
    "SCHEMA_VERSION",
    "Attempt",
    "BundleFacts",
    "Candidate",
    "Drift",
    "DriftData",
    "Latency",
    "Method",
    "Ratio",
    "Report",
    "Run",
    "TimedImageFacts",
    "WorstCase",
    "read_report",
    "report_schema",
    "serialize_report",
]

SCHEMA_VERSION: Final = 1
REPORT_NAME: Final = "report.json"


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=False,
        json_schema_serialization_defaults_required=True,
    )


class Method(_Part):
    """How it was measured: the rules in words, and their numbers."""

    rules: dict[str, str]
    confidence: float
    half_width: float
    decision_confidence: float
    decision_margin: float
    maximum_seconds: float
    settle_s: float
    idle_gap_s: float
    threads: int | None
    pinned_cpus: tuple[int, ...] | None
    seed: int


class TimedImageFacts(_Part):
    """The image that latencies were measured with."""

    name: str
    sha256: str
    height_px: int
    width_px: int


class BundleFacts(_Part):
    """A bundle that was measured."""

    name: str
    variant: str
    precision: str
    manifest_sha256: str
    checkpoint_sha256: str
    input_px: tuple[int, int]
    flop: int
    refinement: str | None


class WorstCase(_Part):
    """An image on which masks differ most; ``pictures`` are file names beside the report, by what they show."""

    image: str
    class_name: str
    differing_px: int
    pictures: dict[str, str]


class Drift(_Part):
    """A candidate against the FP32 reference: the gate's decision, every image, the worst ones."""

    decision: dict[str, Any]
    images: tuple[dict[str, Any], ...]
    worst: tuple[WorstCase, ...]


class DriftData(_Part):
    """The images that drift was measured on, or why it was not."""

    data: str | None
    split: str | None
    note: str
    count: int
    gate: str | None
    image_sha256: tuple[str, ...]


class Candidate(_Part):
    """An engine or a peer: what it is, and everything that was found about it besides its latencies."""

    name: str
    kind: Literal["engine", "peer"]
    describes: str
    bundle: str
    target: str | None
    storage_dtype: str | None
    compute_dtype: str | None
    settings: dict[str, str]
    load_ms: float | None
    cold_start: ColdStart | None
    energy: tuple[EnergyFigure, ...]
    drift: Drift | None
    roofline: Roofline | None
    fraction_of_limit: float | None
    fraction_of_arithmetic: float | None
    profile: EngineProfile | None
    why_not: dict[str, str]


class Latency(_Part):
    """One contender: a candidate by one clock, and one number of images in a call."""

    contender: str
    candidate: str
    span: str
    batch: Annotated[int, Field(ge=1)]
    clock: str
    first_call_ms: float
    median_ms: Estimate | None
    p90_ms: Estimate | None
    p99_ms: Estimate | None
    least_ms: float
    mean_ms: float
    interrupted: int
    samples_ms: tuple[float, ...]


class Ratio(_Part):
    """Two contenders of one run."""

    numerator: str
    denominator: str
    comparison: Comparison


class Attempt(_Part):
    """One pass of the measurement; a disturbed one is repeated, and the quietest is reported."""

    rounds: int
    disturbances: tuple[str, ...]
    mean_others_cores: float


class Run(_Part):
    """The measurement that the latencies come from: all contenders in turns."""

    rounds: int
    stopped: str
    warmup_rounds: int
    warmup_seconds: float
    warmup_stable: bool
    clock: ClockFigures
    order: tuple[tuple[int, ...], ...]
    started_s: tuple[float, ...]
    disturbed: bool
    disturbances: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    load: tuple[LoadWindow, ...]
    other_processes: tuple[OtherProcess, ...]
    state_before: State | None
    state_after: State | None


class Report(_Part):
    """The whole report; ``answer`` says the outcome in a few sentences, each backed by what follows it."""

    schema_version: Literal[1] = 1
    product: str
    created: str
    answer: tuple[str, ...]
    method: Method
    environment: Environment
    image: TimedImageFacts
    bundles: tuple[BundleFacts, ...]
    run: Run
    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...]
    candidates: tuple[Candidate, ...]
    not_measured: dict[str, str]
    drift_data: DriftData
    ceilings: tuple[Ceilings, ...]


def serialize_report(report: Report) -> bytes:
    """Write a report as the text of ``report.json``; samples are kept to the nanosecond."""
    data = report.model_dump(mode="json")
    for row in data["latencies"]:
        row["samples_ms"] = [round(value, 6) for value in row["samples_ms"]]
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode("ascii")


def read_report(path: Path) -> Report:
    """Read a report that came from anywhere.

    Raises
    ------
    MeasurementError
        There is no such file, or it does not fit the schema.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MeasurementError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MeasurementError(
            f"{path.name} is no report of schema version {SCHEMA_VERSION}: {place}: {first['msg']}"
        ) from None


def report_schema() -> dict[str, Any]:
    """JSON schema of ``report.json``, as published beside this module in ``report.schema.json``."""
    schema = Report.model_json_schema(mode="serialization")
    for part in (schema, *schema["$defs"].values()):
        if "description" in part:  # the first line says what it is; the rest is for Python
            part["description"] = part["description"].partition("\n")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
