"""The two gates of the attention variant: neighbourhood attention and the additive gate.

Both read a skip connection and return a tensor of the same shape, which the decoder *adds* to its upsampled
features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from unetx_kernels.attention_gate import operation
from unetx_opt.optional import require
from unetx_opt.specs import Gate, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = require("torch", purpose="building a model")
    nn = torch.nn

__all__ = ["GATES", "AdditiveGate", "NeighbourhoodGate", "build_gate"]

# Added once per axis to the score of a neighbour outside the image, which is 0 before: its weight is then exactly 0
# unless every score inside the window is below -896. -inf would do without that, but engines differ in how they
# treat an infinite constant; and a float16 graph must hold it with room to spare.
_OUTSIDE = -1.0e3


class NeighbourhoodGate(nn.Module):
    """Attention of every pixel over its k x k neighbourhood.

    ``theta = W1 x``, ``phi = W2 x`` (1 x 1 convolutions, C -> D); ``s_ij = <theta_i, phi_j> / sqrt(D)`` for j in
    the k x k window round i, where neighbours outside the image take no part; ``a = softmax_j(s)``;
    ``y_i = sum_j a_ij x_j``.

    Parameters
    ----------
    channels : int
        C, channels of the skip connection.
    hidden : int
        D, channels of theta and phi.
    window : int
        k, odd.

    Attributes
    ----------
    exports_operator : bool
        Whether an exported graph has the one operator ``unetx::AttentionGate`` in place of the standard ones that it
        is made of.
    """

    def __init__(self, channels: int, hidden: int, window: int) -> None:
        super().__init__()
        self.exports_operator = False
        self.window = window
        self.theta = nn.Conv2d(channels, hidden, 1)
        self.phi = nn.Conv2d(channels, hidden, 1)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Attend to the skip connection.

        Parameters
        ----------
        skip : torch.Tensor
            (N, C, H, W).
        coarse : torch.Tensor
            Not used; both gates have one signature.

        Returns
        -------
        torch.Tensor
            (N, C, H, W).
        """
        del coarse
        theta, phi = self.theta(skip), self.phi(skip)
        if self.exports_operator and torch.onnx.is_in_onnx_export():
            return self._as_operator(theta, phi, skip)
        # A compiler or exporter sees the operations that every engine has; on a GPU one fused kernel replaces them.
        if not torch.compiler.is_compiling() and operation.why_not(skip) is None:
            dtype = torch.promote_types(theta.dtype, skip.dtype)
            return operation.attend(theta.to(dtype), phi.to(dtype), skip.to(dtype), window=self.window)
        return self._attend_by_shifts(theta, phi, skip)

    def _as_operator(self, theta: torch.Tensor, phi: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = torch.onnx.ops.symbolic(
            "unetx::AttentionGate",
            (theta, phi, skip),
            attrs={"window": self.window, "dilation": 1, "scale": 1.0 / math.sqrt(self.theta.out_channels)},
            dtype=skip.dtype,
            shape=skip.shape,
            version=1,
        )
        return attended

    def _attend_by_shifts(self, theta: torch.Tensor, phi: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        radius = self.window // 2
        height, width = skip.shape[-2:]
        theta = theta * (1.0 / math.sqrt(self.theta.out_channels))
        keys = _neighbours(phi, self.window)
        values = _neighbours(skip, self.window)
        offsets = [(dy, dx) for dy in range(self.window) for dx in range(self.window)]
        scores = [(theta * shifted).sum(1, keepdim=True) for shifted in keys]
        row_bias = [_outside_bias(height, dy - radius, skip)[:, None] for dy in range(self.window)]
        column_bias = [_outside_bias(width, dx - radius, skip) for dx in range(self.window)]
        for index, (dy, dx) in enumerate(offsets):
            if dy != radius:  # the middle row of the window is never outside
                scores[index] = scores[index] + row_bias[dy]
            if dx != radius:
                scores[index] = scores[index] + column_bias[dx]
        weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
        terms = [weights[:, index : index + 1] * shifted for index, shifted in enumerate(values)]
        attended = terms[0]
        for term in terms[1:]:
            attended = attended + term
        return attended


def _neighbours(features: torch.Tensor, window: int) -> list[torch.Tensor]:
    """Shift (N, C, H, W) to every offset of the window, row by row; what comes from outside is 0."""
    height, width = features.shape[-2:]
    radius = window // 2
    padded = nn.functional.pad(features, (radius, radius, radius, radius))
    bands = [padded[:, :, dy : dy + height] for dy in range(window)]
    return [band[:, :, :, dx : dx + width] for band in bands for dx in range(window)]


def _outside_bias(length: int, offset: int, like: torch.Tensor) -> torch.Tensor:
    position = torch.arange(length, device=like.device) + offset
    outside = (position < 0) | (position >= length)
    return torch.where(outside, _OUTSIDE, 0.0).to(like.dtype)


class AdditiveGate(nn.Module):
    """The additive attention gate of Attention U-Net (Oktay et al. 2018, arXiv:1804.03999).

    ``y = sigmoid(psi(relu(W_x x + up(W_g g)))) * x`` with the coarser decoder features g as gating signal,
    brought to the skip's resolution by bilinear interpolation.

    Parameters
    ----------
    channels : int
        C, channels of the skip connection.
    coarse_channels : int
        Channels of the gating signal.
    hidden : int
        Channels of the two projections.
    """

    def __init__(self, channels: int, coarse_channels: int, hidden: int) -> None:
        super().__init__()
        self.project_skip = nn.Conv2d(channels, hidden, 1, bias=False)
        self.project_coarse = nn.Conv2d(coarse_channels, hidden, 1)
        self.psi = nn.Conv2d(hidden, 1, 1)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Attend to the skip connection.

        Parameters
        ----------
        skip : torch.Tensor
            (N, C, H, W).
        coarse : torch.Tensor
            (N, coarse_channels, H / 2, W / 2), the decoder features below.

        Returns
        -------
        torch.Tensor
            (N, C, H, W).
        """
        gating = nn.functional.interpolate(
            self.project_coarse(coarse), scale_factor=2, mode="bilinear", align_corners=False
        )
        return skip * torch.sigmoid(self.psi(torch.relu(self.project_skip(skip) + gating)))


def _neighbourhood(spec: ModelSpec, channels: int, coarse_channels: int) -> nn.Module:
    del coarse_channels
    return NeighbourhoodGate(channels, max(1, channels // 4), spec.gate_window)


def _additive(spec: ModelSpec, channels: int, coarse_channels: int) -> nn.Module:
    del spec
    return AdditiveGate(channels, coarse_channels, max(1, channels // 2))


#: Gate -> a function of (spec, skip channels, coarse channels) that makes its module.
GATES: Mapping[Gate, Callable[[ModelSpec, int, int], nn.Module]] = MappingProxyType(
    {Gate.NEIGHBOURHOOD: _neighbourhood, Gate.ADDITIVE: _additive}
)


def build_gate(spec: ModelSpec, level: int, coarse_channels: int) -> nn.Module | None:
    """Make the gate of one skip level, or None where the skip is passed as it is."""
    if spec.gate is None or level not in spec.gate_levels:
        return None
    return GATES[spec.gate](spec, spec.channels(level), coarse_channels)
