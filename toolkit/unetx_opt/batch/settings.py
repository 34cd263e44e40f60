"""What a batch is asked for, as text that crosses to worker processes and other machines."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetx_opt.batch.outputs import OutputPlan

__all__ = ["BatchSettings", "EngineFacts", "Task", "settings_from_json", "settings_to_json", "share_threads"]


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What every worker of a batch does alike; all paths are absolute.

    Attributes
    ----------
    bundle : pathlib.Path
        Opened once by each worker.
    plan : OutputPlan
        What is written, and where.
    target : str or None
        Use the engine of this target and no other.
    threads : int or None
        CPU threads of one inference.
    public_keys : tuple of pathlib.Path
        Keys of which one must have signed the bundle; empty demands no signature.
    """

    bundle: Path
    plan: OutputPlan
    target: str | None = None
    threads: int | None = None
    public_keys: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One input.

    Attributes
    ----------
    source : pathlib.Path
        The file.
    stem : str
        Of its results, relative to the folder of the plan, with the separators of this system.
    """

    source: Path
    stem: str


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a worker has opened.

    Attributes
    ----------
    target, compute_dtype : str
        Of the engine.
    bundle_sha256 : str
        Of the bundle's manifest, in hex.
    label_names : tuple of str
        The background first.
    passed_over : mapping of str to str
        Engines that were not taken, with their reasons.
    """

    target: str
    compute_dtype: str
    bundle_sha256: str
    label_names: tuple[str, ...]
    passed_over: Mapping[str, str]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What must be the same in all workers of a batch, so that they draw the same masks."""
        return self.bundle_sha256, self.target, self.compute_dtype


def settings_to_json(settings: BatchSettings) -> str:
    """Turn settings into one line of text."""
    return json.dumps(dataclasses.asdict(settings), default=str)


def settings_from_json(text: str | bytes) -> BatchSettings:
    """Read what `settings_to_json` wrote."""
    data: dict[str, Any] = json.loads(text)
    plan = data["plan"] | {"folder": Path(data["plan"]["folder"]), "formats": tuple(data["plan"]["formats"])}
    return BatchSettings(
        bundle=Path(data["bundle"]),
        plan=OutputPlan(**plan),
        target=data["target"],
        threads=data["threads"],
        public_keys=tuple(map(Path, data["public_keys"])),
    )


def share_threads(settings: BatchSettings, workers: int) -> BatchSettings:
    """Divide the processors of this machine among its workers, unless the threads were given."""
    if settings.threads is not None or workers == 1:
        return settings
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return dataclasses.replace(settings, threads=max(1, cpus // workers))
