"""The U-Net of all variants (Ronneberger et al. 2015, with batch normalisation and same-size convolutions)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetx_opt.errors import SpecError
from unetx_opt.models.attention import build_gate
from unetx_opt.models.blocks import ConvBlock, Upsample
from unetx_opt.optional import require
from unetx_opt.specs import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = require("torch", purpose="building a model")
    nn = torch.nn

__all__ = ["UNet", "build_model"]


class DecoderStage(nn.Module):
    """Upsample the coarser features, merge the skip connection, convolve.

    Parameters
    ----------
    spec : ModelSpec
        The model's spec.
    level : int
        Skip level; 0 is the full resolution.
    coarse_channels : int
        Channels of the features from below.
    """

    def __init__(self, spec: ModelSpec, level: int, coarse_channels: int) -> None:
        super().__init__()
        channels = spec.channels(level)
        self.concatenates = spec.gate is None
        self.up = Upsample(coarse_channels, channels, spec.upsampling)
        self.gate = build_gate(spec, level, coarse_channels)
        self.block = ConvBlock(2 * channels if self.concatenates else channels, channels)

    def merge(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Join (N, C, H, W) with (N, coarse_channels, H/2, W/2) to (N, C or 2 C, H, W)."""
        upsampled: torch.Tensor = self.up(coarse)
        if self.concatenates:
            return torch.cat([skip, upsampled], dim=1)
        attended: torch.Tensor = skip if self.gate is None else self.gate(skip, coarse)
        return attended + upsampled

    def forward(self, merged: torch.Tensor) -> torch.Tensor:
        """Convolve the merged features to (N, C, H, W)."""
        refined: torch.Tensor = self.block(merged)
        return refined


class UNet(nn.Module):
    """A U-Net built from a spec.

    Parameters
    ----------
    spec : ModelSpec
        Decides the graph.

    Notes
    -----
    The input is float32 (N, spec.in_channels, H, W), the output logits float32 (N, spec.num_classes, H, W). Height
    and width that are not multiples of ``spec.divisor`` are padded at the bottom and the right by replicating the
    border, and the logits are cropped to the input's size.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(
            ConvBlock(
                spec.in_channels if stage == 0 else spec.channels(stage - 1),
                spec.channels(stage),
                _stage_dilations(spec, stage),
            )
            for stage in range(spec.depth + 1)
        )
        self.decoder = nn.ModuleList(
            DecoderStage(
                spec,
                level,
                spec.channels(spec.depth) if level == spec.poolings - 1 else spec.channels(level + 1),
            )
            for level in range(spec.poolings)
        )
        self.head = nn.Conv2d(spec.width, spec.num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits (N, num_classes, H, W) of an image (N, in_channels, H, W)."""
        return self.forward_with_junctions(image)[0]

    def forward_with_junctions(self, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute logits and the tensors at every skip junction.

        Parameters
        ----------
        image : torch.Tensor
            (N, in_channels, H, W).

        Returns
        -------
        logits : torch.Tensor
            (N, num_classes, H, W).
        junctions : dict of str to torch.Tensor
            "bottleneck", then "skip<level>" for the merged decoder input of each level, from the deepest up.

        Raises
        ------
        SpecError
            The image does not have four axes or the expected channels.
        """
        if image.ndim != 4 or image.shape[1] != self.spec.in_channels:
            raise SpecError(
                f"the model reads (N, {self.spec.in_channels}, H, W), got {tuple(image.shape)}: "
                "reshape the image or choose another checkpoint"
            )
        height, width = image.shape[-2:]
        features = _pad_to_divisor(image, self.spec.divisor)
        skips: list[torch.Tensor] = []
        for stage, block in enumerate(self.encoder):
            if 0 < stage <= self.spec.poolings:
                skips.append(features)
                features = self.pool(features)
            features = block(features)
        junctions = {"bottleneck": features}
        for level in reversed(range(self.spec.poolings)):
            stage_module = self.decoder[level]
            assert isinstance(stage_module, DecoderStage)  # noqa: S101 - ModuleList loses the type
            merged = stage_module.merge(skips[level], features)
            junctions[f"skip{level}"] = merged
            features = stage_module(merged)
        logits: torch.Tensor = self.head(features)
        if logits.shape[-2:] != (height, width):
            logits = logits[:, :, :height, :width]
        return logits, junctions


def build_model(spec: ModelSpec) -> UNet:
    """Make the module of a spec, with fresh random weights (PyTorch's defaults) in training mode."""
    return UNet(spec)


def _stage_dilations(spec: ModelSpec, stage: int) -> tuple[int, int]:
    first_dilated = spec.depth + 1 - len(spec.dilations) // 2
    if stage < first_dilated:
        return (1, 1)
    start = 2 * (stage - first_dilated)
    return spec.dilations[start], spec.dilations[start + 1]


def _pad_to_divisor(image: torch.Tensor, divisor: int) -> torch.Tensor:
    bottom, right = -image.shape[-2] % divisor, -image.shape[-1] % divisor
    if bottom == 0 and right == 0:
        return image
    return nn.functional.pad(image, (0, right, 0, bottom), mode="replicate")
