"""Mean-field inference in the fully connected CRF, by the backend that the caller names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import SpecError
from unetx_opt.imaging.dense_crf.parameters import CrfParameters, CrfProblem, check_problem
from unetx_opt.optional import EXTRAS, find

__all__ = ["BACKENDS", "CrfBackend", "Refinement", "refine"]

_PACKAGE: Final = "unetx_opt.imaging.dense_crf"


@dataclass(frozen=True, slots=True)
class CrfBackend:
    """One way to compute the mean field.

    Attributes
    ----------
    name : str
        What a caller asks for.
    summary : str
        What it is, for a listing.
    module : str
        The optional package that it needs.
    loader : str
        ``module:function`` of ``(CrfProblem) -> (K, H, W) float32`` probabilities.
    """

    name: str
    summary: str
    module: str
    loader: str

    def why_not(self) -> str | None:
        """Say what keeps the backend from running here; None where nothing does."""
        if find(self.module):
            return None
        return f"{self.module} is not installed: run pip install 'unetx-opt[{EXTRAS[self.module]}]'"

    def infer(self, problem: CrfProblem) -> NDArray[np.float32]:
        """Return (K, H, W) probabilities; a missing package is a MissingPackageError."""
        module, _, function = self.loader.partition(":")
        run = cast(Callable[[CrfProblem], NDArray[np.float32]], getattr(importlib.import_module(module), function))
        return run(problem)


def _table(*rows: CrfBackend) -> Mapping[str, CrfBackend]:
    table = {row.name: row for row in rows}
    if len(table) != len(rows):
        raise ValueError("two CRF backends have one name")
    return MappingProxyType(table)


BACKENDS: Final = _table(
    CrfBackend("grid", "bilateral grid, compiled for this processor", "numba", f"{_PACKAGE}.mean_field:infer_grid"),
    CrfBackend(
        "pydensecrf", "permutohedral lattice, the usual implementation", "pydensecrf", f"{_PACKAGE}.peer:infer_peer"
    ),
)


@dataclass(frozen=True, slots=True)
class Refinement:
    """What the CRF makes of one image.

    Attributes
    ----------
    probabilities_khw : numpy.ndarray
        (K, H, W) float32 in [0, 1], with as many classes as the logits had: one class is the foreground's.
    logits_khw : numpy.ndarray
        (K, H, W) float32, finite: the logarithm of the foreground's odds for one class, else of the probabilities;
        `unetx_opt.imaging.postprocess.label_mask` decides them as `labels_hw` does.
    labels_hw : numpy.ndarray
        (H, W) uint8: 1 where one class is above one half; else the most probable class, the lowest of equals.
    """

    probabilities_khw: NDArray[np.float32]
    logits_khw: NDArray[np.float32]
    labels_hw: NDArray[np.uint8]


def refine(
    logits_khw: NDArray[Any],
    image_hw: NDArray[Any],
    parameters: CrfParameters | None = None,
    *,
    backend: str = "grid",
) -> Refinement:
    """Refine one image's logits by mean-field inference (Krähenbühl & Koltun 2011, algorithm 1).

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) floating point, finite, K from 1 (a binary logit) to 8.
    image_hw : numpy.ndarray
        (H, W) uint8, the grey image on the same grid.
    parameters : CrfParameters, optional
        Energies and iterations; the usual ones where left out.
    backend : str
        A key of `BACKENDS`. Equal inputs give equal bits on one machine; calls may run in several threads.

    Returns
    -------
    Refinement
        Probabilities and labels.

    Raises
    ------
    SpecError
        Unknown backend, or logits that are malformed or not finite.
    ImageError
        The image is not 8-bit grey of the logits' size.
    MissingPackageError
        The backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise SpecError(f"unknown CRF backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    problem = check_problem(logits_khw, image_hw, parameters or CrfParameters())
    probabilities = BACKENDS[backend].infer(problem)
    labels = np.zeros(image_hw.shape, dtype=np.uint8)
    largest = probabilities[0].copy()
    for index in range(1, probabilities.shape[0]):
        np.copyto(labels, np.uint8(index), where=probabilities[index] > largest)
        np.maximum(largest, probabilities[index], out=largest)
    logits = _to_logits(probabilities, one_class=logits_khw.shape[0] == 1)
    return Refinement(probabilities[1:] if logits_khw.shape[0] == 1 else probabilities, logits, labels)


def _to_logits(probabilities_khw: NDArray[np.float32], *, one_class: bool) -> NDArray[np.float32]:
    # Two neighbouring floats have a quotient other than 1, so that the sign of its logarithm is their order;
    # the difference of their logarithms can round to 0.
    bounded = np.maximum(probabilities_khw, np.finfo(np.float32).tiny)
    return np.asarray(np.log(bounded[1:] / bounded[:1] if one_class else bounded), dtype=np.float32)
