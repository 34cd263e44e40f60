"""What a finished build tells a person or a script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetx_exporters.assembly import Findings
from unetx_exporters.evaluation import BuiltEngine
from unetx_exporters.options import BuildOptions

__all__ = ["BuildResult", "EngineSummary", "summarize_build"]


@dataclass(frozen=True, slots=True)
class EngineSummary:
    """One engine of a finished build, for a person or a script.

    Attributes
    ----------
    target : str
        Name of the target.
    files : tuple of str
        Names in the bundle.
    storage_dtype, compute_dtype : str
        Type of the stored weights and of the arithmetic.
    compute_capabilities : tuple of str
        CUDA devices that it runs on; empty for a CPU engine.
    gate : str or None
        Name of the gate that it passed; None where the gate was off.
    evaluated : str or None
        "engine", or "graph" where the engine cannot run on the machine that built it.
    """

    target: str
    files: tuple[str, ...]
    storage_dtype: str
    compute_dtype: str
    compute_capabilities: tuple[str, ...]
    gate: str | None
    evaluated: str | None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build.

    Attributes
    ----------
    bundle : pathlib.Path
        Where it is.
    variant, precision : str
        What was asked for.
    size_px : int
        Height and width of the engine's input.
    engines : tuple of EngineSummary
        In the order in which the runtime would take them within a target.
    skipped : mapping of str to str
        Target -> why it was not built.
    left_out : mapping of str to str
        Engine that was tried beside others of its target, and is not in the bundle -> why.
    gate : str
        Name of the gate, or "off".
    gate_data : str or None
        What it was decided on.
    gate_report : str or None
        The page with the evidence; inside the bundle.
    seconds : float
        Duration of the build.
    kept : mapping of str to str
        Layer that has a wider type than was asked for -> why.
    """

    bundle: Path
    variant: str
    precision: str
    size_px: int
    engines: tuple[EngineSummary, ...]
    skipped: Mapping[str, str]
    left_out: Mapping[str, str]
    gate: str
    gate_data: str | None
    gate_report: str | None
    seconds: float
    kept: Mapping[str, str]


def summarize_build(
    options: BuildOptions, size_px: int, findings: Findings, report: str | None, seconds: float
) -> BuildResult:
    """Sum a finished build up.

    Parameters
    ----------
    options : BuildOptions
        What was asked for.
    size_px : int
        Height and width of the engine's input.
    findings : Findings
        What came out.
    report : str or None
        Name of the evidence page in the bundle; None where the gate was off.
    seconds : float
        Duration of the build.
    """
    return BuildResult(
        bundle=options.output,
        variant=options.variant,
        precision=options.precision.value,
        size_px=size_px,
        engines=tuple(_summarize_engine(engine, findings) for engine in findings.engines),
        skipped=findings.skipped,
        left_out=findings.left_out,
        gate=options.gate_name,
        gate_data=None if findings.images is None else findings.images.data,
        gate_report=report if report is None or options.archive else str(options.output / report),
        seconds=round(seconds, 1),
        kept={layer.name: layer.reason for layer in findings.graphs.precision.kept_fp32},
    )


def _summarize_engine(engine: BuiltEngine, findings: Findings) -> EngineSummary:
    decision = findings.decisions.get(engine.name)
    record = engine.record
    gate: dict[str, Any] = {"gate": None, "evaluated": None}
    if decision is not None:
        gate = {"gate": decision.name, "evaluated": "engine" if engine.why_graph is None else "graph"}
    return EngineSummary(
        target=record.target,
        files=record.files,
        storage_dtype=record.storage_dtype,
        compute_dtype=record.compute_dtype,
        compute_capabilities=record.compute_capabilities,
        **gate,
    )
