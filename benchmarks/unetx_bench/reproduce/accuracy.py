"""How well each bundle segments the test images, and how variants differ on the same images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.engines import Built
from unetx_bench.reproduce.images import TestImages
from unetx_bench.reproduce.record import Difference, Score
from unetx_bench.reproduce.stages import Workplace
from unetx_opt.metrics.bootstrap import mean_interval
from unetx_opt.metrics.overlap import dice, mean_iou, pixel_accuracy
from unetx_opt.metrics.paired import adjust_holm, paired_difference
from unetx_opt.metrics.summary import balanced_accuracy

__all__ = ["FIGURES", "Scores", "compare_variants", "score_bundle", "summarize_scores"]

Labels = NDArray[np.uint8]
#: Figure -> image name -> value.
Scores = Mapping[str, Mapping[str, float]]


def _mean_dice(found: Labels, truth: Labels, label_count: int) -> float:
    return statistics.fmean(dice(found, truth, index) for index in range(1, label_count))


#: Figure -> function of (found, true labels, number of labels); the order of every table.
FIGURES: Final[Mapping[str, Callable[[Labels, Labels, int], float]]] = MappingProxyType(
    {
        "accuracy": lambda found, truth, _: pixel_accuracy(found, truth),
        "balanced_accuracy": lambda found, truth, _: balanced_accuracy(found, truth),
        "miou": mean_iou,
        "dice": _mean_dice,
    }
)


def score_bundle(
    name: str, built: Built, images: TestImages, place: Workplace, tell: Callable[[str], None]
) -> Scores:
    """Segment every test image with the engine that the runtime prefers, the step behind it included.

    Parameters
    ----------
    name : str
        Variant and precision, for the kept result.
    built : Built
        The bundle.
    images : TestImages
        What it is scored on.
    place : Workplace
        Where results are kept.
    tell : callable
        Told what is going on.

    Raises
    ------
    UnetxError
        No engine of it runs here, or an image cannot be segmented.
    """
    key = {"bundle": built.sha256, "images": images.record.images_sha256}
    scores: dict[str, dict[str, float]] = place.recall(
        f"scores-{name}", key, lambda: _score(name, built, images, tell)
    )
    return scores


def _score(name: str, built: Built, images: TestImages, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
    from unetx_opt.runtime import open_bundle

    tell(f"scoring {name} on {len(images.names)} images")
    scores: dict[str, dict[str, float]] = {figure: {} for figure in FIGURES}
    with open_bundle(built.path) as segmenter:
        for index, image_name in enumerate(images.names):
            pixels, truth = images.read(index)
            found = segmenter.segment(pixels).labels
            for figure, compute in FIGURES.items():
                scores[figure][image_name] = compute(found, truth, images.label_count)
    return scores


def summarize_scores(scores: Scores) -> dict[str, Score]:
    """Mean, spread and interval of every figure over the images."""
    return {figure: _summarize(list(by_image.values())) for figure, by_image in scores.items()}


def _summarize(values: Sequence[float]) -> Score:
    if len(values) < 2:
        return Score(mean=values[0], std=None, low=None, high=None, n=len(values))
    interval = mean_interval(values)
    return Score(
        mean=interval.mean,
        std=statistics.stdev(values),
        low=interval.lower,
        high=interval.upper,
        n=len(values),
    )


def compare_variants(scores: Mapping[str, Scores]) -> dict[str, tuple[Difference, ...]]:
    """Compare every variant with the baseline, and the combination with every other one, paired by image.

    Parameters
    ----------
    scores : mapping of str to Scores
        By variant; all of the same images.

    Returns
    -------
    dict
        Variant -> its differences; p-values against the baseline are adjusted over the variants (Holm), figure by
        figure, and those of the combination against the others likewise. Empty where there are fewer than two images.
    """
    if len(next(iter(scores.values()))["accuracy"]) < 2:
        return dict.fromkeys(scores, ())
    pairs = [(name, BASELINE) for name in scores if name != BASELINE]
    pairs += [("combined", name) for name in scores if "combined" in scores and name not in ("combined", BASELINE)]
    found: dict[str, list[Difference]] = {name: [] for name in scores}
    for figure in FIGURES:
        rows = {(a, b): paired_difference(scores[a][figure], scores[b][figure]) for a, b in pairs}
        adjusted: dict[tuple[str, str], float] = {}
        for of_baseline in (True, False):  # two questions: better than nothing, and better together than alone
            family = {pair: row.p_value for pair, row in rows.items() if (pair[1] == BASELINE) is of_baseline}
            adjusted |= adjust_holm(family)
        for pair, row in rows.items():
            facts: dict[str, Any] = {"p_value": row.p_value, "p_holm": adjusted.get(pair), "n": row.count}
            found[pair[0]].append(
                Difference(minus=pair[1], figure=figure, mean=row.mean, low=row.lower, high=row.upper, **facts)
            )
    return {name: tuple(rows) for name, rows in found.items()}
