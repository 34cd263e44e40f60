"""What else differs between two reports: drift of the engines, and the machine and method they were measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from unetx_bench.report import Candidate, Report
from unetx_bench.timings import candidate_titles

__all__ = ["DriftChange", "EnvironmentChange", "drift_changes", "environment_changes"]

#: Settings of the method that change what a latency means.
_METHOD: Final = ("threads", "pinned_cpus", "idle_gap_s", "settle_s")


@dataclass(frozen=True, slots=True)
class EnvironmentChange:
    """One property of the machine or the method; None where it was not known."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class DriftChange:
    """An engine's drift in both runs.

    Attributes
    ----------
    engine : str
        Model and engine.
    gate_before, gate_after : str or None
        Names of the gates; None where drift was not measured.
    passed_before, passed_after : bool or None
        Their decisions.
    agreement_before, agreement_after : float or None
        Mean Dice coefficient with the reference's masks.
    same_images : bool
        Whether both were measured on the same images.
    """

    engine: str
    gate_before: str | None
    gate_after: str | None
    passed_before: bool | None
    passed_after: bool | None
    agreement_before: float | None
    agreement_after: float | None
    same_images: bool

    @property
    def is_broken(self) -> bool:
        """Whether it fails the gate that it passed."""
        return self.gate_before == self.gate_after and self.passed_before is True and self.passed_after is False

    @property
    def is_change(self) -> bool:
        """Whether anything is not the same."""
        before = (self.gate_before, self.passed_before, self.agreement_before)
        return before != (self.gate_after, self.passed_after, self.agreement_after)


def drift_changes(before: Report, after: Report) -> tuple[DriftChange, ...]:
    """Compare the drift of the engines that are in both reports."""
    first, second = _engines(before), _engines(after)
    same = set(before.drift_data.image_sha256) == set(after.drift_data.image_sha256)
    rows = []
    for name in first:
        if name in second:
            old, new = _decision(first[name]), _decision(second[name])
            rows.append(
                DriftChange(
                    engine=name,
                    gate_before=old.get("name"),
                    gate_after=new.get("name"),
                    passed_before=old.get("passed"),
                    passed_after=new.get("passed"),
                    agreement_before=old.get("mean_agreement"),
                    agreement_after=new.get("mean_agreement"),
                    same_images=same,
                )
            )
    return tuple(rows)


def environment_changes(before: Report, after: Report) -> tuple[EnvironmentChange, ...]:
    """List what is not the same on the machine and in the method; the state of the moment is left out."""
    first, second = _properties(before), _properties(after)
    names = dict.fromkeys([*first, *second])
    return tuple(
        EnvironmentChange(name, first.get(name), second.get(name))
        for name in names
        if first.get(name) != second.get(name)
    )


def _engines(report: Report) -> dict[str, Candidate]:
    titles = candidate_titles(report)
    return {" ".join(titles[row.name]): row for row in report.candidates if row.kind == "engine"}


def _decision(row: Candidate) -> Mapping[str, Any]:
    return {} if row.drift is None else row.drift.decision


def _properties(report: Report) -> dict[str, str]:
    found: dict[str, str] = {"program": report.product}
    for field in dataclasses.fields(report.environment):
        value = getattr(report.environment, field.name)
        if field.name in {"state", "why_not"} or value is None:
            continue
        if isinstance(value, Mapping):
            prefix = "" if field.name == "thread_variables" else f"{field.name}: "
            found.update({f"{prefix}{name}": str(item) for name, item in value.items()})
        else:
            found[field.name] = _written(value)
    for name in _METHOD:
        found[f"method: {name}"] = _written(getattr(report.method, name))
    return found


def _written(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
