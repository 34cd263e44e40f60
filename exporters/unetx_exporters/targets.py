"""The targets that an engine can be built for, and what each needs of the machine that builds it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError, SpecError
from unetx_opt.runtime.sessions.integers import has_exact_products
from unetx_opt.specs import EngineRecord, Host, Precision

__all__ = ["TARGETS", "TargetRow", "choose_targets"]

_PACKAGE: Final = "unetx_exporters"


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One target.

    Attributes
    ----------
    name : str
        The word on the command line; also a key of the runtime's session table.
    summary : str
        One line for lists.
    reason : str
        ``module:function`` of ``(host) -> str or None``: why no engine can be built there.
    builder : str
        ``module:function`` of ``(BuildRequest) -> tuple of EngineRecord``.
    scheme : str or None
        How an int8 graph for it is quantized, a key of `unetx_exporters.quantize.candidates.SCHEMES`; None where
        the target has no 8-bit convolution.
    takes_gates : bool
        Whether its builder has a kernel for the operator ``unetx::AttentionGate``.
    judged : str
        ``module:function`` of ``(EngineRecord, Path) -> Path``: the graph to judge an engine by that cannot run here,
        given the graph that its builder got; empty where it is that one.
    """

    name: str
    summary: str
    reason: str
    builder: str
    scheme: str | None
    takes_gates: bool = False
    judged: str = ""

    def why_not(self, host: Host, precision: Precision = Precision.FP32) -> str | None:
        """Say why this target cannot be built on a machine in a precision, or None where it can."""
        reason: str | None = _resolve(self.reason)(host)
        if reason is None and precision is Precision.INT8:
            return _INT8_REASONS[self.scheme](host)
        return reason

    def build(self, request: BuildRequest) -> tuple[EngineRecord, ...]:
        """Build and attest the engines of this target.

        Returns
        -------
        tuple of EngineRecord
            Alternatives that differ in their settings, or engines for different devices.

        Raises
        ------
        ExportError
            An engine cannot be built, or is not what was asked for.
        """
        records: tuple[EngineRecord, ...] = _resolve(self.builder)(request)
        return records

    def judged_graph(self, record: EngineRecord, graph: Path) -> Path:
        """Find the graph to judge one of its engines by, where that cannot run on the machine of the build."""
        found: Path = _resolve(self.judged)(record, graph) if self.judged else graph
        return found


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _why_not_cpu_int8(host: Host) -> str | None:
    if has_exact_products(host):
        return None
    return (
        "8-bit products saturate on this CPU, which lacks VNNI, so that no int8 engine can be judged on it: build "
        "int8 on a CPU with VNNI, or take fp16"
    )


#: Scheme -> why its int8 engines cannot be built on a machine.
_INT8_REASONS: Final[Mapping[str | None, Callable[[Host], str | None]]] = MappingProxyType(
    {
        None: lambda _: "it has no 8-bit convolution and would compute in floating point: leave it out, or take fp16",
        "cpu": _why_not_cpu_int8,
        "tensorrt": lambda _: None,
    }
)


def _row(
    name: str, summary: str, module: str, scheme: str | None, *, takes_gates: bool = False, judged: str = ""
) -> TargetRow:
    noun = name.replace("-", "_")
    path = f"{_PACKAGE}.{module}.build"
    return TargetRow(
        name,
        summary,
        f"{path}:why_not_build_{noun}",
        f"{path}:build_{noun}",
        scheme,
        takes_gates,
        f"{path}:{judged}" if judged else "",
    )


_ROWS: Final = (
    _row(
        "tensorrt",
        "TensorRT 10.16 or newer, for the GPU of this machine or a family of GPUs",
        "tensorrt",
        "tensorrt",
        takes_gates=True,
    ),
    _row(
        "tensorrt-rtx",
        "TensorRT-RTX, for any RTX GPU; built without a GPU",
        "tensorrt",
        "tensorrt",
        judged="judged_graph",
    ),
    _row("onnxruntime-cuda", "ONNX Runtime on CUDA", "onnxruntime", None),
    _row("onnxruntime-cpu", "ONNX Runtime on the CPU; the embedded default", "onnxruntime", "cpu"),
    _row("openvino-cpu", "OpenVINO on the CPU", "openvino", "cpu"),
)

#: Target -> row. Modules are named by string: listing the table loads none of them.
TARGETS: Final[Mapping[str, TargetRow]] = MappingProxyType({row.name: row for row in _ROWS})


def choose_targets(
    asked: Iterable[str], host: Host, precision: Precision = Precision.FP32
) -> tuple[tuple[TargetRow, ...], Mapping[str, str]]:
    """Choose what to build.

    Parameters
    ----------
    asked : iterable of str
        Names; none means every target that the machine can build.
    host : Host
        The machine.
    precision : Precision
        What is asked for.

    Returns
    -------
    chosen : tuple of TargetRow
        In the order of the table.
    skipped : mapping of str to str
        Target -> why it is not built.

    Raises
    ------
    SpecError
        A name is unknown.
    ExportError
        A target that was asked for cannot be built here, or none can.
    """
    wanted = tuple(asked)
    for name in wanted:
        if name not in TARGETS:
            raise SpecError(f"unknown target {name!r}: choose from {', '.join(TARGETS)}")
    reasons = {row.name: row.why_not(host, precision) for row in TARGETS.values()}
    for name in wanted:
        if reasons[name] is not None:
            raise ExportError(f"target {name} cannot be built here: {reasons[name]}")
    chosen = tuple(row for row in TARGETS.values() if reasons[row.name] is None and row.name in (wanted or TARGETS))
    if not chosen:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ExportError(f"no target can be built here: {listed}")
    skipped = {name: reasons[name] or "not asked for" for name in TARGETS if TARGETS[name] not in chosen}
    return chosen, MappingProxyType(skipped)
