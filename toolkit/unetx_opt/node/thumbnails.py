"""Small pictures of the last results. They show image data, and exist only where the status page is on."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.files import write_file

__all__ = ["thumbnail_path", "write_thumbnail"]

_SIDE_PX: Final = 192
_KEPT: Final = 48
_RECEIPT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def thumbnail_path(folder: Path, receipt_id: str) -> Path | None:
    """Where the picture of a receipt is; None where the receipt cannot be one."""
    return folder / f"{receipt_id}.png" if _RECEIPT.fullmatch(receipt_id) else None


def write_thumbnail(folder: Path, receipt_id: str, pixels: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Draw the image with its outlines, small, and forget the oldest of them.

    Parameters
    ----------
    folder : pathlib.Path
        Of the pictures.
    receipt_id : str
        Whose picture.
    pixels : numpy.ndarray
        (H, W) grey values.
    labels : numpy.ndarray
        (H, W) uint8.
    """
    from PIL import Image

    from unetx_opt.imaging.files import render_overlay

    path = thumbnail_path(folder, receipt_id)
    if path is None:
        return
    # Nearest pixels first, so that the outline is drawn at the size at which it is seen.
    step = max(1, max(pixels.shape) // (2 * _SIDE_PX))
    overlay = render_overlay(pixels[::step, ::step], labels[::step, ::step])
    picture = Image.fromarray(overlay)
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_file(path, buffer.getvalue())
    _forget(folder)


def _forget(folder: Path) -> None:
    pictures = []
    for path in folder.glob("*.png"):
        try:
            pictures.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:  # another worker forgot it
            continue
    for _, path in sorted(pictures)[:-_KEPT]:
        path.unlink(missing_ok=True)
