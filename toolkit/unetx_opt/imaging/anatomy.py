"""Where lungs and heart of a phantom lie: drawn by chance, then put on the pixel grid.

Lengths are those of `unetx_opt.imaging.phantom`: ``x`` from -1 to 1, ``y`` from 0 to 1 down the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "Heart", "Lung", "LungField", "Plane", "draw_chest", "locate_lung", "sigmoid"]

#: float32 of any shape that broadcasts to (H, W); rows and columns are often enough.
Plane = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pixel centres: ``x`` (1, W) and ``y`` (H, 1)."""

    x: Plane
    y: Plane


@dataclass(frozen=True, slots=True)
class Lung:
    """One lung; lengths along x are distances from the midline.

    Attributes
    ----------
    side : int
        -1 on the left of the image, 1 on the right.
    apex_x, apex_y : float
        Its highest point.
    lateral_x : float
        Its widest extent.
    dome_y, angle_y : float
        Top of the diaphragm and the costophrenic angle.
    medial_x : float
        Edge of the mediastinum above the heart.
    """

    side: int
    apex_x: float
    apex_y: float
    lateral_x: float
    dome_y: float
    angle_y: float
    medial_x: float


@dataclass(frozen=True, slots=True)
class Heart:
    """An ellipse: centre, half axes."""

    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True, slots=True)
class LungField:
    """A lung on the pixel grid: where it is, how deep from 0 to 1, and the columns on its side of the midline."""

    lung: Lung
    columns: slice
    inside: NDArray[np.bool_]
    depth: Plane


def draw_chest(rng: np.random.Generator) -> tuple[Heart, list[Lung]]:
    """Draw a heart and two lungs that fit together, the one on the left of the image first."""
    apex_y, dome_y = rng.normal(0.12, 0.02), rng.normal(0.69, 0.045)
    lateral_x, medial_x = rng.normal(0.72, 0.035), rng.uniform(0.085, 0.13)
    heart = Heart(
        x=rng.uniform(0.06, 0.13),
        y=dome_y - rng.uniform(0.02, 0.07),
        half_width=rng.uniform(0.24, 0.34),
        half_height=rng.uniform(0.17, 0.24),
    )
    lungs = []
    for side in (-1, 1):
        # The right hemidiaphragm stands higher: the liver is below it.
        dome = dome_y + (0.025 if side > 0 else 0.0) + rng.normal(0.0, 0.015)
        angle = dome + rng.uniform(0.07, 0.15)
        if rng.random() < 0.06:  # a pleural effusion fills the angle and lifts the visible base
            dome, angle = dome - rng.uniform(0.02, 0.12), dome - rng.uniform(-0.02, 0.04)
        lungs.append(
            Lung(
                side=side,
                apex_x=rng.normal(0.29, 0.02),
                apex_y=apex_y + rng.normal(0.0, 0.008),
                lateral_x=lateral_x + rng.normal(0.0, 0.012),
                dome_y=dome,
                angle_y=angle,
                medial_x=medial_x * rng.uniform(0.9, 1.1),
            )
        )
    return heart, lungs


def locate_lung(lung: Lung, heart: Heart, grid: Grid) -> LungField:
    """Put a lung on the pixel grid."""
    x, y = grid.x, grid.y
    midline = int(np.searchsorted(x[0], 0.0))
    columns = slice(None, midline) if lung.side < 0 else slice(midline, None)
    across = x[:, columns] * lung.side
    t = np.clip((y - lung.apex_y) / (lung.angle_y - lung.apex_y), 0.0, 1.0)
    lateral = lung.apex_x + (lung.lateral_x - lung.apex_x) * (1 - (1 - t) ** 2.8) ** 0.55 * (1 - 0.05 * t**6)
    # The medial border: the mediastinum, rounded off towards the apex, then the heart and the aortic knob.
    border = lung.apex_x - (lung.apex_x - lung.medial_x - 0.05 * t) * np.clip(t / 0.14, 0.0, 1.0) ** 0.5
    border = _join(border, _ellipse_edge(heart.x * lung.side, heart.half_width, heart.y, heart.half_height, y))
    if lung.side > 0:
        border = _join(border, _ellipse_edge(0.05, 0.105, lung.apex_y + 0.2, 0.08, y))
    middle = 0.5 * (lung.medial_x + lung.lateral_x)
    bend = (across - middle) / (lung.lateral_x - middle)
    drop = np.where(bend > 0, np.abs(bend) ** 2.6, 0.35 * bend**2)
    dome = lung.dome_y + (lung.angle_y - lung.dome_y) * drop
    to_side, to_middle, to_base = lateral - across, across - border, dome - y
    inside = np.zeros((y.shape[0], x.shape[1]), dtype=np.bool_)
    inside[:, columns] = (to_side > 0) & (to_middle > 0) & (to_base > 0) & (y > lung.apex_y)
    depth = np.zeros(inside.shape, dtype=np.float32)
    depth[:, columns] = (
        np.sqrt(_saturate(to_side / 0.4))
        * (0.6 + 0.4 * _saturate(to_middle / 0.3))
        * (0.6 + 0.4 * _saturate(to_base / 0.25))
        * (0.45 + 0.55 * _saturate((y - lung.apex_y) / 0.28))
    )
    return LungField(lung, columns, inside, depth * inside)


def _saturate(value: Plane) -> Plane:
    """Rise from 0 to 1 without a kink at the top, which would show as a line."""
    below = 1 - np.clip(value, 0.0, 1.0)
    return np.asarray(1 - below * below, dtype=np.float32)


def _join(first: Plane, second: Plane) -> Plane:
    """The larger of two outlines, rounded where they meet."""
    return np.asarray(0.5 * (first + second + np.hypot(first - second, 0.06)), dtype=np.float32)


def _ellipse_edge(x: float, half_width: float, y0: float, half_height: float, y: Plane) -> Plane:
    """How far an ellipse reaches along x in every row; its centre's x in rows that it misses."""
    inside = 1 - ((y - y0) / half_height) ** 2
    return np.asarray(x + half_width * np.sqrt(np.maximum(inside, 0)), dtype=np.float32)


def sigmoid(value: Plane) -> Plane:
    """Rise smoothly from 0 to 1, through a half at 0."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * value), dtype=np.float32)
