"""The float64 definition against loops over single pixels, and against the model's own modules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetx_kernels.attention_gate.plain import attend_by_taps, attend_by_unfold
from unetx_kernels.attention_gate.reference import (
    additive_gate,
    neighbourhood_gate,
    neighbourhood_gate_gradients,
    upsample_bilinear,
)

Tensor = NDArray[Any]


def _attend_by_loops(theta: Tensor, phi: Tensor, values: Tensor, window: int, dilation: int) -> Tensor:
    images, hidden, height, width = theta.shape
    attended = np.zeros_like(values)
    steps = [dilation * step for step in range(-(window // 2), window // 2 + 1)]
    for n, y, x in np.ndindex(images, height, width):
        near = [(y + dy, x + dx) for dy in steps for dx in steps if 0 <= y + dy < height and 0 <= x + dx < width]
        scores = [
            math.fsum(theta[n, d, y, x] * phi[n, d, v, u] for d in range(hidden)) / math.sqrt(hidden) for v, u in near
        ]
        exponentials = [math.exp(score - max(scores)) for score in scores]
        for weight, (v, u) in zip(exponentials, near, strict=True):
            attended[n, :, y, x] += weight / math.fsum(exponentials) * values[n, :, v, u]
    return attended


@settings(max_examples=20)
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (2, 3, 3, 7, 7))),
    window=st.sampled_from([3, 5, 7]),
    dilation=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_neighbourhood_gate_is_what_loops_over_pixels_give(
    sizes: tuple[int, int, int, int, int], window: int, dilation: int, seed: int
) -> None:
    images, hidden, channels, height, width = sizes
    random = np.random.default_rng(seed)
    theta, phi = random.normal(size=(2, images, hidden, height, width))
    values = random.normal(size=(images, channels, height, width))
    residual = random.normal(size=values.shape)
    expected = _attend_by_loops(theta, phi, values, window, dilation)
    np.testing.assert_allclose(
        neighbourhood_gate(theta, phi, values, window, dilation=dilation), expected, atol=1e-12, rtol=0
    )
    added = neighbourhood_gate(theta, phi, values, window, dilation=dilation, residual=residual)
    np.testing.assert_allclose(added, expected + residual, atol=1e-12, rtol=0)


def test_the_additive_gate_is_what_loops_over_pixels_give() -> None:
    random = np.random.default_rng(0)
    values, skip = random.normal(size=(2, 3, 5, 6)), random.normal(size=(2, 4, 5, 6))
    coarse, psi = random.normal(size=(2, 4, 3, 3)), random.normal(size=4)
    gated = additive_gate(values, skip, coarse, psi, psi_bias=0.3)
    upsampled = upsample_bilinear(coarse, 5, 6)
    for n, y, x in np.ndindex(2, 5, 6):
        score = 0.3 + sum(psi[d] * max(0.0, skip[n, d, y, x] + upsampled[n, d, y, x]) for d in range(4))
        np.testing.assert_allclose(gated[n, :, y, x], values[n, :, y, x] / (1 + math.exp(-score)), atol=1e-12)


def test_both_gates_are_those_of_the_model() -> None:
    torch = pytest.importorskip("torch", reason="the model is written in PyTorch")
    from unetx_opt.models.attention import AdditiveGate, NeighbourhoodGate

    torch.manual_seed(0)
    skip, coarse = torch.randn(2, 6, 8, 10, dtype=torch.float64), torch.randn(2, 5, 4, 5, dtype=torch.float64)
    near = NeighbourhoodGate(6, 3, 5).double()
    far = AdditiveGate(6, 5, 4).double()
    with torch.no_grad():
        attended, gated = near(skip, coarse).numpy(), far(skip, coarse).numpy()
        theta, phi = near.theta(skip).numpy(), near.phi(skip).numpy()
        projections = far.project_skip(skip).numpy(), far.project_coarse(coarse).numpy()
        psi, bias = far.psi.weight.numpy().reshape(-1), float(far.psi.bias[0])
    np.testing.assert_allclose(neighbourhood_gate(theta, phi, skip.numpy(), 5), attended, atol=1e-12)
    np.testing.assert_allclose(additive_gate(skip.numpy(), *projections, psi, psi_bias=bias), gated, atol=1e-12)


@pytest.mark.parametrize(("window", "dilation"), [(4, 1), (9, 1), (3, 0)])
def test_a_window_that_the_kernels_do_not_know_is_refused(window: int, dilation: int) -> None:
    pixel = np.zeros((1, 1, 1, 1))
    with pytest.raises(ValueError, match="expected one of"):
        neighbourhood_gate(pixel, pixel, pixel, window, dilation=dilation)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, D, H, W\)"):
        neighbourhood_gate(np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 4, 3)), 3)


@settings(max_examples=20)
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (2, 4, 4, 9, 9))),
    window=st.sampled_from([3, 5, 7]),
    dilation=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_gradients_and_plain_pytorch_agree_in_float64(
    sizes: tuple[int, ...], window: int, dilation: int, seed: int
) -> None:
    torch = pytest.importorskip("torch", reason="autograd is the independent implementation")
    images, hidden, channels, height, width = sizes
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(images, depth, height, width)) for depth in (hidden, hidden, channels, channels)]
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays[:3]]
    exact = neighbourhood_gate(arrays[0], arrays[1], arrays[2], window, dilation=dilation)
    for attended in (
        attend_by_taps(*leaves, None, window, dilation),
        attend_by_unfold(*leaves, window, dilation),
    ):
        np.testing.assert_allclose(attended.detach().numpy(), exact, atol=1e-12)
        found = torch.autograd.grad(attended, leaves, torch.from_numpy(arrays[3]))
        expected = neighbourhood_gate_gradients(
            (arrays[0], arrays[1], arrays[2]), arrays[3], window, dilation=dilation
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.numpy(), other, atol=1e-11)
