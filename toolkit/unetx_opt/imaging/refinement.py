"""Steps between an engine's logits and the mask: a table of them, and one bound to its parameters and input.

Every step runs on the grid of the network's input, inside the padding, on the image as the network saw it: the
percentile-normalised grey values, scaled to 0..255 and rounded. Its result goes back to the source image by
`unetx_opt.imaging.postprocess.restore_logits`, as the logits of a model without a step do. So one set of parameters
means the same for source images of every size, the time does not grow with them, and the geometry is that of the
network alone. Lengths among the parameters are pixels of a grid whose longer side is ``grid_px``; for a network
with another input they are scaled with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import MissingPackageError, SpecError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, refine
from unetx_opt.imaging.dense_crf.parameters import MAX_WIDTH_PX, MIN_WIDTH_PX
from unetx_opt.imaging.postprocess import label_mask, restore_logits
from unetx_opt.imaging.preprocess import ImageGeometry
from unetx_opt.specs import InputContract

__all__ = [
    "DEFAULT_BACKEND",
    "STEPS",
    "Refiner",
    "Step",
    "crf_step_parameters",
    "decide_labels",
    "make_refiner",
    "step_grey",
]

#: Backend of the dense CRF where none is asked for.
DEFAULT_BACKEND: Final = "grid"
_GRID: Final = "grid_px"
# Below 16 no network has an input, beyond 8192 neither.
_GRID_RANGE_PX: Final = (16, 8192)

#: Takes logits (K, h, w) float32 and the image (h, w) uint8 on one grid; gives logits (K, h, w) float32.
Refine = Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the table of steps.

    Attributes
    ----------
    name : str
        What a checkpoint and a manifest call it.
    summary : str
        One line for lists.
    bind : callable
        Takes parameters, the longer side of the input in pixels and a backend's name; gives what refines one image,
        or raises a SpecError or a MissingPackageError.
    """

    name: str
    summary: str
    bind: Callable[[Mapping[str, float], int, str], Refine]


@dataclass(frozen=True, slots=True)
class Refiner:
    """A step that is ready to run; several threads may call it at once.

    Attributes
    ----------
    name : str
        The step.
    parameters : mapping of str to float
        Its parameters, as a checkpoint or a manifest holds them.
    contract : InputContract
        Of the network whose logits it reads.
    run : callable
        The bound step.
    """

    name: str
    parameters: Mapping[str, float]
    contract: InputContract
    run: Refine

    def refine(
        self, logits_chw: NDArray[np.float32], image_chw: NDArray[np.float32], geometry: ImageGeometry
    ) -> NDArray[np.float32]:
        """Refine the logits of one image.

        Parameters
        ----------
        logits_chw : numpy.ndarray
            (K, height, width) float32, finite, as the network gives them.
        image_chw : numpy.ndarray
            (C, height, width) float32, as the network read it.
        geometry : ImageGeometry
            What `unetx_opt.imaging.preprocess.prepare_image` returned with that image.

        Returns
        -------
        numpy.ndarray
            (K, height, width) float32, finite. The padding keeps the logits that it had.

        Raises
        ------
        SpecError
            The step does not fit the logits.
        """
        rows = slice(geometry.top, geometry.top + geometry.scaled_height)
        columns = slice(geometry.left, geometry.left + geometry.scaled_width)
        refined = logits_chw.copy()
        refined[:, rows, columns] = self.run(
            np.ascontiguousarray(logits_chw[:, rows, columns]),
            step_grey(image_chw[0, rows, columns], self.contract),
        )
        return refined


def make_refiner(
    name: str, parameters: Mapping[str, float], contract: InputContract, backend: str = DEFAULT_BACKEND
) -> Refiner:
    """Bind a step to its parameters and to a network's input.

    Parameters
    ----------
    name : str
        A key of `STEPS`.
    parameters : mapping of str to float
        For ``dense_crf``: every field of `unetx_opt.imaging.dense_crf.CrfParameters`, and ``grid_px``.
    contract : InputContract
        Of the network.
    backend : str
        For ``dense_crf``: a key of `unetx_opt.imaging.dense_crf.BACKENDS`. No part of the parameters: each computes
        the same energies.

    Raises
    ------
    SpecError
        The step or the backend is unknown, or a parameter is missing, unknown or out of range.
    MissingPackageError
        The backend's package is not installed.
    """
    if name not in STEPS:
        raise SpecError(f"unknown step {name!r}, this version has {', '.join(STEPS)}: update unetx-opt")
    run = STEPS[name].bind(parameters, max(contract.height, contract.width), backend)
    return Refiner(name, MappingProxyType(dict(parameters)), contract, run)


def decide_labels(
    logits_chw: NDArray[np.float32],
    image_chw: NDArray[np.float32],
    geometry: ImageGeometry,
    refiner: Refiner | None = None,
) -> NDArray[np.uint8]:
    """Decide every pixel of the source image: the step, if there is one, then the way back, then the label.

    Parameters
    ----------
    logits_chw, image_chw, geometry
        As for `Refiner.refine`; logits that are not finite are left to `label_mask` without a step.
    refiner : Refiner, optional
        The step.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8 on the grid of the source image.
    """
    if refiner is not None and np.isfinite(logits_chw).all():
        logits_chw = refiner.refine(logits_chw, image_chw, geometry)
    return label_mask(restore_logits(logits_chw, geometry))


def step_grey(image_hw: NDArray[np.float32], contract: InputContract) -> NDArray[np.uint8]:
    """Scale what a network saw to 8-bit grey: ``rint(255 (v - low) / (high - low))`` for a range ``low..high``.

    Parameters
    ----------
    image_hw : numpy.ndarray
        (H, W) float32 within ``contract.value_range``.
    contract : InputContract
        Its value range.
    """
    low, high = contract.value_range
    scaled = np.rint((image_hw - np.float32(low)) * np.float32(255.0 / (high - low)))
    return np.asarray(np.clip(scaled, 0.0, 255.0), dtype=np.uint8)


def crf_step_parameters(parameters: CrfParameters, grid_px: int) -> dict[str, float]:
    """Write CRF parameters as the parameters of the step ``dense_crf``.

    Parameters
    ----------
    parameters : CrfParameters
        Widths in pixels of a grid whose longer side is `grid_px`.
    grid_px : int
        That side, 16 to 8192.
    """
    return {key: float(value) for key, value in dataclasses.asdict(parameters).items()} | {_GRID: float(grid_px)}


def _bind_dense_crf(parameters: Mapping[str, float], side_px: int, backend: str) -> Refine:
    settings, grid_px = _read_crf_parameters(parameters)
    if backend not in BACKENDS:
        raise SpecError(f"unknown CRF backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    if reason := BACKENDS[backend].why_not():
        raise MissingPackageError(f"the step dense_crf cannot run: {reason}")
    scale = side_px / grid_px
    scaled = dataclasses.replace(
        settings,
        smoothness_sxy=_scale_width(settings.smoothness_sxy, scale),
        bilateral_sxy=_scale_width(settings.bilateral_sxy, scale),
    )

    def run(logits_khw: NDArray[np.float32], image_hw: NDArray[np.uint8]) -> NDArray[np.float32]:
        return refine(logits_khw, image_hw, scaled, backend=backend).logits_khw

    return run


def _read_crf_parameters(parameters: Mapping[str, float]) -> tuple[CrfParameters, int]:
    expected = {field.name for field in dataclasses.fields(CrfParameters)} | {_GRID}
    if set(parameters) != expected:
        missing, unknown = sorted(expected - set(parameters)), sorted(set(parameters) - expected)
        raise SpecError(f"the parameters of dense_crf do not fit this version: missing {missing}, unknown {unknown}")
    values = {name: float(value) for name, value in parameters.items()}
    for name in ("iterations", _GRID):
        if not values[name].is_integer():
            raise SpecError(f"dense_crf {name} is {values[name]!r}, expected a whole number")
    low, high = _GRID_RANGE_PX
    if not low <= values[_GRID] <= high:
        raise SpecError(f"dense_crf {_GRID} is {values[_GRID]:g}, expected {low} to {high}")
    grid_px, iterations = int(values.pop(_GRID)), int(values.pop("iterations"))
    return CrfParameters(**values, iterations=iterations), grid_px


def _scale_width(width_px: float, scale: float) -> float:
    return min(max(width_px * scale, MIN_WIDTH_PX), MAX_WIDTH_PX)


_ROWS: Final = (Step("dense_crf", "fully connected CRF (Krähenbühl & Koltun 2011)", _bind_dense_crf),)

#: Step name -> its row.
STEPS: Final[Mapping[str, Step]] = MappingProxyType({row.name: row for row in _ROWS})
assert len(STEPS) == len(_ROWS), "a step's name occurs twice"  # noqa: S101
