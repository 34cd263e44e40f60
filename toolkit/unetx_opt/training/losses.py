"""Losses on logits: cross-entropy, focal loss and soft Dice; binary (K = 1) and multi-class (K >= 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import SpecError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = require("torch", purpose="training a model")
    functional = torch.nn.functional

__all__ = ["LOSSES", "Loss", "cross_entropy", "cross_entropy_dice", "focal", "focal_dice", "get_loss", "soft_dice"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of all pixels.

    Parameters
    ----------
    logits : Tensor
        (N, K, H, W); K = 1 is binary (sigmoid), K >= 2 is multi-class (softmax, class 0 is the background).
    labels : Tensor
        (N, H, W), integers in [0, max(K, 2)).

    Returns
    -------
    Tensor
        Scalar, float32.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels.long())


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the mean soft Dice over images and foreground classes.

    Parameters
    ----------
    logits, labels : Tensor
        As in `cross_entropy`.

    Returns
    -------
    Tensor
        Scalar, float32.

    Notes
    -----
    Soft Dice per image and class is (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), after Milletari et al. 2016 (V-Net)
    without the squares; the 1 keeps empty classes finite.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        target = labels.unsqueeze(1).to(logits.dtype)
        chance = logits.sigmoid()
    else:
        chance = logits.softmax(dim=1)[:, 1:]
        target = _one_hot(labels, logits.shape[1])[:, 1:]
    overlap = (chance * target).sum(dim=(2, 3))
    size = chance.sum(dim=(2, 3)) + target.sum(dim=(2, 3))
    return 1.0 - ((2.0 * overlap + 1.0) / (size + 1.0)).mean()


def cross_entropy_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of `cross_entropy` and `soft_dice`: what the baseline is trained with."""
    return cross_entropy(logits, labels) + soft_dice(logits, labels)


def focal_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of `focal` and `soft_dice`: the baseline's loss with the focal loss in the place of the cross-entropy."""
    return focal(logits, labels) + soft_dice(logits, labels)


def focal(logits: Tensor, labels: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Mean focal loss, -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017).

    Parameters
    ----------
    logits : Tensor
        (N, K, H, W), as in `cross_entropy_dice`.
    labels : Tensor
        (N, H, W), integers in [0, max(K, 2)).
    alpha : float
        Weight of every foreground class, in (0, 1); the background weighs ``1 - alpha``.
    gamma : float
        Decay of well classified pixels, >= 0; 0 leaves the weighted cross-entropy.

    Returns
    -------
    Tensor
        Scalar, float32. log(p_t) comes from log-sigmoid or log-softmax, so that it is finite for any finite logit.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        # The logit of the true class: its sign follows the label.
        signed = torch.where(labels.bool(), logits[:, 0], -logits[:, 0])
        log_chance = functional.logsigmoid(signed)
        miss = torch.sigmoid(-signed)
    else:
        log_chance = functional.log_softmax(logits, dim=1).gather(1, labels.long().unsqueeze(1))[:, 0]
        # 1 - p_t by expm1 keeps its gradient where p_t rounds to 1.
        miss = -torch.expm1(log_chance)
    weight = torch.where(labels.bool(), alpha, 1.0 - alpha)
    # The power's gradient is infinite at 0 for gamma < 1.
    return -(weight * miss.clamp_min(1e-12).pow(gamma) * log_chance).mean()


@dataclass(frozen=True, slots=True)
class Loss:
    """A row of the table of losses.

    Attributes
    ----------
    name : str
        What a variant calls it.
    summary : str
        One line for model cards.
    compute : callable
        (logits (N, K, H, W), labels (N, H, W)) -> scalar.
    """

    name: str
    summary: str
    compute: Callable[[Tensor, Tensor], Tensor]


#: Loss name -> its row.
LOSSES: Final[Mapping[str, Loss]] = MappingProxyType(
    {
        row.name: row
        for row in (
            Loss("bce_dice", "cross-entropy + soft Dice", cross_entropy_dice),
            Loss("focal_dice", "focal loss (alpha 0.75 on the foreground, gamma 2) + soft Dice", focal_dice),
            Loss("cross_entropy", "cross-entropy", cross_entropy),
            Loss("dice", "soft Dice", soft_dice),
            Loss("focal", "focal loss, alpha 0.75 on the foreground, gamma 2", focal),
        )
    }
)


def get_loss(name: str) -> Loss:
    """Look up a loss.

    Raises
    ------
    SpecError
        The name is unknown.
    """
    if name not in LOSSES:
        raise SpecError(f"unknown loss {name!r}, expected one of {', '.join(LOSSES)}")
    return LOSSES[name]


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return functional.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()
