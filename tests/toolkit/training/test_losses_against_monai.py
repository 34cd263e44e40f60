"""Losses against MONAI's, which share no code with them, and their stability in half precision.

MONAI averages its softmax focal loss over pixels *and* classes; every pixel has one true class, so that its mean
over pixels, as in Lin et al. 2017, is MONAI's value times the number of classes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="losses need torch: pip install 'unetx-opt[train]'")
monai_losses: Any = pytest.importorskip("monai.losses", reason="compared with MONAI: pip install 'unetx-opt[dev]'")

from unetx_opt.training.losses import (  # noqa: E402
    LOSSES,
    cross_entropy,
    cross_entropy_dice,
    focal,
    focal_dice,
    soft_dice,
)

_TOLERANCE = 1e-6
_SEEDS = st.integers(0, 2**32 - 1)
_CLASSES = st.sampled_from([1, 2, 4])
_SPREADS = st.floats(0.01, 5.0)
# Dice of MONAI without smoothing terms of its own, and without the background where it is a class.
_DICE = {"smooth_nr": 1.0, "smooth_dr": 1.0}


def _case(seed: int, classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    shape = (random.integers(1, 4), classes, random.integers(1, 9), random.integers(1, 9))
    logits = torch.from_numpy(random.normal(0, spread, shape).astype(np.float32))
    labels = random.integers(0, max(2, classes), (shape[0], *shape[2:])).astype(np.uint8)
    return logits, torch.from_numpy(labels)


def _monai_target(labels: torch.Tensor, classes: int) -> torch.Tensor:
    target = labels.long()[:, None]
    return target.float() if classes == 1 else monai_losses.dice.one_hot(target, num_classes=classes)


def _monai_focal(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    classes = logits.shape[1]
    compute = monai_losses.FocalLoss(gamma=gamma, alpha=alpha, use_softmax=classes > 1)
    return classes * compute(logits, _monai_target(labels, classes))


def _monai_dice(classes: int) -> Any:
    return monai_losses.DiceLoss(include_background=classes == 1, sigmoid=classes == 1, softmax=classes > 1, **_DICE)


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return math.isclose(float(ours), float(theirs), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


@given(_SEEDS, _CLASSES, _SPREADS, st.floats(0.0, 1.0), st.floats(0.0, 5.0))
@example(0, 1, 2.0, 0.75, 2.0)
@example(0, 4, 2.0, 0.75, 2.0)
@example(1, 4, 2.0, 0.25, 0.0)
def test_focal_is_monais(seed: int, classes: int, spread: float, alpha: float, gamma: float) -> None:
    logits, labels = _case(seed, classes, spread)
    assert _agree(focal(logits, labels, alpha, gamma), _monai_focal(logits, labels, alpha, gamma))


@given(_SEEDS, _CLASSES, _SPREADS)
def test_soft_dice_is_monais(seed: int, classes: int, spread: float) -> None:
    logits, labels = _case(seed, classes, spread)
    assert _agree(soft_dice(logits, labels), _monai_dice(classes)(logits, _monai_target(labels, classes)))


@given(_SEEDS, _CLASSES, _SPREADS)
def test_cross_entropy_and_dice_are_monais_sum(seed: int, classes: int, spread: float) -> None:
    logits, labels = _case(seed, classes, spread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = monai_losses.DiceCELoss(
            include_background=classes == 1, sigmoid=classes == 1, softmax=classes > 1, **_DICE
        )
    target = _monai_target(labels, classes)
    assert _agree(cross_entropy_dice(logits, labels), theirs(logits, target))
    assert _agree(cross_entropy(logits, labels) + soft_dice(logits, labels), theirs(logits, target))


@given(_SEEDS, _SPREADS)
def test_focal_and_dice_are_monais_sum_for_a_binary_mask(seed: int, spread: float) -> None:
    logits, labels = _case(seed, 1, spread)
    theirs = monai_losses.DiceFocalLoss(sigmoid=True, gamma=2.0, alpha=0.75, **_DICE)
    assert _agree(focal_dice(logits, labels), theirs(logits, _monai_target(labels, 1)))


@given(_SEEDS, st.sampled_from([2, 4]), _SPREADS)
def test_focal_and_dice_are_the_sum_of_monais_parts_for_several_classes(
    seed: int, classes: int, spread: float
) -> None:
    """MONAI's own sum takes a sigmoid per class in its focal part, which is another loss; its parts agree."""
    logits, labels = _case(seed, classes, spread)
    theirs = _monai_dice(classes)(logits, _monai_target(labels, classes)) + _monai_focal(logits, labels, 0.75, 2.0)
    assert _agree(focal_dice(logits, labels), theirs)


@pytest.mark.parametrize("classes", [1, 4])
def test_gradients_are_monais(classes: int) -> None:
    logits, labels = _case(5, classes, 2.0)
    gradients = []
    for compute in (lambda x: focal(x, labels), lambda x: _monai_focal(x, labels, 0.75, 2.0)):
        leaf = logits.clone().requires_grad_()
        compute(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=_TOLERANCE)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@given(seed=_SEEDS, classes=_CLASSES, magnitude=st.floats(0.0, 6e4))
@example(seed=0, classes=1, magnitude=6e4)
@example(seed=0, classes=4, magnitude=6e4)
def test_half_precision_logits_as_large_as_they_go_give_finite_losses_and_gradients(
    name: str, dtype: torch.dtype, seed: int, classes: int, magnitude: float
) -> None:
    logits, labels = _case(seed, classes, 1.0)
    logits = (logits.sign() * magnitude).to(dtype).requires_grad_()
    assert bool(torch.isfinite(logits).all())
    loss = LOSSES[name].compute(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert logits.grad.dtype == dtype
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", [1, 4])
def test_focal_is_finite_where_every_pixel_is_surely_right_or_surely_wrong(classes: int, gamma: float) -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    right = 6e4 * (2.0 * _monai_target(labels, classes) - 1.0)
    for sign in (1.0, -1.0):
        logits = (sign * right).half().requires_grad_()
        loss = focal(logits, labels, 0.75, gamma)
        loss.backward()
        assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())
        assert loss.item() == 0.0 if sign > 0 else loss.item() > 1e3
