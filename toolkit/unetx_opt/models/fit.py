"""Whether a set of named tensors is exactly the weights of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import CheckpointError
from unetx_opt.optional import require
from unetx_opt.specs import ModelSpec

if TYPE_CHECKING:
    import torch

__all__ = ["COUNTER", "check_finite", "check_fit"]

#: Suffix of a counter that only training with momentum=None reads; it has no influence on the graph.
COUNTER: Final = ".num_batches_tracked"


def check_fit(name: str, variant: str, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes with those of the model that a spec describes.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    variant : str
        For messages.
    spec : ModelSpec
        Describes the model; it is laid out without allocating memory.
    shapes : mapping of str to tuple of int
        Tensor name to shape, as the file says.

    Raises
    ------
    CheckpointError
        Lists the missing, unknown and misshapen tensors.
    """
    torch = require("torch", purpose="reading a checkpoint")
    from unetx_opt.models.unet import build_model

    with torch.device("meta"):
        state = build_model(spec).state_dict()
    expected = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}
    missing = sorted(set(expected) - set(shapes))
    unknown = sorted(set(shapes) - set(expected))
    misshapen = [
        f"{key} {shapes[key]} (expected {expected[key]})"
        for key in sorted(set(shapes) & set(expected))
        if shapes[key] != expected[key]
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{name} does not fit variant {variant} of width {spec.width} and depth {spec.depth}: "
            f"{'; '.join(problems)}: choose the variant that it was trained as"
        )


def check_finite(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights with NaN or Inf.

    Raises
    ------
    CheckpointError
        Names the first tensor that has one.
    """
    for key, value in tensors.items():
        if not math.isfinite(float(value.abs().max())):
            raise CheckpointError(f"{name}: tensor {key} holds NaN or Inf: the training diverged, train again")
