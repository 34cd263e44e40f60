"""The step after the network in a checkpoint's header: which one, with which parameters, and how they were found."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import CheckpointError
from unetx_opt.models.checkpoint import Checkpoint, OtherVariantError, read_checkpoint
from unetx_opt.models.variants import VARIANTS, get_variant

if TYPE_CHECKING:
    from unetx_opt.models.variants import Variant

__all__ = ["METADATA_KEY", "StepRecord", "read_step", "read_weights", "step_metadata"]

#: Key of a checkpoint's metadata under which the step is kept, as JSON text.
METADATA_KEY: Final = "postprocess"
_MAX_PARAMETERS: Final = 100


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as a checkpoint holds it.

    Attributes
    ----------
    name : str
        A key of the table of steps, `unetx_opt.imaging.refinement.STEPS`.
    parameters : mapping of str to float
        Its parameters; whether they fit the step is for the step to check.
    fit : mapping of str to object
        How they were found: data, figures with and without the step. JSON types; empty where nothing was fitted.
    """

    name: str
    parameters: Mapping[str, float]
    fit: Mapping[str, Any] = field(default_factory=dict)


def step_metadata(record: StepRecord) -> str:
    """Write a step as the text that belongs under `METADATA_KEY`."""
    plain = {"name": record.name, "parameters": dict(record.parameters), "fit": dict(record.fit)}
    return json.dumps(plain, sort_keys=True, allow_nan=False)


def read_step(checkpoint: Checkpoint) -> StepRecord | None:
    """Read the step that a checkpoint's variant ends with; None for variants that end with the network.

    Raises
    ------
    CheckpointError
        The variant needs a step, and the checkpoint holds none, another one, or one that cannot be read.
    """
    needed = get_variant(checkpoint.variant).postprocess
    if needed is None:
        return None
    if METADATA_KEY not in checkpoint.metadata:
        raise CheckpointError(
            f"{checkpoint.source} holds no parameters of the step {needed}, which variant {checkpoint.variant} ends "
            f"with: fit them with unetx-opt train --variant {checkpoint.variant} --weights {checkpoint.source}"
        )
    try:
        raw = json.loads(checkpoint.metadata[METADATA_KEY])
        name, parameters, fit = raw["name"], raw["parameters"], raw.get("fit", {})
        if not (isinstance(name, str) and isinstance(parameters, dict) and isinstance(fit, dict)):
            raise TypeError("expected a name, parameters and a fit")
        values = {key: _read_number(key, value) for key, value in parameters.items()}
        if len(values) > _MAX_PARAMETERS:
            raise ValueError(f"{len(values)} parameters")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{checkpoint.source}: its step after the network cannot be read ({error}): the file is damaged"
        ) from error
    if name != needed:
        raise CheckpointError(
            f"{checkpoint.source} holds the step {name[:80]!r}, variant {checkpoint.variant} ends with {needed}: "
            "fit it again with unetx-opt train --weights"
        )
    return StepRecord(name, MappingProxyType(values), MappingProxyType(fit))


def read_weights(path: Path, variant: str) -> Checkpoint:
    """Read weights that a variant with a step can take over: of itself, or of the one without the step.

    Parameters
    ----------
    path : pathlib.Path
        A checkpoint, or a state dict, which names no variant.
    variant : str
        A key of the table of variants.

    Raises
    ------
    CheckpointError
        As `read_checkpoint`; or the weights are of a variant with another graph or another loss.
    """
    row = get_variant(variant)
    sources = [name for name, other in VARIANTS.items() if _same_network(row, other)]
    for name in sources[:-1]:
        with contextlib.suppress(OtherVariantError):
            return read_checkpoint(path, variant=name)
    return read_checkpoint(path, variant=sources[-1])


def _same_network(row: Variant, other: Variant) -> bool:
    return (row.gate, row.gated_skips, row.dilations, row.loss) == (
        other.gate,
        other.gated_skips,
        other.dilations,
        other.loss,
    )


def _read_number(name: str, value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"parameter {name[:40]!r} is {str(value)[:40]}, expected a number")
    return float(value)  # type: ignore[arg-type]
