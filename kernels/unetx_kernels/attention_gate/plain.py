"""The neighbourhood gate in plain PyTorch: what runs where no kernel can, and what the kernels are compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unetx_kernels.optional import require_torch

if TYPE_CHECKING:
    import torch

__all__ = ["attend_by_taps", "attend_by_unfold", "attend_gradients"]


def attend_by_taps(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    residual: torch.Tensor | None,
    window: int,
    dilation: int,
) -> torch.Tensor:
    """Attend tap by tap, with shifted views instead of copies; arguments as in `reference.neighbourhood_gate`."""
    pytorch = require_torch()

    height, width = values.shape[-2:]
    reach = window // 2 * dilation
    margins = (reach, reach, reach, reach)
    keys, near = (pytorch.nn.functional.pad(tensor, margins) for tensor in (phi, values))
    inside = pytorch.nn.functional.pad(values.new_zeros(1, 1, height, width), margins, value=-math.inf)
    starts = [(y * dilation, x * dilation) for y in range(window) for x in range(window)]
    scaled = theta / math.sqrt(theta.shape[1])
    scores = [
        (scaled * keys[..., y : y + height, x : x + width]).sum(1, keepdim=True)
        + inside[..., y : y + height, x : x + width]
        for y, x in starts
    ]
    weights = pytorch.cat(scores, 1).softmax(1)
    attended: torch.Tensor = weights[:, :1] * near[..., :height, :width]
    for tap, (y, x) in enumerate(starts[1:], start=1):
        attended = attended + weights[:, tap : tap + 1] * near[..., y : y + height, x : x + width]
    return attended if residual is None else attended + residual


def attend_by_unfold(
    theta: torch.Tensor, phi: torch.Tensor, values: torch.Tensor, window: int, dilation: int = 1
) -> torch.Tensor:
    """Attend with the ``window ** 2`` copies of both inputs in memory, as textbook code does."""
    pytorch = require_torch()

    images, channels, height, width = values.shape
    hidden, taps, reach = theta.shape[1], window**2, window // 2 * dilation

    def unfold(tensor: torch.Tensor) -> torch.Tensor:
        columns: torch.Tensor = pytorch.nn.functional.unfold(tensor, window, dilation=dilation, padding=reach)
        return columns.view(tensor.shape[0], tensor.shape[1], taps, height, width)

    inside = unfold(values.new_ones(1, 1, height, width))[:, 0]
    scores = (theta[:, :, None] * unfold(phi)).sum(1) / math.sqrt(hidden)
    weights = scores.masked_fill(inside == 0, -math.inf).softmax(1)
    attended: torch.Tensor = (weights[:, None] * unfold(values)).sum(2)
    return attended.view(images, channels, height, width)


def attend_gradients(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], gradient: torch.Tensor, window: int, dilation: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate the gate tap by tap; arguments as in `reference.neighbourhood_gate_gradients`.

    Sums over taps and channels are in float32 or finer whatever the inputs are, as in the kernels.
    """
    pytorch = require_torch()

    kept = inputs[0].dtype
    wide = pytorch.promote_types(kept, pytorch.float32)
    theta, phi, values, gradient = (tensor.to(wide) for tensor in (*inputs, gradient))
    height, width = values.shape[-2:]
    reach = window // 2 * dilation
    margins = (reach, reach, reach, reach)
    keys, near = (pytorch.nn.functional.pad(tensor, margins) for tensor in (phi, values))
    inside = pytorch.nn.functional.pad(values.new_zeros(1, 1, height, width), margins, value=-math.inf)
    views = [
        (..., slice(y * dilation, y * dilation + height), slice(x * dilation, x * dilation + width))
        for y in range(window)
        for x in range(window)
    ]
    scale = 1.0 / math.sqrt(theta.shape[1])
    scores = [(theta * keys[view]).sum(1, keepdim=True) * scale + inside[view] for view in views]
    weights = pytorch.cat(scores, 1).softmax(1)
    products = pytorch.cat([(gradient * near[view]).sum(1, keepdim=True) for view in views], 1)
    of_scores = weights * (products - (weights * products).sum(1, keepdim=True)) * scale
    of_theta, of_keys, of_near = pytorch.zeros_like(theta), pytorch.zeros_like(keys), pytorch.zeros_like(near)
    for tap, view in enumerate(views):
        weight, of_score = weights[:, tap : tap + 1], of_scores[:, tap : tap + 1]
        of_theta += of_score * keys[view]
        of_keys[view] += of_score * theta
        of_near[view] += weight * gradient
    image = views[len(views) // 2]
    return of_theta.to(kept), of_keys[image].to(kept), of_near[image].to(kept)
