"""The mean field on the grid: messages by Gaussian filters, two classes as one logit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetx_opt.imaging.dense_crf.compiled import compiled_loops
from unetx_opt.imaging.dense_crf.lattice import Filter, make_bilateral, make_smoothing
from unetx_opt.imaging.dense_crf.parameters import CrfProblem
from unetx_opt.imaging.postprocess import probabilities

__all__ = ["infer_grid"]

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Term:
    """One kernel with its norm and weight: `add` adds its message.

    Both are in `scale`, ``sqrt(compat / filter(1))`` at every pixel, which is applied before and after the filter.
    """

    filter: Filter
    scale: Image

    def add(self, values: Image, out: Image) -> None:
        self.filter.add(values, self.scale, out)


def infer_grid(problem: CrfProblem) -> NDArray[np.float32]:
    """Infer by Gaussian filters that are exact in intensity and interpolated in position.

    Parameters
    ----------
    problem : CrfProblem
        Checked inputs.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 probabilities.

    Raises
    ------
    MissingPackageError
        The compiler is not installed.
    SpecError
        The bilateral width is too small for the size of the image.
    """
    terms = _make_terms(problem)
    if len(problem.logits_khw) == 2:
        return _infer_two(problem, terms)
    return _infer_many(problem, terms)


def _make_terms(problem: CrfProblem) -> tuple[_Term, ...]:
    loops, parameters, image_hw = compiled_loops(), problem.parameters, problem.image_hw
    terms = []
    if parameters.iterations and parameters.smoothness_compat > 0:
        smoothing = make_smoothing(loops, problem.image_hw.shape, parameters.smoothness_sxy)
        terms.append(_make_term(smoothing, image_hw.shape, parameters.smoothness_compat))
    if parameters.iterations and parameters.bilateral_compat > 0:
        bilateral = make_bilateral(loops, image_hw, parameters.bilateral_sxy, parameters.bilateral_intensity)
        terms.append(_make_term(bilateral, image_hw.shape, parameters.bilateral_compat))
    return tuple(terms)


def _make_term(kernel: Filter, size: tuple[int, ...], compat: float) -> _Term:
    ones, total = np.ones(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    kernel.add(ones, ones, total)
    # Every pixel is its own neighbour, so the sum is positive; rounding must not make it less.
    np.maximum(total, np.finfo(np.float32).tiny, out=total)
    return _Term(kernel, np.asarray(math.sqrt(compat) / np.sqrt(total), dtype=np.float32))


def _infer_two(problem: CrfProblem, terms: tuple[_Term, ...]) -> NDArray[np.float32]:
    # The messages of a Potts model are linear in the probabilities, so the difference of the two classes' logits
    # takes the filtered difference of their probabilities: one image to filter where there are two classes.
    loops = compiled_loops()
    own = problem.logits_khw[1] - problem.logits_khw[0]
    logit, difference = own.copy(), np.empty_like(own)
    for _ in range(problem.parameters.iterations if terms else 0):
        loops.tanh_half(logit, difference)
        np.copyto(logit, own)
        for term in terms:
            term.add(difference, logit)
    return _sigmoid_pair(logit)


def _sigmoid_pair(logit: Image) -> NDArray[np.float32]:
    # Each of the two from its own exponential: 1 less the other would round small probabilities away.
    pair = np.empty((2, *logit.shape), dtype=np.float32)
    decay = np.exp(np.negative(np.abs(logit, out=pair[0]), out=pair[0]), out=pair[0])
    larger = 1 / (1 + decay)
    smaller = decay * larger
    positive = logit >= 0
    pair[1] = np.where(positive, larger, smaller)
    pair[0] = np.where(positive, smaller, larger)
    return pair


def _infer_many(problem: CrfProblem, terms: tuple[_Term, ...]) -> NDArray[np.float32]:
    logits = problem.logits_khw
    current = probabilities(logits)
    for _ in range(problem.parameters.iterations if terms else 0):
        updated = logits.copy()
        for term in terms:
            for index in range(len(logits)):
                term.add(current[index], updated[index])
        current = probabilities(updated)
    return current
