"""The .cu files of the gates on the host, with address and undefined-behaviour sanitizers, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetx_kernels.attention_gate import reference
from unetx_kernels.attention_gate.plain import attend_by_taps

torch = pytest.importorskip("torch", reason="plain PyTorch is what the kernels' errors are compared with")

CASES: dict[str, dict[str, Any]] = {
    "one pixel": {"window": 7, "images": 1, "hidden": 1, "channels": 1, "height": 1, "width": 1},
    "smaller than the window": {"window": 7, "images": 1, "hidden": 3, "channels": 2, "height": 2, "width": 3},
    "one row": {"window": 3, "images": 2, "hidden": 2, "channels": 9, "height": 1, "width": 19},
    "odd sides, odd channels": {
        "window": 5,
        "images": 2,
        "hidden": 5,
        "channels": 3,
        "height": 7,
        "width": 11,
        "residual": True,
    },
    "whole vectors": {
        "window": 3,
        "images": 1,
        "hidden": 8,
        "channels": 16,
        "height": 6,
        "width": 16,
        "residual": True,
    },
    "whole vectors, window 7": {"window": 7, "images": 1, "hidden": 9, "channels": 8, "height": 5, "width": 24},
    "whole vectors off 16 bytes": {
        "window": 5,
        "images": 1,
        "hidden": 8,
        "channels": 8,
        "height": 5,
        "width": 16,
        "residual": True,
        "shift": 1,
    },
    "dilation 2": {"window": 3, "images": 1, "hidden": 4, "channels": 5, "height": 9, "width": 17, "dilation": 2},
    "dilation beyond the image": {
        "window": 5,
        "images": 1,
        "hidden": 2,
        "channels": 3,
        "height": 4,
        "width": 5,
        "dilation": 6,
    },
}
ADDITIVE: dict[str, dict[str, Any]] = {
    "additive": {
        "window": 0,
        "images": 2,
        "hidden": 5,
        "channels": 3,
        "height": 6,
        "width": 10,
        "residual": True,
        "coarse": (3, 5),
    },
    "additive, odd ratio": {
        "window": 0,
        "images": 1,
        "hidden": 9,
        "channels": 8,
        "height": 7,
        "width": 9,
        "coarse": (3, 4),
    },
    "additive, whole vectors": {
        "window": 0,
        "images": 1,
        "hidden": 16,
        "channels": 16,
        "height": 4,
        "width": 8,
        "residual": True,
        "coarse": (2, 4),
    },
    "additive off 16 bytes": {
        "window": 0,
        "images": 1,
        "hidden": 8,
        "channels": 8,
        "height": 4,
        "width": 8,
        "shift": 1,
        "coarse": (2, 4),
    },
}
FORMATS = [
    pytest.param(
        {"half": half, "channels_last": last}, id=f"{'fp16' if half else 'fp32'}-{'nhwc' if last else 'nchw'}"
    )
    for half in (False, True)
    for last in (False, True)
]
SHAPES = st.fixed_dictionaries(
    {
        "window": st.sampled_from([3, 5, 7]),
        "images": st.integers(1, 2),
        "hidden": st.integers(1, 17),
        "channels": st.integers(1, 17),
        "height": st.integers(1, 9),
        "width": st.integers(1, 20),
        "dilation": st.integers(1, 3),
        "residual": st.booleans(),
        "shift": st.integers(0, 1),
        "half": st.booleans(),
        "channels_last": st.booleans(),
    }
)


def _expected(case: Any, tensors: list[NDArray[Any]]) -> NDArray[np.float64]:
    residual = tensors[-1] if case.residual else None
    if case.window == 0:
        return reference.additive_gate(*tensors[:4], psi_bias=case.psi_bias, residual=residual)
    return reference.neighbourhood_gate(*tensors[:3], case.window, dilation=case.dilation, residual=residual)


def _plain(case: Any, tensors: list[NDArray[Any]]) -> Any:
    """The gate one operation of PyTorch at a time, each result rounded to the type of the inputs."""
    given_ = [torch.from_numpy(tensor) for tensor in tensors]
    residual = given_[-1] if case.residual else None
    if case.window:
        return attend_by_taps(*given_[:3], residual, case.window, case.dilation)
    values, skip, coarse, psi = given_[:4]
    size = (case.height, case.width)
    up = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    score = (psi[:, None, None] * torch.relu(skip + up)).sum(1, keepdim=True) + case.psi_bias
    gated = torch.sigmoid(score) * values
    return gated if residual is None else gated + residual


def _assert_bound(fused: Any, plain: Any, expected: NDArray[np.float64], dtype: Any, size: float = 0.0) -> None:
    fused_error = np.abs(fused - expected).max()
    plain_error = np.abs(plain - expected).max()
    assert fused_error <= 2 * plain_error + np.finfo(dtype).eps * max(size, np.abs(expected).max())


def _check_forward(gates: Any, case: Any) -> None:
    done, fused = gates.forward(case)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    tensors = case.tensors()
    _assert_bound(fused, _plain(case, tensors).double().numpy(), _expected(case, tensors), case.dtype)


def _check_gradients(gates: Any, case: Any) -> None:
    done, fused = gates.gradients(case)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    *inputs, gradient = case.tensors(gradient=True)
    theta, phi, values = inputs
    exact = reference.neighbourhood_gate_gradients(
        (theta, phi, values), gradient, case.window, dilation=case.dilation
    )
    leaves = [torch.from_numpy(tensor).requires_grad_() for tensor in inputs]
    attend_by_taps(*leaves, None, case.window, case.dilation).backward(torch.from_numpy(gradient))
    # Scores' gradients are differences: their rounding scales with the terms, not with what is left of them.
    terms = np.abs(gradient.astype(float)).sum(1).max() * float(np.abs(values).max()) / np.sqrt(case.hidden)
    # Weights that are made again from scores and the logarithm of their sum err as their difference does.
    score = np.prod([np.linalg.norm(tensor.astype(float), axis=1).max() for tensor in (theta, phi)])
    weights = float(score / np.sqrt(case.hidden) * np.abs(exact[2]).max())
    sizes = (terms * float(np.abs(phi).max()), terms * float(np.abs(theta).max()), weights)
    for found, leaf, expected, size in zip(fused, leaves, exact, sizes, strict=True):
        fine = size if not case.half else size * 2.0**-13  # sums are in float32 whatever the inputs are
        _assert_bound(found, leaf.grad.double().numpy(), expected, case.dtype, fine)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", (CASES | ADDITIVE).values(), ids=list(CASES | ADDITIVE))
def test_a_kernel_errs_at_most_twice_as_much_as_plain_pytorch(gates: Any, shape: Any, form: Any) -> None:
    _check_forward(gates, gates.case(**shape, **form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", CASES.values(), ids=list(CASES))
def test_gradients_err_at_most_twice_as_much_as_those_of_plain_pytorch(gates: Any, shape: Any, form: Any) -> None:
    _check_gradients(gates, gates.case(**shape, **form))


@settings(max_examples=60)
@given(shape=SHAPES)
def test_the_bound_holds_for_any_shape_and_form_forward_and_backward(gates: Any, shape: dict[str, Any]) -> None:
    case = gates.case(**shape)
    _check_forward(gates, case)
    _check_gradients(gates, case)


@settings(max_examples=25)
@given(shape=SHAPES, coarse=st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_the_bound_holds_for_any_additive_gate(gates: Any, shape: dict[str, Any], coarse: tuple[int, int]) -> None:
    _check_forward(gates, gates.case(**{**shape, "window": 0}, coarse=coarse))


@pytest.mark.parametrize("window", [3, 5, 7])
def test_gradients_are_those_of_finite_differences(gates: Any, window: int) -> None:
    case = gates.case(window=window, images=1, hidden=2, channels=3, height=4, width=5)
    done, fused = gates.gradients(case)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    *inputs, gradient = (tensor.astype(np.float64) for tensor in case.tensors(gradient=True))
    step = 1e-5
    for index, found in enumerate(fused):
        for place in ((0, 0, 0, 0), (0, 1, 2, 3), (0, 0, 3, 4)):
            sums = []
            for sign in (1, -1):
                moved = [tensor.copy() for tensor in inputs]
                moved[index][place] += sign * step
                sums.append((reference.neighbourhood_gate(*moved, window) * gradient).sum())
            assert found[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-4, abs=1e-5)


# Two chunks of channels and two tiles, so that a defect between chunks or at an inner border has its chance.
DEFECTIVE: dict[str, Any] = {"window": 3, "images": 1, "hidden": 9, "channels": 9, "height": 5, "width": 11}


@pytest.mark.parametrize("defect", [1, 2], ids=["before the tile is read", "before the tile is overwritten"])
def test_a_planted_missing_barrier_is_found(gates: Any, defect: int) -> None:
    case = gates.case(**DEFECTIVE)
    done, fused = gates.forward(case, defect)
    assert done.returncode == 0
    assert np.abs(fused - _expected(case, case.tensors())).max() > 0.01
    done, gradients = gates.gradients(case, defect)
    assert done.returncode == 0
    *inputs, gradient = case.tensors(gradient=True)
    exact = reference.neighbourhood_gate_gradients(tuple(inputs), gradient, case.window)
    assert max(np.abs(found - expected).max() for found, expected in zip(gradients, exact, strict=True)) > 0.01


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("defect", [1, 4], ids=["no barrier", "copies that are not waited for"])
def test_a_planted_defect_of_the_kernels_on_the_tensor_cores_is_found(
    gates: Any, defect: int, channels_last: bool
) -> None:
    # Whole runs, which are copied late, of two buffers for either input.
    case = gates.case(
        window=3, images=1, hidden=24, channels=24, height=9, width=24, half=True, channels_last=channels_last
    )
    done, fused = gates.forward(case)
    assert done.returncode == 0
    expected = _expected(case, case.tensors())
    assert np.abs(fused - expected).max() < 0.01
    done, fused = gates.forward(case, defect)
    assert done.returncode == 0
    assert not np.abs(fused - expected).max() < 0.01


@pytest.mark.parametrize("run", ["forward", "gradients"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_planted_read_beyond_the_tensor_is_found(gates: Any, channels_last: bool, run: str) -> None:
    case = gates.case(**{**DEFECTIVE, "hidden": 1}, channels_last=channels_last)
    done, _ = getattr(gates, run)(case, 3)
    assert done.returncode != 0
    assert b"AddressSanitizer: heap-buffer-overflow" in done.stderr
