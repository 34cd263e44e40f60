"""The same graphs built several times: how far masks and times of the engines differ between builds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_exporters.evaluation import BuiltEngine, open_engine
from unetx_exporters.gate import DriftMeasurement, DriftOptions, measure_drift
from unetx_exporters.gate_images import GateImages
from unetx_opt.specs import InputContract

__all__ = ["EngineVariance", "describe_variance", "measure_variance", "variance_to_json"]

#: Images on which builds are compared, and how often each is gone through.
_IMAGES: Final = 8
_ROUNDS: Final = 3

#: Builds the engines of all targets under a directory.
Builder = Callable[[Path], Sequence[BuiltEngine]]


@dataclass(frozen=True, slots=True)
class EngineVariance:
    """One engine over its builds.

    Attributes
    ----------
    engine : str
        Its name.
    file_sha256 : tuple of str
        Identity of its files, one for each build.
    disagreement : tuple of float
        Largest 1 minus the Dice coefficient of a mask against that of the first build, one for each build; empty
        where the engine cannot run here.
    logit_difference : tuple of float
        Largest difference of a logit to the first build, likewise.
    median_ms : tuple of float
        Median time of one call, builds in turns, likewise.
    """

    engine: str
    file_sha256: tuple[str, ...]
    disagreement: tuple[float, ...] = ()
    logit_difference: tuple[float, ...] = ()
    median_ms: tuple[float, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether every build gave the same bytes."""
        return len(set(self.file_sha256)) == 1

    @property
    def spread(self) -> float:
        """Slowest median over the fastest; 1 where nothing was timed."""
        return max(self.median_ms) / min(self.median_ms) if self.median_ms else 1.0


def measure_variance(
    build: Builder,
    directories: Sequence[Path],
    images: GateImages,
    contract: InputContract,
    options: DriftOptions,
) -> tuple[EngineVariance, ...]:
    """Build engines into several directories, and compare them with those of the first.

    Parameters
    ----------
    build : callable
        Builds the same graphs each time.
    directories : sequence of pathlib.Path
        At least two, one for each build.
    images : GateImages
        Some of them are run.
    contract : InputContract
        How images are brought to the engines.
    options : DriftOptions
        How logits become masks.

    Returns
    -------
    tuple of EngineVariance
        In the order of the first build.
    """
    builds = [build(directory) for directory in directories]
    found = []
    for engines in zip(*builds, strict=True):
        hashes = tuple(_hash_files(engine, directory) for engine, directory in zip(engines, directories, strict=True))
        variance = EngineVariance(engines[0].name, hashes)
        if engines[0].why_graph is None:
            variance = _compare(variance, engines, directories, images, contract, options)
        found.append(variance)
    return tuple(found)


def describe_variance(rows: Sequence[EngineVariance]) -> str:
    """Sum the builds up in one sentence for the manifest."""
    parts = [
        f"{row.engine}: {'the same bytes' if row.identical else 'other bytes'}"
        + (
            f", masks up to {max(row.disagreement):.2g} of Dice apart, slowest {row.spread:.2f} times the fastest"
            if row.median_ms
            else ", not run here"
        )
        for row in rows
    ]
    return f"{len(rows[0].file_sha256)} builds of the same graphs: " + "; ".join(parts) + "."


def variance_to_json(rows: Sequence[EngineVariance]) -> str:
    """Write rows as a JSON document."""
    engines: list[Mapping[str, Any]] = [
        {**dataclasses.asdict(row), "identical": row.identical, "slowest_over_fastest": round(row.spread, 4)}
        for row in rows
    ]
    content = {"schema_version": 1, "images": _IMAGES, "rounds": _ROUNDS, "engines": engines}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _compare(
    variance: EngineVariance,
    engines: Sequence[BuiltEngine],
    directories: Sequence[Path],
    images: GateImages,
    contract: InputContract,
    options: DriftOptions,
) -> EngineVariance:
    indices = range(min(_IMAGES, len(images)))
    with contextlib.ExitStack() as stack:
        opened = {
            str(index): stack.enter_context(open_engine(engine, directory))
            for index, (engine, directory) in enumerate(zip(engines, directories, strict=True))
        }
        rounds = [
            measure_drift(opened["0"], opened, map(images.read, indices), contract, options)
            for _ in range(_ROUNDS + 1)  # the first one warms up
        ]
    measured = rounds[-1]
    return dataclasses.replace(
        variance,
        disagreement=tuple(max(1.0 - drift.dice_engine_vs_reference for drift in measured.drifts[n]) for n in opened),
        logit_difference=tuple(max(drift.max_logit_difference for drift in measured.drifts[n]) for n in opened),
        median_ms=tuple(_median(rounds[1:], name) for name in opened),
    )


def _median(rounds: Sequence[DriftMeasurement], name: str) -> float:
    return round(statistics.median(took for part in rounds for took in part.call_ms[name]), 3)


def _hash_files(engine: BuiltEngine, directory: Path) -> str:
    digest = hashlib.sha256()
    for name in engine.record.files:
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()
