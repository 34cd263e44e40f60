"""The table of variants: which graph each one has and how it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from unetx_opt.errors import SpecError
from unetx_opt.specs import Gate, ModelSpec

__all__ = ["VARIANTS", "Variant", "get_variant", "variant_spec"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: a graph, a loss and a post-processing step under a name.

    Attributes
    ----------
    name : str
        The word on the command line.
    summary : str
        One line for lists.
    gate : Gate or None
        How skips are attended; None concatenates them.
    gated_skips : int
        How many of the deepest skips pass through the gate. At full resolution the neighbourhood gate costs few
        operations but much memory traffic, so that the shallow skips are added as they are by default.
    dilations : tuple of int
        Dilation rates of the last encoder convolutions.
    loss : str
        Row of the table of losses that it is trained with.
    postprocess : str or None
        Step after the network, a key of the table of steps.
    """

    name: str
    summary: str
    gate: Gate | None = None
    gated_skips: int = 0
    dilations: tuple[int, ...] = ()
    loss: str = "bce_dice"
    postprocess: str | None = None


_ROWS = (
    Variant("unet", "baseline U-Net, skips concatenated"),
    Variant("focal", "the baseline's graph, trained with focal loss", loss="focal_dice"),
    Variant(
        "attention",
        "attended skips, added instead of concatenated",
        gate=Gate.NEIGHBOURHOOD,
        gated_skips=2,
    ),
    Variant("dilated", "last stages keep their resolution with dilated convolutions", dilations=(1, 2, 4, 8)),
    Variant("crf", "baseline U-Net followed by a dense CRF", postprocess="dense_crf"),
    Variant(
        "combined",
        "attention, dilation and focal loss, followed by a dense CRF",
        gate=Gate.NEIGHBOURHOOD,
        gated_skips=2,
        dilations=(1, 2, 4, 8),
        loss="focal_dice",
        postprocess="dense_crf",
    ),
)

#: Variant name -> its row, in the order of the article's table.
VARIANTS: Mapping[str, Variant] = MappingProxyType({row.name: row for row in _ROWS})
assert len(VARIANTS) == len(_ROWS), "a variant name occurs twice"  # noqa: S101


def get_variant(name: str) -> Variant:
    """Look a variant up.

    Raises
    ------
    SpecError
        The name is unknown; the message lists the known ones.
    """
    try:
        return VARIANTS[name]
    except KeyError:
        raise SpecError(f"unknown variant {name!r}: choose one of {', '.join(VARIANTS)}") from None


def variant_spec(name: str, *, width: int = 16, depth: int = 4, **overrides: Any) -> ModelSpec:
    """Make the model spec of a variant.

    Parameters
    ----------
    name : str
        A key of `VARIANTS`.
    width, depth : int
        As in `ModelSpec`.
    **overrides
        Any other field of `ModelSpec`.

    Raises
    ------
    SpecError
        The name is unknown or a value is out of range.
    """
    row = get_variant(name)
    gate = overrides.pop("gate", row.gate)
    if gate is not None:
        gate = _read_gate(gate)
    plain = dataclasses.replace(ModelSpec(width=width, depth=depth), dilations=row.dilations)
    levels = overrides.pop("gate_levels", None)
    if levels is None:
        skips = row.gated_skips if gate is not None else 0
        levels = tuple(range(max(0, plain.poolings - skips), plain.poolings))
    try:
        return dataclasses.replace(plain, gate=gate, gate_levels=levels, **overrides)
    except TypeError as error:
        raise SpecError(f"variant {name}: {error}") from error


def _read_gate(name: str) -> Gate:
    try:
        return Gate(name)
    except ValueError:
        raise SpecError(f"unknown gate {name!r}: choose one of {', '.join(Gate)}") from None
