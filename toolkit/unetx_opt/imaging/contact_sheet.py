"""A sheet of small radiographs, each with the contours of two masks: to see at once where a model fails.

The data set's contour is wide and blue, the model's narrow and orange, drawn over it: where they agree, both are
seen. What the model missed is tinted blue, what it added orange. The colours are of Okabe and Ito's palette,
distinct under every colour-vision deficiency, and the widths tell the contours apart without any colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unetx_opt.errors import ImageError
from unetx_opt.files import write_file
from unetx_opt.imaging.grey import normalize_grey
from unetx_opt.specs import InputContract

__all__ = ["FOUND_COLOR", "TRUTH_COLOR", "SheetText", "Tile", "draw_contact_sheet", "write_contact_sheet"]

TRUTH_COLOR: Final = (86, 180, 233)
FOUND_COLOR: Final = (230, 159, 0)

_PAPER: Final = (18, 20, 23)
_INK: Final = (240, 242, 245)
_FAINT_INK: Final = (165, 172, 180)
_FRAME: Final = (52, 57, 63)

_TILE_PX: Final = 400
_GAP_PX: Final = 24
_CAPTION_PX: Final = 58
_HEADER_PX: Final = 126
_FOOTER_PX: Final = 44
_TITLE_PT, _TEXT_PT, _SMALL_PT = 30, 20, 18
_MOST_COLUMNS: Final = 4

# Contours are drawn this much larger and then averaged: smooth lines from masks of any size.
_SCALE: Final = 3
_TRUTH_WIDTH: Final = 13
_FOUND_WIDTH: Final = 7
_FILL_OPACITY: Final = 0.38


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a sheet.

    Attributes
    ----------
    pixels : numpy.ndarray
        (H, W) grey values, larger is brighter.
    truth, found : numpy.ndarray
        (H, W) uint8 labels of the data set and of the model; 0 is background.
    name : str
        First line below the image; shortened in its middle where it is too long.
    caption : str
        Second line.
    spacing_mm : tuple of float or None
        Distance between rows and between columns, for the right proportions; None shows square pixels.
    """

    pixels: NDArray[Any]
    truth: NDArray[np.uint8]
    found: NDArray[np.uint8]
    name: str
    caption: str
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class SheetText:
    """What is written around the images: a title, a line below it, and a line at the foot."""

    title: str
    subtitle: str
    footer: str


def write_contact_sheet(path: Path, tiles: Iterable[Tile], text: SheetText) -> None:
    """Write a sheet as an 8-bit RGB PNG, whole or not at all; parameters and errors as for `draw_contact_sheet`."""
    buffer = io.BytesIO()
    Image.fromarray(draw_contact_sheet(tiles, text)).save(buffer, format="PNG", optimize=True)
    write_file(path, buffer.getvalue())


def draw_contact_sheet(tiles: Iterable[Tile], text: SheetText) -> NDArray[np.uint8]:
    """Draw images row by row, with a title, a legend and captions.

    Parameters
    ----------
    tiles : iterable of Tile
        At least one; each is drawn before the next is asked for, so that only small copies stay in memory.
    text : SheetText
        What is written above and below.

    Returns
    -------
    numpy.ndarray
        (height, width, 3) uint8.

    Raises
    ------
    ImageError
        There is no tile, an image and its masks differ in size, or an image is not finite.
    """
    drawn = [(_draw_tile(tile), tile.name, tile.caption) for tile in tiles]
    if not drawn:
        raise ImageError("a contact sheet got no image, expected at least one")
    columns = min(_MOST_COLUMNS, max(2, len(drawn)))
    rows = -(-len(drawn) // columns)
    step = (_TILE_PX + _CAPTION_PX + _GAP_PX, _TILE_PX + _GAP_PX)
    size = (columns * step[1] + _GAP_PX, _HEADER_PX + rows * step[0] + _FOOTER_PX)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_header(pen, text, size[0])
    for place, (image, name, caption) in enumerate(drawn):
        row, column = divmod(place, columns)
        left, top = _GAP_PX + column * step[1], _HEADER_PX + row * step[0]
        pen.rectangle((left - 1, top - 1, left + _TILE_PX, top + _TILE_PX), outline=_FRAME)
        sheet.paste(image, (left + (_TILE_PX - image.width) // 2, top + (_TILE_PX - image.height) // 2))
        start = _write(pen, (left, top + _TILE_PX + 8), f"{place + 1}", _TEXT_PT, _FAINT_INK) + 10
        _write(pen, (start, top + _TILE_PX + 8), name, _TEXT_PT, _INK, left + _TILE_PX - start)
        _write(pen, (left, top + _TILE_PX + 33), caption, _SMALL_PT, _FAINT_INK)
    _write(pen, (_GAP_PX, size[1] - _FOOTER_PX + 4), text.footer, _SMALL_PT, _FAINT_INK, size[0] - 2 * _GAP_PX)
    return np.asarray(sheet)


def _draw_tile(tile: Tile) -> Image.Image:
    shapes = {tile.pixels.shape, tile.truth.shape, tile.found.shape}
    if len(shapes) != 1 or tile.pixels.ndim != 2:
        raise ImageError(
            f"{tile.name}: image and masks are {tile.pixels.shape}, {tile.truth.shape} and {tile.found.shape}, "
            "expected the same (height, width)"
        )
    size = _fit(tile.pixels.shape, tile.spacing_mm)
    grey = np.rint(normalize_grey(tile.pixels, InputContract()) * np.float32(255)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS).convert("RGB"), np.float32)
    missed = (tile.truth != tile.found) & (tile.truth != 0)
    added = (tile.truth != tile.found) & (tile.found != 0)
    picture = _blend(picture, _shrink(missed, size) * _FILL_OPACITY, TRUTH_COLOR)
    picture = _blend(picture, _shrink(added, size) * _FILL_OPACITY, FOUND_COLOR)
    picture = _blend(picture, _contours(tile.truth, size, _TRUTH_WIDTH), TRUTH_COLOR)
    picture = _blend(picture, _contours(tile.found, size, _FOUND_WIDTH), FOUND_COLOR)
    return Image.fromarray(np.rint(picture).astype(np.uint8))


def _fit(shape: Sequence[int], spacing_mm: tuple[float, float] | None) -> tuple[int, int]:
    """Width and height of an image within a tile."""
    height, width = (side * unit for side, unit in zip(shape, spacing_mm or (1.0, 1.0), strict=True))
    scale = _TILE_PX / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _blend(
    picture: NDArray[np.float32], opacity: NDArray[np.float32], color: tuple[int, int, int]
) -> NDArray[np.float32]:
    weights = opacity[:, :, np.newaxis]
    blended: NDArray[np.float32] = picture * (1 - weights) + np.array(color, dtype=np.float32) * weights
    return blended


def _shrink(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float32]:
    small = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _contours(labels: NDArray[np.uint8], size: tuple[int, int], width: int) -> NDArray[np.float32]:
    """Opacity, 0 to 1, of the lines along the borders of every label."""
    from scipy import ndimage

    large = (size[0] * _SCALE, size[1] * _SCALE)
    lines = np.zeros((large[1], large[0]), dtype=bool)
    for label in np.flatnonzero(np.bincount(labels.ravel())).tolist():
        if label:
            region = _shrink(labels == label, large) > 0.5
            # Mirrored at the edges: a region that runs out of the image has no contour along the image's edge.
            grown = ndimage.maximum_filter(region, width, mode="nearest")
            lines |= grown & ~ndimage.minimum_filter(region, width, mode="nearest")
    opacity = lines.reshape(size[1], _SCALE, size[0], _SCALE).mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(opacity, dtype=np.float32)


def _draw_header(pen: ImageDraw.ImageDraw, text: SheetText, width: int) -> None:
    _write(pen, (_GAP_PX, 16), text.title, _TITLE_PT, _INK, width - 2 * _GAP_PX)
    _write(pen, (_GAP_PX, 54), text.subtitle, _SMALL_PT, _FAINT_INK, width - 2 * _GAP_PX)
    left, middle = _GAP_PX, 98
    for color, thickness, words in ((TRUTH_COLOR, 4, "data set"), (FOUND_COLOR, 2, "model")):
        pen.line((left, middle, left + 34, middle), fill=color, width=thickness)
        left = _write(pen, (left + 44, middle - 12), words, _SMALL_PT, _INK) + 30
    for color, words in ((TRUTH_COLOR, "missed by the model"), (FOUND_COLOR, "added by the model")):
        pen.rectangle((left, middle - 8, left + 24, middle + 8), fill=_tint(color))
        left = _write(pen, (left + 34, middle - 12), words, _SMALL_PT, _INK) + 30


def _tint(color: tuple[int, int, int]) -> tuple[int, ...]:
    """The colour as it looks over the middle grey of a radiograph."""
    return tuple(round(110 * (1 - _FILL_OPACITY) + channel * _FILL_OPACITY) for channel in color)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    words: str,
    points: int,
    ink: tuple[int, int, int],
    limit_px: int = _TILE_PX,
) -> int:
    """Write one line, shortened in its middle to `limit_px`, and return where it ends."""
    font = ImageFont.load_default(points)
    shown, kept = words, len(words)
    while font.getlength(shown) > limit_px and kept > 2:
        kept -= 1
        shown = words[: math.ceil(kept / 2)] + "..." + words[len(words) - kept // 2 :]
    pen.text(place, shown, font=font, fill=ink)
    return place[0] + math.ceil(font.getlength(shown))
