"""The gates against their definitions, computed pixel by pixel in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetx_opt.models.attention import AdditiveGate, NeighbourhoodGate


def brute_force_neighbourhood(gate: NeighbourhoodGate, skip: np.ndarray) -> np.ndarray:
    """y_i = sum_j softmax_j(<theta_i, phi_j> / sqrt(D)) x_j over the neighbours inside the image; (C, H, W)."""
    weights = {name: p.detach().double().numpy() for name, p in gate.named_parameters()}
    theta = np.einsum("dc,chw->dhw", weights["theta.weight"][:, :, 0, 0], skip) + weights["theta.bias"][:, None, None]
    phi = np.einsum("dc,chw->dhw", weights["phi.weight"][:, :, 0, 0], skip) + weights["phi.bias"][:, None, None]
    _, height, width = skip.shape
    radius = gate.window // 2
    attended = np.zeros_like(skip)
    for y in range(height):
        for x in range(width):
            rows = range(max(0, y - radius), min(height, y + radius + 1))
            columns = range(max(0, x - radius), min(width, x + radius + 1))
            neighbours = [(row, column) for row in rows for column in columns]
            scores = np.array([theta[:, y, x] @ phi[:, r, c] / np.sqrt(len(theta)) for r, c in neighbours])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            attended[:, y, x] = sum(a * skip[:, r, c] for a, (r, c) in zip(share, neighbours, strict=True))
    return attended


@settings(max_examples=15)
@given(
    window=st.sampled_from([3, 5, 7]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_the_neighbourhood_gate_equals_its_definition_on_any_size_even_below_the_window(
    window: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    gate = NeighbourhoodGate(channels=6, hidden=4, window=window)
    skip = torch.randn(1, 6, height, width)
    with torch.no_grad():
        got = gate(skip, skip)[0].numpy()
    assert np.abs(got - brute_force_neighbourhood(gate, skip[0].double().numpy())).max() < 1e-5


def test_a_constant_image_passes_the_neighbourhood_gate_unchanged_up_to_the_border() -> None:
    gate = NeighbourhoodGate(channels=4, hidden=2, window=5)
    skip = torch.full((1, 4, 8, 8), 3.0)
    with torch.no_grad():
        assert torch.allclose(gate(skip, skip), skip, atol=1e-5)


def test_the_neighbourhood_gate_shares_its_gradient_with_float64_numerical_differences() -> None:
    torch.manual_seed(0)
    gate = NeighbourhoodGate(channels=3, hidden=2, window=3).double()
    skip = torch.randn(1, 3, 4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gate(x, x), (skip,))


def test_the_additive_gate_equals_its_formula() -> None:
    torch.manual_seed(0)
    gate = AdditiveGate(channels=4, coarse_channels=8, hidden=3).double()
    skip = torch.randn(2, 4, 6, 10, dtype=torch.double)
    coarse = torch.randn(2, 8, 3, 5, dtype=torch.double)
    with torch.no_grad():
        got = gate(skip, coarse).numpy()
    weights = {name: p.detach().numpy() for name, p in gate.named_parameters()}
    projected = np.einsum("dc,nchw->ndhw", weights["project_coarse.weight"][:, :, 0, 0], coarse.numpy())
    projected += weights["project_coarse.bias"][None, :, None, None]
    gating = np.stack([[_double_bilinear(channel) for channel in image] for image in projected])
    hidden = np.einsum("dc,nchw->ndhw", weights["project_skip.weight"][:, :, 0, 0], skip.numpy()) + gating
    score = np.einsum("d,ndhw->nhw", weights["psi.weight"][0, :, 0, 0], np.maximum(hidden, 0)) + weights["psi.bias"]
    assert np.abs(got - skip.numpy() / (1 + np.exp(-score))[:, None]).max() < 1e-12


def _double_bilinear(image: np.ndarray) -> np.ndarray:
    """Twice the size with half-pixel centres and a replicated border."""

    def along(values: np.ndarray) -> np.ndarray:
        before = np.concatenate([values[:1], values[:-1]])
        after = np.concatenate([values[1:], values[-1:]])
        doubled = np.empty((2 * len(values), *values.shape[1:]))
        doubled[0::2] = 0.75 * values + 0.25 * before
        doubled[1::2] = 0.75 * values + 0.25 * after
        return doubled

    return along(along(image).T).T


@pytest.mark.parametrize("window", [3, 5, 7])
def test_attention_weights_outside_the_image_are_exactly_zero(window: int) -> None:
    """Features far from 0 inside would be pulled towards the zero padding if it took part."""
    gate = NeighbourhoodGate(channels=2, hidden=2, window=window)
    skip = 10.0 + torch.rand(1, 2, 3, 3)
    with torch.no_grad():
        attended = gate(skip, skip)
    assert attended.min() >= skip.min() - 1e-4
