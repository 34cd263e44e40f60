"""Radiographs from PNG files, masks and overlays to PNG files."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetx_opt.errors import ImageError
from unetx_opt.files import write_file
from unetx_opt.imaging.grey import normalize_grey
from unetx_opt.imaging.preprocess import MAX_IMAGE_SIDE_PX, MIN_IMAGE_SIDE_PX
from unetx_opt.specs import InputContract

__all__ = [
    "MAX_IMAGE_PX",
    "OVERLAY_COLORS",
    "SourceImage",
    "encode_mask_png",
    "encode_overlay_png",
    "read_image",
    "render_overlay",
    "write_mask_png",
    "write_overlay_png",
]

#: Pixels of the largest image that is decoded; the largest detectors have about 20 million.
MAX_IMAGE_PX: Final = 1 << 26
_MAX_FILE_BYTES: Final = 1 << 29

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3

#: Red, green, blue of labels 1, 2, ...: Okabe and Ito's palette, distinct under every colour-vision deficiency,
#: in the order of contrast to a radiograph. More labels begin again.
OVERLAY_COLORS: Final = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
_FILL_OPACITY: Final = 0.22
_CONTOUR_PER_SIDE: Final = 1 / 400


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A radiograph as it was read.

    Attributes
    ----------
    pixels : numpy.ndarray
        (H, W) grey values, larger is brighter.
    spacing_mm : tuple of float or None
        Distance between rows and between columns; None where the file does not tell.
    name : str
        File name without its extension.
    kind : str
        "png" or "dicom".
    """

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class _PngHeader:
    width: int
    height: int
    bit_depth: int
    color_type: int


def read_image(path: Path) -> SourceImage:
    """Read a grey PNG.

    Parameters
    ----------
    path : pathlib.Path
        PNG of 1 to 16 bits. Palette, RGB and RGBA images of up to 8 bits are read where every pixel is grey and
        opaque: some collections store grey radiographs so.

    Returns
    -------
    SourceImage
        (H, W) uint8, or uint16 of a 16-bit file. A PNG knows no pixel spacing on the patient: its resolution
        field is about print.

    Raises
    ------
    ImageError
        The file is missing, no PNG, truncated or corrupt, in colour, or too large; sizes are read from the header
        before anything is decoded.
    """
    data = _read_bytes(path)
    header = _read_header(data, path)
    _check_chunks(data, path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            pixels = _grey_pixels(image, header)
    except Exception as error:
        # Pillow names no closed set of what a damaged file raises: OSError, SyntaxError, ValueError, zlib.error...
        raise ImageError(f"{path} is a damaged PNG: {_first_line(error)}") from error
    if pixels is None:
        raise ImageError(f"{path} is in colour or has transparent pixels, expected a grey radiograph")
    return SourceImage(pixels=pixels, spacing_mm=None, name=path.stem, kind="png")


def write_mask_png(path: Path, mask: NDArray[np.uint8], *, num_classes: int = 1) -> None:
    """Write `encode_mask_png`, whole or not at all; an existing file is replaced in one step."""
    write_file(path, encode_mask_png(mask, num_classes=num_classes))


def encode_mask_png(mask: NDArray[np.uint8], *, num_classes: int = 1) -> bytes:
    """Encode a mask as an 8-bit grey PNG.

    Parameters
    ----------
    mask : numpy.ndarray
        (H, W) uint8 labels as `unetx_opt.imaging.postprocess.label_mask` gives them.
    num_classes : int
        1: 0 is written as 0 and 1 as 255. Otherwise the labels themselves are written.

    Raises
    ------
    ImageError
        `mask` is not (H, W) uint8, or has a label that does not exist.
    """
    labels = _check_labels(mask)
    limit = max(1, num_classes - 1)
    if labels.size and labels.max() > limit:
        raise ImageError(f"mask has label {labels.max()}, expected 0 to {limit}")
    return _encode_png(labels * np.uint8(255) if num_classes == 1 else labels)


def write_overlay_png(path: Path, pixels: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Write `encode_overlay_png`, whole or not at all; an existing file is replaced in one step."""
    write_file(path, encode_overlay_png(pixels, labels))


def encode_overlay_png(pixels: NDArray[Any], labels: NDArray[np.uint8]) -> bytes:
    """Encode `render_overlay` as an 8-bit RGB PNG."""
    return _encode_png(render_overlay(pixels, labels))


def render_overlay(pixels: NDArray[Any], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Show the image with a translucent fill and a crisp contour for every label.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) grey values, larger is brighter; shown from their 0.5th to their 99.5th percentile.
    labels : numpy.ndarray
        (H, W) uint8; 0 stays uncoloured, label n has color n - 1 of `OVERLAY_COLORS`.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8, red, green, blue.

    Raises
    ------
    ImageError
        The two differ in size, or the image is not finite.
    """
    labels = _check_labels(labels)
    if pixels.shape != labels.shape:
        raise ImageError(f"image is {pixels.shape} and its mask {labels.shape}, expected the same size")
    grey = np.rint(normalize_grey(pixels, InputContract()) * np.float32(255)).astype(np.uint8)
    overlay = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    thickness = max(1, round(max(labels.shape) * _CONTOUR_PER_SIDE))
    for label in np.flatnonzero(np.bincount(labels.ravel())).tolist():
        if label:
            _paint(overlay, labels == label, OVERLAY_COLORS[(label - 1) % len(OVERLAY_COLORS)], thickness)
    return overlay


def _paint(
    overlay: NDArray[np.uint8], region: NDArray[np.bool_], color: tuple[int, int, int], thickness: int
) -> None:
    from scipy import ndimage

    paint = np.array(color, dtype=np.float32)
    fill = overlay[region] * np.float32(1 - _FILL_OPACITY) + paint * np.float32(_FILL_OPACITY)
    overlay[region] = np.rint(fill)
    # border_value 1: a region that runs out of the image has no contour along the image's edge.
    inside = ndimage.binary_erosion(region, iterations=thickness, border_value=1)
    overlay[region & ~inside] = color


def _check_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ImageError(f"mask is {labels.dtype} of shape {labels.shape}, expected uint8 (height, width)")
    return labels


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError(f"{path} is no file: pass a PNG or DICOM file")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ImageError(f"{path} has {size} bytes, expected at most {_MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_header(data: bytes, path: Path) -> _PngHeader:
    if not data.startswith(_SIGNATURE):
        raise ImageError(f"{path} is no PNG: pass an 8-bit or 16-bit grey PNG, or a DICOM file")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError(f"{path} is a damaged PNG: it ends within its header, or has none")
    header = _PngHeader(*struct.unpack(">IIBB", data[16:26]))
    sides = (header.height, header.width)
    if min(sides) < MIN_IMAGE_SIDE_PX or max(sides) > MAX_IMAGE_SIDE_PX or sides[0] * sides[1] > MAX_IMAGE_PX:
        raise ImageError(
            f"{path} is {sides[0]} x {sides[1]} pixels (height x width), expected sides of {MIN_IMAGE_SIDE_PX} "
            f"to {MAX_IMAGE_SIDE_PX} and at most {MAX_IMAGE_PX} pixels"
        )
    if header.bit_depth == 16 and header.color_type != _GREY:
        raise ImageError(f"{path} has 16-bit colour or transparency, expected a grey radiograph")
    return header


def _check_chunks(data: bytes, path: Path) -> None:
    """Check that every chunk is whole: Pillow skips the checksums of pixel data, and altered pixels would pass."""
    offset = len(_SIGNATURE)
    while True:
        body = offset + 8
        if body > len(data):
            raise ImageError(f"{path} is a damaged PNG: it ends after {len(data)} bytes, before its last chunk")
        length, name = struct.unpack(">I4s", data[offset:body])
        end = body + length
        if end + 4 > len(data):
            raise ImageError(f"{path} is a damaged PNG: it ends after {len(data)} bytes, within a chunk")
        if zlib.crc32(data[offset + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError(f"{path} is a damaged PNG: the checksum of the chunk at byte {offset} is wrong")
        if name == b"IEND":
            return
        offset = end + 4


def _grey_pixels(image: Image.Image, header: _PngHeader) -> NDArray[Any] | None:
    """The grey plane, or None of an image that has colour or transparency."""
    if header.color_type == _GREY:
        if header.bit_depth == 16:
            return np.array(image, dtype=np.uint16)
        return np.array(image.convert("L"), dtype=np.uint8)
    if header.color_type == _PALETTE and not image.has_transparency_data:
        image = image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA"), dtype=np.uint8)
    red = rgba[..., 0]
    is_grey = np.array_equal(red, rgba[..., 1]) and np.array_equal(red, rgba[..., 2])
    return np.ascontiguousarray(red) if is_grey and bool((rgba[..., 3] == 255).all()) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
