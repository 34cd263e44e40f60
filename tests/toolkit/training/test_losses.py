"""Losses against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.errors import SpecError

torch = pytest.importorskip("torch", reason="losses need torch: pip install 'unetx-opt[train]'")

from unetx_opt.models.variants import VARIANTS  # noqa: E402
from unetx_opt.training.losses import LOSSES, cross_entropy_dice, focal, get_loss  # noqa: E402


def _case(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(classes)
    logits = torch.from_numpy(random.normal(0, 3, (2, classes, 5, 4)).astype(np.float32))
    labels = torch.from_numpy(random.integers(0, max(2, classes), (2, 5, 4)).astype(np.uint8))
    return logits, labels


def _chances(logits: torch.Tensor) -> np.ndarray:
    """(N, K >= 2, H, W) float64."""
    values = logits.numpy().astype(np.float64)
    if values.shape[1] == 1:
        values = np.concatenate([np.zeros_like(values), values], axis=1)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _true_chance(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return np.take_along_axis(_chances(logits), labels.numpy().astype(int)[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.75, 2.0), (0.25, 0.5), (0.5, 0.0)])
def test_focal_follows_its_formula(classes: int, alpha: float, gamma: float) -> None:
    logits, labels = _case(classes)
    true = _true_chance(logits, labels)
    weight = np.where(labels.numpy() > 0, alpha, 1 - alpha)
    expected = -(weight * (1 - true) ** gamma * np.log(true)).mean()
    assert float(focal(logits, labels, alpha, gamma)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_cross_entropy_and_dice_follow_their_formulas(classes: int) -> None:
    logits, labels = _case(classes)
    entropy = -np.log(_true_chance(logits, labels)).mean()
    scores = []
    for n in range(2):
        for c in range(1, max(2, classes)):
            chance, target = _chances(logits)[n, c], labels.numpy()[n] == c
            scores.append((2 * chance[target].sum() + 1) / (chance.sum() + target.sum() + 1))
    expected = entropy + 1 - np.mean(scores)
    assert float(cross_entropy_dice(logits, labels)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_one_logit_and_two_logits_say_the_same(name: str) -> None:
    logits, labels = _case(1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    compute = LOSSES[name].compute
    assert float(compute(logits, labels)) == pytest.approx(float(compute(two, labels)), rel=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("magnitude", [0.0, 200.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_and_gradients_are_finite_for_any_logit(
    name: str, classes: int, magnitude: float, dtype: torch.dtype
) -> None:
    logits, labels = _case(classes)
    logits = (logits.sign() * magnitude).to(dtype).requires_grad_()
    loss = LOSSES[name].compute(logits, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_sure_and_right_answer_costs_almost_nothing_and_a_wrong_one_much(name: str) -> None:
    labels = torch.zeros((1, 8, 8), dtype=torch.uint8)
    labels[:, 2:6, 2:6] = 1
    right = torch.where(labels.bool(), 20.0, -20.0)[:, None]
    compute = LOSSES[name].compute
    assert float(compute(right, labels)) < 1e-3
    # Dice alone never exceeds 1, and its smoothing keeps it a little below.
    assert float(compute(-right, labels)) > 0.95


def test_focal_weighs_the_foreground_more_than_the_background() -> None:
    logits = torch.zeros((1, 1, 2, 2))
    foreground = focal(logits, torch.ones((1, 2, 2), dtype=torch.uint8))
    background = focal(logits, torch.zeros((1, 2, 2), dtype=torch.uint8))
    assert float(foreground) == pytest.approx(3 * float(background))


def test_empty_masks_leave_dice_finite() -> None:
    logits, _ = _case(1)
    assert bool(torch.isfinite(cross_entropy_dice(logits, torch.zeros((2, 5, 4), dtype=torch.uint8))))


def test_every_variant_names_a_known_loss() -> None:
    assert {row.loss for row in VARIANTS.values()} <= set(LOSSES)


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="unknown loss 'hinge', expected one of bce_dice, focal"):
        get_loss("hinge")
