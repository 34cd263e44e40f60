"""Words and numbers that every rendering shares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.record import Difference, Finding, Interval, Reproduction, Score, VariantRecord

__all__ = [
    "ABSENT",
    "FIGURE_TITLES",
    "describe_data",
    "describe_finding",
    "engine_names",
    "find_difference",
    "format_difference",
    "format_interval",
    "format_p_value",
    "format_score",
    "format_spread",
    "headline_engine",
]

#: Figure -> what tables call it.
FIGURE_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "accuracy": "pixel accuracy",
        "balanced_accuracy": "class-balanced accuracy",
        "miou": "mIoU",
        "dice": "Dice",
    }
)
#: What stands where there is no figure.
ABSENT: Final = "-"


def describe_data(result: Reproduction) -> str:
    """Name the data in one line."""
    data = result.data
    if data.kind == "phantom":
        return f"{data.images} procedural phantoms"
    part = "" if data.images == data.available else f" of {data.available}"
    return f"{data.name}, split {data.split}, {data.images}{part} images"


def engine_names(result: Reproduction) -> tuple[str, ...]:
    """Name every engine that was timed, in the order of the first variant that has it."""
    return tuple(dict.fromkeys(latency.engine for row in result.variants for latency in row.latencies))


def describe_finding(finding: Finding) -> tuple[str, str]:
    """Put a finding's figures and its answer into words."""
    parts = [] if finding.estimate is None else [format_interval(finding.estimate, finding.unit)]
    if finding.printed is not None:
        unit = "{:+.5f}" if finding.unit == "accuracy" else "{:.3f}"
        parts.append(f"printed effect carried over: {unit.format(finding.printed)}")
    judged = finding.judged
    if judged is not None and judged.low is not None and judged.high is not None and finding.estimate != judged:
        parts.append(f"judged as {judged.low:.3f} to {judged.high:.3f} with the run's noise")
    if finding.note:
        parts.append(finding.note)
    return "; ".join(parts), "shown only" if finding.verdict is None else finding.verdict.value


def find_difference(row: VariantRecord, figure: str) -> Difference | None:
    """Find a variant's difference to the baseline."""
    return next((d for d in row.differences if d.minus == BASELINE and d.figure == figure), None)


def format_difference(found: Difference | None) -> str:
    """Write a difference with its interval."""
    return ABSENT if found is None else f"{found.mean:+.5f} ({found.low:+.5f} to {found.high:+.5f})"


def format_score(score: Score | None) -> str:
    """Write a mean with its interval."""
    if score is None:
        return ABSENT
    if score.low is None or score.high is None:
        return f"{score.mean:.4f} (no interval of one image)"
    return f"{score.mean:.4f} ({score.low:.4f} to {score.high:.4f})"


def format_spread(values: Sequence[float]) -> str:
    """Write the mean of several trainings and their sample standard deviation, which one training has not."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} +/- {statistics.stdev(values):.4f}" if len(values) > 1 else mean


#: Unit -> how a number of it is written.
_FORMS: Final[Mapping[str, str]] = MappingProxyType({"accuracy": "{:+.5f}", "ratio": "{:.3f}", "ms": "{:.2f}"})


def format_interval(interval: Interval, unit: str) -> str:
    """Write an estimate with its interval; a count has an interval of no width, which is left out."""
    form = _FORMS.get(unit, "{:.4g}")
    value = form.format(interval.value) + (" ms" if unit == "ms" else "")
    if interval.why is not None:
        return f"{value} (no interval: {interval.why})"
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return value
    return f"{value} ({form.format(interval.low)} to {form.format(interval.high)})"


def format_p_value(value: float) -> str:
    """Write a p-value."""
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def headline_engine(result: Reproduction) -> str | None:
    """Name the engine whose times stand beside the printed ones: the baseline's in the first precision that the
    runtime prefers on this device.
    """
    from unetx_opt.runtime.sessions.table import SESSIONS

    baseline = next((row for row in result.variants if row.name == BASELINE), None)
    latencies = () if baseline is None else baseline.latencies
    first = [one for one in latencies if one.precision == result.settings.precisions[0]]
    ranked = sorted(first, key=lambda one: list(SESSIONS).index(one.target) if one.target in SESSIONS else 99)
    return ranked[0].engine if ranked else None
