"""Attenuation of a phantom to the film of it: position, exposure, noise, characteristic curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unetx_opt.imaging.resize import resize_plane

__all__ = ["WHITE", "expose_film", "rotate_planes"]

_Plane = NDArray[np.float32]

#: Largest grey value, as of a 12-bit detector.
WHITE: Final = 4095


def rotate_planes(planes: Sequence[_Plane], degrees: float) -> list[_Plane]:
    """Rotate planes about their centre.

    Parameters
    ----------
    planes : sequence of numpy.ndarray
        (H, W) float32 each; what lies beyond their edge continues it.
    degrees : float
        Anticlockwise.

    Returns
    -------
    list of numpy.ndarray
        Of the same shapes, interpolated bilinearly.
    """
    height, width = planes[0].shape
    # Wide enough for any corner that the rotation brings in.
    margin = math.ceil(abs(math.sin(math.radians(degrees))) * max(height, width)) + 1
    box = (margin, margin, margin + width, margin + height)
    rotated = []
    for plane in planes:
        padded = Image.fromarray(np.pad(plane, margin, mode="edge"))
        turned = padded.rotate(degrees, Image.Resampling.BILINEAR)
        rotated.append(np.asarray(turned.crop(box), dtype=np.float32))
    return rotated


def expose_film(attenuation: _Plane, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Take the film of an attenuation map.

    Parameters
    ----------
    attenuation : numpy.ndarray
        (H, W) float32, not negative; about 1 in the thickest soft tissue.
    rng : numpy.random.Generator
        Source of all chance.

    Returns
    -------
    numpy.ndarray
        (H, W) uint16 from 0 to `WHITE`, larger is brighter.

    Notes
    -----
    Beer and Lambert's law gives the signal behind the patient; wide-angle scatter and the heel effect change it
    smoothly. Quantum noise is Poisson's in its normal approximation (tens of counts and more), electronic noise is
    Gaussian. The logarithm of the signal passes through a window and a power, as presentation processing does.
    """
    from scipy import ndimage

    size_px = attenuation.shape[0]
    contrast = rng.uniform(2.4, 3.2)
    signal = np.exp(-contrast * ndimage.gaussian_filter(attenuation, size_px * rng.uniform(0.0008, 0.0022)))
    signal += rng.uniform(0.01, 0.04) * _blur(signal, 1 / 12)
    signal *= _vignette(attenuation.shape, rng)
    counts = 10 ** rng.uniform(3.2, 4.2)
    noise = rng.standard_normal(attenuation.shape, dtype=np.float32)
    signal += noise * np.sqrt(signal / np.float32(counts) + np.float32(1e-3) ** 2)
    film = np.log(np.maximum(signal, np.float32(1e-4))) / np.float32(-contrast)
    # Presentation processing lifts local contrast over that of the whole chest.
    film += rng.uniform(0.0, 0.9) * (film - _blur(film, 1 / 30))
    shown = _characteristic_curve(film, rng)
    _mark_side(shown, rng)
    _collimate(shown, rng)
    return np.rint(shown * WHITE).astype(np.uint16)


def _blur(plane: _Plane, share: float) -> _Plane:
    """Blur by a Gaussian of a share of the height, on an eighth of the resolution."""
    from scipy import ndimage

    height, width = plane.shape
    small = resize_plane(plane.astype(np.float32), max(8, height // 8), max(8, width // 8))
    return resize_plane(ndimage.gaussian_filter(small, small.shape[0] * share), height, width)


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> _Plane:
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, np.newaxis]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[np.newaxis, :]
    heel, fall = rng.uniform(-0.12, 0.12), rng.uniform(0.0, 0.15)
    return np.asarray(1 + heel * y - fall * (x * x + y * y) / 2, dtype=np.float32)


def _characteristic_curve(film: _Plane, rng: np.random.Generator) -> _Plane:
    """Steep in the lungs, flat in the spine and the abdomen: an exponential shoulder over a straight start."""
    dark, slope = rng.uniform(0.08, 0.26), rng.uniform(0.5, 1.7)
    shoulder = 1 - np.exp(-slope * np.maximum(film - np.float32(dark), 0.0))
    brightest = 1 - math.exp(-slope * (rng.uniform(1.2, 1.45) - dark))
    return np.asarray(np.minimum(shoulder / np.float32(brightest), 1.0), dtype=np.float32)


def _mark_side(shown: _Plane, rng: np.random.Generator) -> None:
    """Lay a lead letter beside a shoulder in every second film."""
    if rng.random() >= 0.5:
        return
    size_px = shown.shape[0]
    letter = Image.new("L", (12, 12))
    on_left = rng.random() < 0.5
    ImageDraw.Draw(letter).text((2, 0), "R" if on_left else "L", fill=255, font=ImageFont.load_default_imagefont())
    side_px = max(8, round(size_px * rng.uniform(0.05, 0.075)))
    stamp = np.asarray(letter.resize((side_px, side_px), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    top = round(size_px * rng.uniform(0.02, 0.08))
    left = round(size_px * (rng.uniform(0.03, 0.2) if on_left else rng.uniform(0.75, 0.9)))
    window = shown[top : top + side_px, left : left + side_px]
    np.maximum(window, stamp[: window.shape[0], : window.shape[1]], out=window)


def _collimate(shown: _Plane, rng: np.random.Generator) -> None:
    """Blacken the edges of one film in five, as a collimator does."""
    if rng.random() >= 0.2:
        return
    edges = np.rint(rng.uniform(0.0, 0.03, 4) * shown.shape[0]).astype(int)
    shown[: edges[0]] = 0
    shown[shown.shape[0] - edges[1] :] = 0
    shown[:, : edges[2]] = 0
    shown[:, shown.shape[1] - edges[3] :] = 0
