"""Parameters of the dense CRF, found on validation images: a coarse grid, then steps along the axes.

The network runs once per image; every candidate is then judged by the mean Dice of the masks that a user would get,
on the grid of the source images. The search is a function of the logits alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_opt.errors import DataError
from unetx_opt.imaging.dense_crf import CrfParameters
from unetx_opt.imaging.preprocess import ImageGeometry, prepare_image
from unetx_opt.imaging.refinement import DEFAULT_BACKEND, Refiner, crf_step_parameters, decide_labels, make_refiner
from unetx_opt.metrics.overlap import dice
from unetx_opt.metrics.paired import PairedDifference, paired_difference
from unetx_opt.optional import require
from unetx_opt.training.options import training_contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.models.unet import UNet
    from unetx_opt.training.labelled import LabelledImages

__all__ = ["SEARCHED_VALUES", "SPLIT", "CrfFit", "CrfFitOptions", "fit_crf_parameters", "weakest_first"]

#: The only split whose images may decide parameters.
SPLIT: Final = "validation"
#: Side of the grid to whose pixels the widths below belong; other inputs scale them.
GRID_PX: Final = 256
#: Parameter -> the values that are tried, ascending. A CRF that does nothing is not among their combinations.
SEARCHED_VALUES: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "smoothness_sxy": (1.0, 1.5, 2.0, 3.0, 5.0),
        "smoothness_compat": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
        "bilateral_sxy": (3.0, 6.0, 12.0, 24.0, 48.0),
        "bilateral_srgb": (5.0, 8.0, 13.0, 20.0, 32.0, 50.0),
        "bilateral_compat": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        "iterations": (1, 2, 3, 5),
    }
)
# Where the steps along the axes begin: the best of these, so that they do not end on the first small hill.
_START: Final = CrfParameters(2.0, 1.0, 12.0, 13.0, 1.0, iterations=2)
_COARSE: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "smoothness_sxy": (1.5, 5.0),
        "smoothness_compat": (0.0, 4.0),
        "bilateral_sxy": (6.0, 48.0),
        "bilateral_srgb": (8.0, 32.0),
        "bilateral_compat": (0.5, 4.0),
    }
)


@dataclass(frozen=True, slots=True)
class CrfFitOptions:
    """How parameters are searched.

    Attributes
    ----------
    size_px : int
        Height and width of the network's input.
    backend : str
        What computes the CRF.
    most_images : int
        Of a larger validation split so many are taken, at equal distances in its order.
    most_candidates : int
        The search ends here at the latest.
    tie : float
        Mean Dice coefficients this near to the best one count as equal; of equals the weakest CRF is taken.
    """

    size_px: int = 256
    backend: str = DEFAULT_BACKEND
    most_images: int = 100
    most_candidates: int = 120
    tie: float = 1e-5


@dataclass(frozen=True, slots=True)
class CrfFit:
    """What a search found.

    Attributes
    ----------
    parameters : mapping of str to float
        Of the step ``dense_crf``.
    dice, dice_without : float
        Mean Dice over images and classes with the step and without it.
    images : int
        Images that decided.
    candidates : int
        Parameters that were tried.
    gain : PairedDifference or None
        Dice with the step minus without it, paired by image; None for a single image. The images are those that the
        parameters were chosen on, so that it flatters the step.
    """

    parameters: Mapping[str, float]
    dice: float
    dice_without: float
    images: int
    candidates: int
    gain: PairedDifference | None

    @property
    def helps(self) -> bool:
        """Whether the masks are better with the step than without it: the whole 95 % interval is above 0."""
        return self.gain is not None and self.gain.lower > 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for a checkpoint's header."""
        return {
            "split": SPLIT,
            "images": self.images,
            "candidates": self.candidates,
            "dice": self.dice,
            "dice_without": self.dice_without,
            "gain_ci95": None if self.gain is None else [self.gain.lower, self.gain.upper],
            "helps": self.helps,
        }


@dataclass(frozen=True, slots=True)
class _Case:
    logits_chw: NDArray[np.float32]
    image_chw: NDArray[np.float32]
    geometry: ImageGeometry
    truth: NDArray[np.uint8]


def fit_crf_parameters(
    model: UNet,
    validation: LabelledImages,
    options: CrfFitOptions = CrfFitOptions(),
    watch: Callable[[int, float], None] = lambda tried, best: None,
) -> CrfFit:
    """Search the parameters of the dense CRF that suit a network.

    Parameters
    ----------
    model : UNet
        In evaluation mode, on the CPU.
    validation : LabelledImages
        The validation split of its data.
    options : CrfFitOptions
        Input size and limits of the search.
    watch : callable
        Called after every candidate with their number and the best mean Dice.

    Returns
    -------
    CrfFit
        The best parameters, of equals the weakest; where nothing tried helps, what harms least.

    Raises
    ------
    DataError
        The images are of another split, or there is none.
    MissingPackageError
        The backend's package is not installed.
    """
    split = getattr(validation, "split", SPLIT)
    if split != SPLIT:
        raise DataError(f"images of split {split!r} were given to fit the CRF on, expected {SPLIT!r}")
    cases = tuple(_cache_logits(model, validation, options))
    if not cases:
        raise DataError("no validation image was given to fit the CRF on, expected at least one")
    contract = training_contract(options.size_px)
    scores: dict[CrfParameters, float] = {}

    def score_images(candidate: CrfParameters) -> list[float]:
        step = crf_step_parameters(candidate, GRID_PX)
        return _score_images(cases, make_refiner("dense_crf", step, contract, options.backend))

    def judge(candidate: CrfParameters) -> None:
        scores[candidate] = _mean(score_images(candidate))
        watch(len(scores), max(scores.values()))

    for candidate in _coarse_grid():
        judge(candidate)
    while True:
        best = _choose(scores, options.tie)
        fresh = [candidate for candidate in _neighbours(best) if candidate not in scores]
        if not fresh or len(scores) >= options.most_candidates:
            break
        for candidate in fresh:
            judge(candidate)
    without = _score_images(cases, None)
    return CrfFit(
        parameters=crf_step_parameters(best, GRID_PX),
        dice=scores[best],
        dice_without=_mean(without),
        images=len(cases),
        candidates=len(scores),
        gain=_compare(score_images(best), without),
    )


def weakest_first(parameters: CrfParameters) -> tuple[float, ...]:
    """Sort key of CRFs by how much they can change: energy times updates, then energy, then widths."""
    energy = parameters.smoothness_compat + parameters.bilateral_compat
    return (
        parameters.iterations * energy,
        energy,
        parameters.bilateral_sxy,
        parameters.smoothness_sxy,
        parameters.bilateral_srgb,
    )


def _choose(scores: Mapping[CrfParameters, float], tie: float) -> CrfParameters:
    highest = max(scores.values())
    return min((one for one, score in scores.items() if score >= highest - tie), key=weakest_first)


def _coarse_grid() -> Iterator[CrfParameters]:
    yield _START
    for values in itertools.product(*_COARSE.values()):
        changes: dict[str, Any] = dict(zip(_COARSE, values, strict=True))
        yield dataclasses.replace(_START, **changes)


def _neighbours(parameters: CrfParameters) -> Iterator[CrfParameters]:
    """Yield the parameters that differ in one value, by one place in its list."""
    for name, values in SEARCHED_VALUES.items():
        place = values.index(getattr(parameters, name))
        for other in (place - 1, place + 1):
            if 0 <= other < len(values):
                change: dict[str, Any] = {name: values[other]}
                yield dataclasses.replace(parameters, **change)


def _cache_logits(model: UNet, validation: LabelledImages, options: CrfFitOptions) -> Iterator[_Case]:
    torch = require("torch", purpose="fitting the CRF")
    contract = training_contract(options.size_px)
    count = min(len(validation), options.most_images)
    for index in (position * len(validation) // count for position in range(count)):
        image_chw, geometry = prepare_image(validation.image(index), contract)
        with torch.inference_mode():
            logits = model(torch.tensor(image_chw)[None])[0].float().numpy()
        if not np.isfinite(logits).all():
            raise DataError(f"the network gives NaN or infinity for {validation.names[index]}: train it again")
        yield _Case(logits, image_chw, geometry, validation.mask(index))


def _score_images(cases: tuple[_Case, ...], refiner: Refiner | None) -> list[float]:
    """Mean Dice over the classes of each image."""
    scores = []
    for case in cases:
        found = decide_labels(case.logits_chw, case.image_chw, case.geometry, refiner)
        classes = len(case.logits_chw)
        labels: list[int | None] = [None] if classes == 1 else list(range(1, classes))
        scores.append(_mean([dice(found, case.truth, label) for label in labels]))
    return scores


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _compare(scores: list[float], without: list[float]) -> PairedDifference | None:
    if len(scores) < 2:
        return None
    return paired_difference(
        {str(index): score for index, score in enumerate(scores)},
        {str(index): score for index, score in enumerate(without)},
    )
