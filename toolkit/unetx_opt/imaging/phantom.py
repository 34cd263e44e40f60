"""Procedural chest radiographs with exact lung masks, for tests and for machines without data.

A phantom is a map of attenuation (soft tissue less the air of the lungs, plus bone) that is turned into a film:
exposure, scatter, quantum and electronic noise, logarithm, a characteristic curve. It looks like a frontal chest
film; it is no model of any patient, and no accuracy may be claimed from it.

Coordinates: ``x`` runs from -1 (left edge of the image, the patient's right) to 1, ``y`` from 0 (top) to 1.
Attenuation is in units of the thickest soft tissue of an average chest.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unetx_opt.errors import ImageError
from unetx_opt.imaging.anatomy import Grid, Heart, Lung, LungField, Plane, draw_chest, locate_lung, sigmoid
from unetx_opt.imaging.film import expose_film, rotate_planes
from unetx_opt.imaging.resize import resize_plane

__all__ = ["chest_phantom"]


_MIN_SIZE_PX, _MAX_SIZE_PX = 64, 4096

# Half width of the body over y: neck, shoulders, armpits, chest, waist.
_OUTLINE_Y: Final = (-0.3, 0.03, 0.10, 0.15, 0.22, 0.32, 0.44, 0.55, 0.75, 1.3)
_OUTLINE_X: Final = (0.28, 0.31, 0.52, 0.86, 1.20, 1.40, 1.25, 0.93, 0.87, 0.90)


def chest_phantom(seed: int, size_px: int = 512) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Make one frontal chest film.

    Parameters
    ----------
    seed : int
        Not negative. Equal seeds and sizes give equal films under one version of NumPy and of this package: all
        chance comes from ``numpy.random.default_rng(seed)`` (PCG64).
    size_px : int
        Height and width, 64 to 4096.

    Returns
    -------
    image : numpy.ndarray
        (H, W) uint16 from 0 to 4095, larger is brighter: lungs dark, bone bright, air beside the body black.
    mask : numpy.ndarray
        (H, W) uint8, 1 in both lungs, without heart, mediastinum and what lies behind the diaphragm. Fluid in a
        pleural effusion is no lung; other opacities leave the mask as it is.

    Raises
    ------
    ImageError
        The size is out of range.
    """
    if not _MIN_SIZE_PX <= size_px <= _MAX_SIZE_PX:
        raise ImageError(f"phantom size is {size_px} px, expected {_MIN_SIZE_PX} to {_MAX_SIZE_PX}")
    rng = np.random.default_rng(seed)
    axis = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    # Patients differ in size and stand off centre; the aspect of stored films varies too.
    grid = Grid(
        x=(2 * axis - 1)[np.newaxis, :] * np.float32(rng.uniform(0.92, 1.1)) + np.float32(rng.normal(0, 0.03)),
        y=axis[:, np.newaxis] * np.float32(rng.uniform(0.92, 1.08)) + np.float32(rng.uniform(-0.06, 0.03)),
    )
    heart, pair = draw_chest(rng)
    fields = [locate_lung(lung, heart, grid) for lung in pair]
    body = _body(grid, fields, rng)
    tissue = _soft_tissue(body, fields, heart, grid, rng) + _lung_details(fields, grid, rng)
    bones = np.minimum(2 * body, 1) * _bones(fields, grid, rng)
    lungs = fields[0].inside | fields[1].inside
    # One patient in eight stands crooked.
    degrees = rng.uniform(-12, 12) if rng.random() < 0.125 else rng.normal(0, 1.5)
    attenuation, mask = rotate_planes([(tissue + bones).astype(np.float32), lungs.astype(np.float32)], degrees)
    return expose_film(attenuation, rng), (mask > 0.5).view(np.uint8)


def _body(grid: Grid, fields: list[LungField], rng: np.random.Generator) -> Plane:
    """Thickness of the body as if it were all soft tissue: an elliptic section, its depth by height."""
    from scipy import interpolate

    x, y = grid.x, grid.y
    outline = interpolate.PchipInterpolator(_OUTLINE_Y, _OUTLINE_X)
    half_width = (outline(y + rng.uniform(-0.02, 0.07)) * rng.uniform(0.94, 1.06)).astype(np.float32)
    section = np.sqrt(np.maximum(1 - (x / half_width) ** 2, 0.0))
    heights = (0.0, 0.12, 0.3, fields[0].lung.dome_y, 1.0)
    front_to_back = np.interp(y, heights, (0.62, 0.7, 0.92, 1.02, 1.12)).astype(np.float32)
    return np.asarray(section * front_to_back, dtype=np.float32)


def _soft_tissue(body: Plane, fields: list[LungField], heart: Heart, grid: Grid, rng: np.random.Generator) -> Plane:
    x, y = grid.x, grid.y
    air = rng.uniform(0.56, 0.68)
    lungs = fields[0].depth + fields[1].depth
    result = body * (1 - air * lungs)
    dome_y = fields[0].lung.dome_y
    below = sigmoid((y - dome_y - 0.06) / 0.025) * (lungs == 0)
    result += body * below * rng.uniform(0.08, 0.2)
    round_heart = 1 - ((x - heart.x) / heart.half_width) ** 2 - ((y - heart.y) / heart.half_height) ** 2
    result += 0.1 * np.sqrt(np.clip(round_heart, 0.0, 1.0)) * (lungs == 0)
    # The windpipe, and gas in the stomach below the dome on the right of the image.
    trachea_x = rng.normal(0.0, 0.012)
    result -= 0.13 * np.exp(-(((x - trachea_x) / 0.035) ** 4)) * sigmoid((0.31 - y) / 0.015)
    if rng.random() < 0.6:
        gas = ((x - rng.uniform(0.28, 0.48)) / rng.uniform(0.1, 0.2)) ** 2
        gas = gas + ((y - fields[1].lung.dome_y - rng.uniform(0.07, 0.11)) / rng.uniform(0.03, 0.05)) ** 2
        result -= rng.uniform(0.15, 0.35) * sigmoid((1 - gas) / 0.15) * (lungs == 0)
    return np.maximum(result, 0.0).astype(np.float32)


def _bones(fields: list[LungField], grid: Grid, rng: np.random.Generator) -> Plane:
    x, y = grid.x, grid.y
    spacing = rng.uniform(0.068, 0.082)
    # Vertebral bodies between darker discs, in step with the ribs that they carry.
    disc = np.cos(2 * np.pi * (y / spacing + rng.random()))
    result: Plane = (np.exp(-((x / 0.09) ** 4)) * (0.13 + 0.03 * disc)).astype(np.float32)
    density = rng.uniform(0.8, 1.5)
    for field in fields:
        across = x[:, field.columns] * field.lung.side
        result[:, field.columns] += density * _ribs(across, y, field.lung, spacing, rng)
        above = y[y[:, 0] < field.lung.apex_y + 0.4]
        result[: len(above), field.columns] += density * _shoulder(across, above, field.lung, rng)
    return result


def _ribs(across: Plane, y: Plane, lung: Lung, spacing: float, rng: np.random.Generator) -> Plane:
    """Posterior ribs, which arch over the lung, and anterior ribs, which descend to the middle and are fainter."""
    wall = lung.lateral_x * np.clip((y - lung.apex_y + 0.06) / 0.3, 0.0, 1.0) ** 0.5 + 0.035
    u = across / lung.lateral_x
    extent = sigmoid((wall - across) / 0.006) * sigmoid((y - lung.apex_y + 0.02) / 0.008)
    fade = sigmoid((lung.angle_y + 0.03 - y) / 0.04)
    back = (y - rng.uniform(0.14, 0.2) * u**2 + 0.08 * u) / spacing + rng.random()
    posterior = 0.085 * _band(back, rng.uniform(0.17, 0.22)) * sigmoid((across - 0.09) / 0.01)
    front = (y + rng.uniform(0.16, 0.24) * u - 0.1 * u**4) / (1.25 * spacing) + rng.random()
    anterior = 0.045 * _band(front, rng.uniform(0.2, 0.26)) * sigmoid((across - 0.3) / 0.03)
    return np.asarray(extent * fade * (posterior + anterior), dtype=np.float32)


def _band(phase: Plane, half_width: float) -> Plane:
    """A flat bone in every period, its two edges denser than its middle."""
    offset = np.abs(phase - np.rint(phase)) / half_width
    inner = np.square(np.minimum(offset, 1))
    return np.asarray(sigmoid((1 - offset) / 0.07) * (0.55 + 0.45 * inner * inner), dtype=np.float32)


def _shoulder(across: Plane, y: Plane, lung: Lung, rng: np.random.Generator) -> Plane:
    """Clavicle, the edge of the shoulder blade, the head of the humerus."""
    height = lung.apex_y + rng.uniform(0.03, 0.07)
    rise = rng.uniform(0.08, 0.16)
    center = height - rise * (across - 0.08) + 0.03 * np.sin(7 * across)
    offset = np.abs(y - center) / rng.uniform(0.016, 0.021)
    clavicle = sigmoid((1 - offset) / 0.12) * (0.6 + 0.4 * np.square(np.minimum(offset, 1)))
    clavicle = clavicle * sigmoid((across - 0.07) / 0.01) * sigmoid((0.85 - across) / 0.02)
    edge = across - 0.86 + 0.42 * (y - lung.apex_y)
    blade = np.exp(-np.abs(edge) / 0.02) + 0.5 * sigmoid(edge / 0.015) * sigmoid((0.14 - edge) / 0.03)
    blade = blade * sigmoid((y - lung.apex_y - 0.02) / 0.02) * sigmoid((lung.apex_y + 0.32 - y) / 0.02)
    head = ((across - 1.0) / 0.13) ** 2 + ((y - lung.apex_y - 0.06) / 0.075) ** 2
    return np.asarray(0.13 * clavicle + 0.06 * blade + 0.12 * sigmoid((1 - head) / 0.1), dtype=np.float32)


def _lung_details(fields: list[LungField], grid: Grid, rng: np.random.Generator) -> Plane:
    """Vessels that fan out from the hila, a faint texture and, in some films, opacities."""
    from scipy import ndimage

    height, width = fields[0].depth.shape
    drawing = Image.new("L", (width, height))
    pen = ImageDraw.Draw(drawing)
    grain = rng.standard_normal((height // 6, width // 6), dtype=np.float32)
    texture = np.float32(0.008) * resize_plane(grain, height, width)
    for field in fields:
        lung = field.lung
        hilum = np.array([lung.side * (lung.medial_x + 0.08), 0.5 * (lung.apex_y + lung.dome_y)])
        for _ in range(18):
            path = _vessel_path(hilum, rng)
            columns = np.interp(path[:, 0], grid.x[0], np.arange(width))
            rows = np.interp(path[:, 1], grid.y[:, 0], np.arange(height))
            _draw_vessel(pen, np.stack([columns, rows], axis=1), width)
        if rng.random() < 0.2:
            texture = texture + _opacities(lung, grid, rng)
    vessels = ndimage.gaussian_filter(np.asarray(drawing, dtype=np.float32) / 255, width / 400)
    depth = fields[0].depth + fields[1].depth
    return np.asarray(depth * (rng.uniform(0.1, 0.24) * vessels + texture), dtype=np.float32)


def _vessel_path(hilum: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(7, 2) points along a vessel, x and y."""
    direction = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.2, 6))
    steps = np.stack([np.cos(direction), 0.6 * np.sin(direction)], axis=1) * rng.uniform(0.1, 0.4) / 6
    start = hilum + rng.normal(0, (0.015, 0.035))
    return np.vstack([start, start + np.cumsum(steps, axis=0)])


def _draw_vessel(pen: ImageDraw.ImageDraw, path_px: NDArray[np.float64], size_px: int) -> None:
    segments = len(path_px) - 1
    for index in range(segments):
        left = 1 - index / segments
        ends = [tuple(path_px[index]), tuple(path_px[index + 1])]
        pen.line(ends, fill=round(60 + 195 * left), width=max(1, round(size_px * 0.009 * left)))


def _opacities(lung: Lung, grid: Grid, rng: np.random.Generator) -> Plane:
    result = np.zeros((grid.y.shape[0], grid.x.shape[1]), dtype=np.float32)
    for _ in range(rng.integers(1, 4)):
        x0 = lung.side * rng.uniform(lung.medial_x + 0.1, lung.lateral_x)
        y0 = rng.uniform(lung.apex_y, lung.dome_y)
        radius = rng.uniform(0.03, 0.12)
        distance = ((grid.x - x0) / (2 * radius)) ** 2 + ((grid.y - y0) / radius) ** 2
        result += rng.uniform(0.08, 0.28) * np.exp(-distance)
    return result
