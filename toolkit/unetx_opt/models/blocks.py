"""Building blocks of the encoder and the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetx_opt.optional import require
from unetx_opt.specs import Upsampling

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = require("torch", purpose="building a model")
    nn = torch.nn

__all__ = ["ConvBlock", "Upsample"]


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each followed by batch normalisation and ReLU; height and width are kept.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    dilations : tuple of int
        Dilation rates of the two convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=first, dilation=first, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=second, dilation=second, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        x = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x)))


class Upsample(nn.Module):
    """Double height and width and change the channels.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    kind : Upsampling
        TRANSPOSED: one 2 x 2 transposed convolution of stride 2. BILINEAR: a 1 x 1 convolution, then bilinear
        interpolation with half-pixel centres; the convolution comes first because the two commute and it is
        cheaper at the lower resolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: Upsampling) -> None:
        super().__init__()
        self.kind = kind
        self.project: nn.Module
        if kind is Upsampling.TRANSPOSED:
            self.project = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        else:
            self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, 2 H, 2 W)."""
        x = self.project(x)
        if self.kind is Upsampling.TRANSPOSED:
            return x
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
