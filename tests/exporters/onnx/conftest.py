"""Small traced models, each traced once for all tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unetx_exporters.onnx.trace import TracedGraph, trace_onnx
from unetx_opt.models.unet import UNet, build_model
from unetx_opt.models.variants import variant_spec

Trace = Callable[..., tuple[UNet, TracedGraph]]


@pytest.fixture(scope="session")
def make_model() -> Callable[..., UNet]:
    """Make a small model whose batch normalisation has statistics that folding must take into account."""

    def make(variant: str = "unet", *, seed: int = 0, width: int = 4, depth: int = 2, **overrides: Any) -> UNet:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_model(variant_spec(variant, width=width, depth=depth, **overrides))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.2, generator=generator)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                torch.nn.init.normal_(module.bias, mean=0.3, std=0.2, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def trace(make_model: Callable[..., UNet]) -> Trace:
    """Trace a model of `make_model` at a square size; equal calls share one graph, which nobody may change."""

    @functools.cache
    def traced(variant: str, size: int, overrides: tuple[tuple[str, Any], ...]) -> tuple[UNet, TracedGraph]:
        model = make_model(variant, **dict(overrides))
        return model, trace_onnx(model, size, size)

    return lambda variant="unet", size=64, **overrides: traced(variant, size, tuple(sorted(overrides.items())))
