"""The neighbourhood gate in other ways on a GPU: what the fused kernel is timed beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_kernels.attention_gate import operation, plain
from unetx_opt.optional import require

if TYPE_CHECKING:
    import torch

__all__ = ["PEERS", "GateInputs", "make_inputs"]

_PURPOSE: Final = "a kernel benchmark"


@dataclass(frozen=True, slots=True)
class GateInputs:
    """theta and phi, (N, D, H, W), and values, (N, C, H, W), on the GPU, and the window."""

    theta: torch.Tensor
    phi: torch.Tensor
    values: torch.Tensor
    window: int

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All three, in the order of every implementation's arguments."""
        return self.theta, self.phi, self.values

    @property
    def moved_bytes(self) -> int:
        """Every input and the output once: what no implementation can do without."""
        elements = 2 * self.theta.numel() + 2 * self.values.numel()
        return elements * self.values.element_size()


def make_inputs(
    shape: tuple[int, int, int, int], hidden: int, window: int, *, half: bool = True, channels_last: bool = False
) -> GateInputs:
    """Draw inputs of a shape (N, C, H, W) on the GPU."""
    torch = require("torch", purpose=_PURPOSE)
    images, channels, height, width = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theta, phi, values = (
        torch.randn(images, depth, height, width, device="cuda")
        .to(torch.float16 if half else torch.float32)
        .to(memory_format=layout)
        for depth in (hidden, hidden, channels)
    )
    return GateInputs(theta, phi, values, window)


Gate = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def _fused(inputs: GateInputs) -> Gate:
    return lambda theta, phi, values: operation.attend(theta, phi, values, window=inputs.window)


def _unfold(inputs: GateInputs) -> Gate:
    return lambda theta, phi, values: plain.attend_by_unfold(theta, phi, values, inputs.window)


def _taps(inputs: GateInputs) -> Gate:
    return lambda theta, phi, values: plain.attend_by_taps(theta, phi, values, None, inputs.window, 1)


def _compiled(make: Callable[[GateInputs], Gate]) -> Callable[[GateInputs], Gate]:
    def make_compiled(inputs: GateInputs) -> Gate:
        torch = require("torch", purpose=_PURPOSE)
        # For this shape alone, as the kernel is: a compiler that has seen others makes code for any.
        torch.compiler.reset()
        gate: Gate = torch.compile(make(inputs), dynamic=False)
        return gate

    return make_compiled


def _flex(inputs: GateInputs) -> Gate:
    compiled = require("torch", purpose=_PURPOSE).compile
    flex = require("torch.nn.attention.flex_attention", purpose=_PURPOSE)
    height, width = inputs.values.shape[-2:]
    radius, pixels = inputs.window // 2, height * width

    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        del batch, head
        rows, columns = query // width - key // width, query % width - key % width
        return (rows.abs() <= radius) & (columns.abs() <= radius)

    # Compiled, so that the mask of all pairs of pixels is never in memory.
    mask = compiled(flex.create_block_mask)(near, None, None, pixels, pixels, device=inputs.values.device)
    attend = compiled(flex.flex_attention)

    def run(theta: torch.Tensor, phi: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        tokens = [tensor.flatten(2).transpose(1, 2)[:, None] for tensor in (theta, phi, values)]
        attended: torch.Tensor = attend(*tokens, block_mask=mask)
        return attended[:, 0].transpose(1, 2).reshape(values.shape)

    return run


#: Name -> a function of the inputs that makes the gate; "fused" is the one under test.
PEERS: Final[Mapping[str, Callable[[GateInputs], Gate]]] = MappingProxyType(
    {
        "fused": _fused,
        "unfold": _unfold,
        "torch.compile of unfold": _compiled(_unfold),
        "plain operations": _taps,
        "torch.compile of plain operations": _compiled(_taps),
        "FlexAttention": _flex,
    }
)
