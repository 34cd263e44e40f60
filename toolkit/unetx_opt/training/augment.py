"""Random views of a prepared image: zoom, place, stretch, rotation, mirror and grey values, pure by seed.

A model is asked for the same anatomy at several input sizes, so it must see it at several zooms. At zoom 1 a view of
S x S pixels shows the whole image; at zoom 2 it shows what an S x S part of the image at 2 S looks like. Most views
are whole; the rest are parts. What to show is drawn here; MONAI resamples the pixels and changes their grey values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from unetx_opt.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Augmentation", "View", "cut_view", "draw_view", "vary_grey"]

_PURPOSE: Final = "augmenting images"
_MODES: Final = MappingProxyType({0: "nearest", 1: "bilinear"})

_Pixel = TypeVar("_Pixel", np.float32, np.uint8)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far random views may go.

    Attributes
    ----------
    whole_share : float
        Chance that a view shows the whole image, 0 to 1.
    whole_zoom, part_zoom : tuple of float
        Lowest and highest zoom of whole views and of parts, drawn log-uniformly.
    stretch : float
        Largest logarithm of the ratio between vertical and horizontal zoom.
    rotation_deg : float
        Largest rotation.
    shift : float
        Largest shift of a whole view, as a fraction of its side.
    brightness, contrast, gamma : float
        Largest offset of grey values in [0, 1], largest logarithm of their gain round 0.5, and of their exponent.
    noise : float
        Largest standard deviation of Gaussian noise.
    """

    whole_share: float = 0.6
    whole_zoom: tuple[float, float] = (0.9, 1.15)
    part_zoom: tuple[float, float] = (1.15, 2.1)
    stretch: float = 0.16
    rotation_deg: float = 10.0
    shift: float = 0.05
    brightness: float = 0.08
    contrast: float = 0.2
    gamma: float = 0.3
    noise: float = 0.04


@dataclass(frozen=True, slots=True)
class View:
    """One view, in fractions of the image.

    Attributes
    ----------
    zoom_yx : tuple of float
        Vertical and horizontal magnification against the whole image at the size of the view.
    rotation_deg : float
        Clockwise on the screen, before mirroring.
    mirrored : bool
        Left and right swapped.
    centre_yx : tuple of float
        Where the middle of the view lies in the image; (0.5, 0.5) is its middle.
    """

    zoom_yx: tuple[float, float] = (1.0, 1.0)
    rotation_deg: float = 0.0
    mirrored: bool = False
    centre_yx: tuple[float, float] = (0.5, 0.5)


def draw_view(random: np.random.Generator, limits: Augmentation) -> View:
    """Draw a view within limits."""
    whole = random.random() < limits.whole_share
    low, high = limits.whole_zoom if whole else limits.part_zoom
    zoom = math.exp(random.uniform(math.log(low), math.log(high)))
    half_stretch = math.exp(random.uniform(-limits.stretch, limits.stretch) / 2)
    # A part may lie anywhere inside the image, a whole view only a little off its middle.
    reach = limits.shift if whole else 0.5 - 0.5 / zoom
    return View(
        zoom_yx=(zoom * half_stretch, zoom / half_stretch),
        rotation_deg=random.uniform(-limits.rotation_deg, limits.rotation_deg),
        mirrored=bool(random.random() < 0.5),
        centre_yx=(0.5 + random.uniform(-reach, reach), 0.5 + random.uniform(-reach, reach)),
    )


def cut_view(pixels: NDArray[_Pixel], view: View, side_px: int, *, order: int, outside: float) -> NDArray[_Pixel]:
    """Resample one view of an image or of a mask.

    Parameters
    ----------
    pixels : ndarray
        (H, W), float32 grey values or uint8 labels.
    view : View
        What to show.
    side_px : int
        Height and width of the result.
    order : int
        0 for the nearest pixel (labels), 1 for linear interpolation (grey values). The caller gives an image whose
        resolution is close to that of the view: nothing is smoothed before it is sampled.
    outside : float
        Value where the view reaches beyond the image.

    Returns
    -------
    ndarray
        (side_px, side_px), the type of `pixels`.

    Notes
    -----
    Coordinates and weights are double precision, as in `scipy.ndimage.affine_transform`, whose matrix this is; single
    precision would move labels on the border of a class. A layer of MONAI's and not one of its transforms: those
    carry metadata along, which takes time and is of no use here.
    """
    torch, layers = require("torch", purpose=_PURPOSE), require("monai.networks.layers", purpose=_PURPOSE)
    matrix = _view_to_image(view, pixels.shape, side_px)
    transform = layers.AffineTransform(
        (side_px, side_px), normalized=False, mode=_MODES[order], padding_mode="border", align_corners=False
    )
    with torch.inference_mode():
        cut = transform(torch.from_numpy(pixels.astype(np.float64))[None, None], torch.from_numpy(matrix))[
            0, 0
        ].numpy()
    # Beyond the centres of the outermost pixels nothing is known.
    steps = np.arange(side_px)
    inside = np.ones((side_px, side_px), dtype=np.bool_)
    for (down, right, start), length in zip(matrix[:2], pixels.shape, strict=True):
        place = (start + down * steps)[:, np.newaxis] + right * steps
        inside &= (place >= 0.0) & (place <= length - 1)
    result: NDArray[_Pixel] = np.where(inside, cut, outside).astype(pixels.dtype)
    return result


def vary_grey(pixels: NDArray[np.float32], random: np.random.Generator, limits: Augmentation) -> NDArray[np.float32]:
    """Change exponent, contrast, brightness and noise of grey values in [0, 1]; the result is clipped to [0, 1].

    Parameters
    ----------
    pixels : ndarray
        (H, W) float32.
    random : numpy.random.Generator
        Decides how; the noise comes from it too, because MONAI's own draws from another kind of generator.
    limits : Augmentation
        How far.
    """
    torch, transforms = require("torch", purpose=_PURPOSE), require("monai.transforms", purpose=_PURPOSE)
    exponent = math.exp(random.uniform(-limits.gamma, limits.gamma))
    gain = math.exp(random.uniform(-limits.contrast, limits.contrast))
    offset = random.uniform(-limits.brightness, limits.brightness)
    deviation = random.uniform(0.0, limits.noise)
    noise = np.float32(deviation) * random.standard_normal(pixels.shape, dtype=np.float32)
    # The exponent acts on the range that MONAI finds in an image: a row of 0 and 1 makes it [0, 1] for every view.
    pinned = np.concatenate([np.clip(pixels, 0.0, 1.0), np.arange(pixels.shape[1], dtype=np.float32)[None] % 2])
    varied: Any = transforms.AdjustContrast(gamma=exponent)(torch.from_numpy(pinned))[:-1]
    varied = transforms.ScaleIntensity(minv=None, maxv=None, factor=gain - 1.0)(varied)
    varied = transforms.ShiftIntensity(offset=0.5 - 0.5 * gain + offset)(varied)
    clipped: NDArray[np.float32] = np.clip(varied.as_tensor().numpy() + noise, 0.0, 1.0)
    return clipped


def _view_to_image(view: View, shape: tuple[int, ...], side_px: int) -> NDArray[np.float64]:
    """(3, 3) matrix from row and column of the view to row and column of the image."""
    angle = math.radians(view.rotation_deg)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if view.mirrored:
        rotation[:, 1] *= -1.0
    extent = np.asarray(shape, dtype=np.float64)
    matrix = np.eye(3)
    # Result pixel i has its centre at (i + 0.5) / side of the view; the same holds for the image on its own grid.
    matrix[:2, :2] = np.diag(extent / (side_px * np.asarray(view.zoom_yx))) @ rotation
    matrix[:2, 2] = np.asarray(view.centre_yx) * extent - 0.5 - matrix[:2, :2] @ np.full(2, side_px / 2 - 0.5)
    return matrix
