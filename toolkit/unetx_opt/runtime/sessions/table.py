"""The engines that this toolkit can run, in the order in which it prefers them, and the choice of one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from unetx_opt.errors import EngineError
from unetx_opt.runtime.sessions.base import OpenRequest, Session
from unetx_opt.specs import EngineRecord, Host

__all__ = [
    "SESSIONS",
    "EngineChoice",
    "SessionRow",
    "choose_engine",
    "describe_reasons",
    "label_engine",
    "rank_engines",
]

_PACKAGE: Final = "unetx_opt.runtime.sessions"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One kind of engine.

    Attributes
    ----------
    name : str
        Name of the target.
    reason : str
        ``module:function`` of ``(host, record or None) -> str or None``: why the engine cannot run there.
    loader : str
        ``module:function`` of ``(OpenRequest) -> Session``.
    """

    name: str
    reason: str
    loader: str

    def why_not(self, host: Host, record: EngineRecord | None = None) -> str | None:
        """Say why an engine of this kind cannot run on a machine.

        Parameters
        ----------
        host : Host
            The machine.
        record : EngineRecord, optional
            One engine; without it the answer is about the target as such.

        Returns
        -------
        str or None
            The reason and what to do about it, or None: nothing is known that stands against it.
        """
        reason: str | None = _resolve(self.reason)(host, record)
        return reason

    def open(self, request: OpenRequest) -> Session:
        """Load an engine of this kind.

        Raises
        ------
        EngineError
            It cannot be loaded, or what was loaded is not what its record says.
        MissingPackageError
            The package that runs it is not installed.
        """
        session: Session = _resolve(self.loader)(request)
        return session


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _table(*rows: SessionRow) -> Mapping[str, SessionRow]:
    table = {row.name: row for row in rows}
    if len(table) != len(rows):
        raise ValueError("two rows of the session table have one name")
    return MappingProxyType(table)


#: Target -> row, in order of preference. Modules are named by string: listing the table loads none of them.
SESSIONS: Final = _table(
    SessionRow("tensorrt", f"{_PACKAGE}.tensorrt:why_not_tensorrt", f"{_PACKAGE}.tensorrt:open_tensorrt"),
    SessionRow("tensorrt-rtx", f"{_PACKAGE}.tensorrt:why_not_tensorrt_rtx", f"{_PACKAGE}.tensorrt:open_tensorrt"),
    SessionRow(
        "onnxruntime-cuda",
        f"{_PACKAGE}.onnxruntime:why_not_onnxruntime_cuda",
        f"{_PACKAGE}.onnxruntime:open_onnxruntime",
    ),
    SessionRow("openvino-cpu", f"{_PACKAGE}.openvino:why_not_openvino_cpu", f"{_PACKAGE}.openvino:open_openvino"),
    SessionRow(
        "onnxruntime-cpu",
        f"{_PACKAGE}.onnxruntime:why_not_onnxruntime_cpu",
        f"{_PACKAGE}.onnxruntime:open_onnxruntime",
    ),
)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engines of a bundle, seen from one machine.

    Attributes
    ----------
    usable : tuple of EngineRecord
        Those that nothing stands against, the preferred one first.
    reasons : mapping of str to str
        Engine, as `label_engine` names it -> why it cannot be taken.
    """

    usable: tuple[EngineRecord, ...]
    reasons: Mapping[str, str]


def rank_engines(records: Iterable[EngineRecord], host: Host, target: str | None = None) -> EngineChoice:
    """Order the engines that a machine can run.

    Parameters
    ----------
    records : iterable of EngineRecord
        Engines of a bundle.
    host : Host
        The machine.
    target : str, optional
        Take only engines of this target.

    Raises
    ------
    EngineError
        `target` is unknown, or the bundle holds no engine of it.
    """
    engines = tuple(records)
    _check_target(target, engines)
    usable: list[EngineRecord] = []
    reasons: dict[str, str] = {}
    for name, row in SESSIONS.items():
        for record in engines:
            if record.target != name:
                continue
            if target not in (None, name):
                reason: str | None = f"not asked for: the target asked for is {target}"
            else:
                reason = row.why_not(host, record)
            if reason is None:
                usable.append(record)
            else:
                reasons[label_engine(record, engines)] = reason
    for record in engines:
        if record.target not in SESSIONS:
            reasons[label_engine(record, engines)] = "this version knows no such target: update unetx-opt"
    return EngineChoice(tuple(usable), MappingProxyType(reasons))


def choose_engine(records: Iterable[EngineRecord], host: Host, target: str | None = None) -> EngineRecord:
    """Choose the engine that a machine runs best.

    Parameters
    ----------
    records : iterable of EngineRecord
        Engines of a bundle.
    host : Host
        The machine.
    target : str, optional
        Take only an engine of this target.

    Returns
    -------
    EngineRecord
        The first that nothing stands against, in the order of `SESSIONS`; within a target the bundle's order.

    Raises
    ------
    EngineError
        None can run; the message lists every engine with its reason.
    """
    choice = rank_engines(records, host, target)
    if not choice.usable:
        raise EngineError(describe_reasons("no engine of this bundle runs on this machine", choice.reasons))
    return choice.usable[0]


def describe_reasons(opening: str, reasons: Mapping[str, str]) -> str:
    """Put the reasons against every engine into one line."""
    listed = "; ".join(f"{engine}: {reason}" for engine, reason in reasons.items())
    return f"{opening}: {listed or 'it holds none, rebuild it with unetx-opt build'}"


def _check_target(target: str | None, engines: tuple[EngineRecord, ...]) -> None:
    if target is None:
        return
    if target not in SESSIONS:
        raise EngineError(f"unknown target {target!r}, expected one of {', '.join(SESSIONS)}")
    if all(record.target != target for record in engines):
        held = ", ".join(dict.fromkeys(record.target for record in engines)) or "no engine"
        raise EngineError(
            f"the bundle has no engine for {target}, it holds {held}: rebuild it with --target {target}, "
            "or choose one of those"
        )


def label_engine(record: EngineRecord, engines: Iterable[EngineRecord]) -> str:
    """Name an engine among those of its bundle: by its target, and by what else it takes where that names several."""
    if sum(other.target == record.target for other in engines) < 2:
        return record.target
    settings = [f"{key}={value}" for key, value in sorted(record.settings.items())]
    return f"{record.target} ({', '.join([record.files[0], *settings])})"
