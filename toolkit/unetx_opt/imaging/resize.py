"""The one resampling filter of the toolkit: separable, antialiased, triangular.

Images on their way to the network and logits on their way back use the same definition, which any other
implementation has to repeat:

* Per axis, ``scale = source / target`` in double precision and ``width = max(1, scale)``.
* Target sample ``i`` sits at ``center = (i + 0.5) * scale`` in source pixels, so pixel centres are at half
  integers and the image's edges coincide.
* Its taps run from ``max(0, int(center - width + 0.5))`` to ``min(source, int(center + width + 0.5))``, the
  end excluded, ``int`` truncating. Tap ``j`` weighs ``max(0, 1 - abs((j - center + 0.5) * (1 / width)))``,
  and the weights are divided by their sum, all in double precision.
* Rows are resampled first, then columns; an axis that keeps its length is left out. Each pass multiplies in
  double precision, adds the taps in ascending order, and rounds once to float32.

This is what Pillow computes for ``BILINEAR`` on its 32-bit float images (``src/libImaging/Resample.c``), one axis at
a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["resize_plane"]


def resize_plane(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resample one plane; where it has that size already it is returned as it is.

    Parameters
    ----------
    plane : numpy.ndarray
        (H, W) float32.
    height, width : int
        Size of the result in pixels, both at least 1.

    Returns
    -------
    numpy.ndarray
        (height, width) float32, inside the range of the input: the weights are positive and sum to one.
    """
    if plane.shape == (height, width):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    # One axis per call: asked for both, Pillow 13 takes the columns first where that is less work.
    for size in ((width, image.height), (width, height)):
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)
