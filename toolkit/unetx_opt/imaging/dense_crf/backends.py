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

__all__ = ["BACKENDS", "CrfBackend", "Refinement", "preferred_backend", "refine"]

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
    why_not : callable
        Says what keeps the backend from running here; None where nothing does.
    loader : str
        ``module:function`` of ``(CrfProblem) -> (K, H, W) float32`` probabilities.
    """

    name: str
    summary: str
    why_not: Callable[[], str | None]
    loader: str

    def infer(self, problem: CrfProblem) -> NDArray[np.float32]:
        """Return (K, H, W) probabilities; a MissingPackageError or an EngineError says what lacks."""
        module, _, function = self.loader.partition(":")
        run = cast(Callable[[CrfProblem], NDArray[np.float32]], getattr(importlib.import_module(module), function))
        return run(problem)


def _why_not_package(module: str) -> str | None:
    return None if find(module) else f"{module} is not installed: run pip install 'unetx-opt[{EXTRAS[module]}]'"


def _why_not_cuda() -> str | None:
    inference = importlib.import_module("unetx_kernels.dense_crf.inference")
    return cast(str | None, inference.why_not_on_gpu())


def _table(*rows: CrfBackend) -> Mapping[str, CrfBackend]:
    table = {row.name: row for row in rows}
    if len(table) != len(rows):
        raise ValueError("two CRF backends have one name")
    return MappingProxyType(table)


BACKENDS: Final = _table(
    CrfBackend(
        "grid",
        "bilateral grid, compiled for this processor",
        lambda: _why_not_package("numba"),
        f"{_PACKAGE}.mean_field:infer_grid",
    ),
    CrfBackend(
        "pydensecrf",
        "permutohedral lattice, the usual implementation",
        lambda: _why_not_package("pydensecrf"),
        f"{_PACKAGE}.peer:infer_peer",
    ),
    CrfBackend("cuda", "the bilateral grid on an NVIDIA GPU", _why_not_cuda, f"{_PACKAGE}.cuda:infer_cuda"),
)
# Both compute the same grid. The last is named where neither runs, so that its reason is the one to act on.
_PREFERRED: Final = ("cuda", "grid")


def preferred_backend() -> str:
    """Return the name of the backend that is fastest on this host: the GPU's where there is one, else the grid."""
    return next((name for name in _PREFERRED if BACKENDS[name].why_not() is None), _PREFERRED[-1])


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
    EngineError
        The backend's GPU cannot be used.
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
