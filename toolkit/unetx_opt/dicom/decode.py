"""Stored pixel values of a DICOM image, each transfer syntax by one chosen codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.dicom.codestream import StreamSize, jpeg2000_size, jpeg_size
from unetx_opt.errors import ImageError, MissingPackageError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DEFLATED", "TRANSFER_SYNTAXES", "PixelLayout", "TransferSyntax", "decode_pixels"]

#: UID of Deflated Explicit VR Little Endian, whose whole data set is compressed.
DEFLATED: Final = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """The checked Image Pixel module of an image.

    Attributes
    ----------
    rows, columns : int
        In pixels.
    bits_allocated, bits_stored : int
        Per pixel.
    signed : bool
        Whether stored values are in two's complement.
    samples : int
        1 of a grey image, 3 of a colour image that is read by force.
    frames : int
        Of which the first is read.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    samples: int = 1
    frames: int = 1

    @property
    def stored_range(self) -> tuple[int, int]:
        """Smallest and largest value that the stored bits can hold."""
        if self.signed:
            return -(2 ** (self.bits_stored - 1)), 2 ** (self.bits_stored - 1) - 1
        return 0, 2**self.bits_stored - 1


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """How the pixels of one transfer syntax are decoded.

    Attributes
    ----------
    name : str
        As a person calls it.
    plugins : tuple of str
        pydicom's decoding plugins for it, the first installed one is used; empty where the pixels are not
        compressed, or where `imagecodecs` decodes them. Naming them keeps other installed codecs out, of which
        some end the process on damaged input.
    stream_size : callable or None
        Reads the size from the compressed frame, before it is decoded.
    fit : callable or None
        Makes stored values of what a codec gives that knows neither their sign nor how many bits are stored.
    """

    name: str
    plugins: tuple[str, ...]
    stream_size: Callable[[bytes], StreamSize] | None
    fit: Callable[[NDArray[Any], PixelLayout], NDArray[Any]] | None = None


def _take_stored(decoded: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Clear the bits that are not stored; of signed values the highest one that is stored is the sign."""
    stored = decoded.astype(np.dtype(f"{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}"))
    unused = layout.bits_allocated - layout.bits_stored
    return np.asarray(np.right_shift(np.left_shift(stored, unused), unused))


def _clip_stored(decoded: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """As `_take_stored`, but what a lossy codec makes a little too large for the stored bits is not wrapped."""
    return _take_stored(decoded if layout.signed else np.minimum(decoded, layout.stored_range[1]), layout)


#: Transfer syntax UID to its row. Video and JPIP are absent: they hold no single radiograph.
TRANSFER_SYNTAXES: Final[Mapping[str, TransferSyntax]] = MappingProxyType(
    {
        "1.2.840.10008.1.2": TransferSyntax("Implicit VR Little Endian", (), None),
        "1.2.840.10008.1.2.1": TransferSyntax("Explicit VR Little Endian", (), None),
        "1.2.840.10008.1.2.2": TransferSyntax("Explicit VR Big Endian", (), None),
        DEFLATED: TransferSyntax("Deflated Explicit VR Little Endian", (), None),
        "1.2.840.10008.1.2.4.50": TransferSyntax("JPEG Baseline", ("pillow",), jpeg_size),
        "1.2.840.10008.1.2.4.51": TransferSyntax("JPEG Extended", (), jpeg_size, _clip_stored),
        "1.2.840.10008.1.2.4.57": TransferSyntax("JPEG Lossless", (), jpeg_size, _take_stored),
        "1.2.840.10008.1.2.4.70": TransferSyntax("JPEG Lossless SV1", (), jpeg_size, _take_stored),
        "1.2.840.10008.1.2.4.80": TransferSyntax("JPEG-LS Lossless", ("pyjpegls",), jpeg_size, _take_stored),
        "1.2.840.10008.1.2.4.81": TransferSyntax("JPEG-LS Near-lossless", ("pyjpegls",), jpeg_size, _clip_stored),
        "1.2.840.10008.1.2.4.90": TransferSyntax("JPEG 2000 Lossless", ("pylibjpeg", "pillow"), jpeg2000_size),
        "1.2.840.10008.1.2.4.91": TransferSyntax("JPEG 2000", ("pylibjpeg", "pillow"), jpeg2000_size),
        "1.2.840.10008.1.2.4.201": TransferSyntax(
            "High-Throughput JPEG 2000 Lossless", ("pylibjpeg",), jpeg2000_size
        ),
        "1.2.840.10008.1.2.4.202": TransferSyntax("High-Throughput JPEG 2000 RPCL", ("pylibjpeg",), jpeg2000_size),
        "1.2.840.10008.1.2.4.203": TransferSyntax("High-Throughput JPEG 2000", ("pylibjpeg",), jpeg2000_size),
        # Not pylibjpeg-rle: on damaged data its native code panics with an exception that is no Exception.
        "1.2.840.10008.1.2.5": TransferSyntax("RLE Lossless", ("pydicom",), None),
    }
)


def decode_pixels(dataset: Dataset, syntax_uid: str, layout: PixelLayout) -> NDArray[Any]:
    """Decode the first frame of an image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        With Pixel Data.
    syntax_uid : str
        Its transfer syntax, a key of `TRANSFER_SYNTAXES`.
    layout : PixelLayout
        What the image's header declares.

    Returns
    -------
    numpy.ndarray
        (rows, columns) stored values, 8-bit or 16-bit integers, unused high bits cleared or sign-extended;
        (rows, columns, 3) RGB of a colour image.

    Raises
    ------
    ImageError
        The compressed frame declares another size or number of samples than the header.
    MissingPackageError
        The codec is not installed.
    """
    syntax = TRANSFER_SYNTAXES[syntax_uid]
    if syntax.stream_size is not None:
        frame = _first_frame(dataset, layout)
        _check_stream(syntax.stream_size(frame), layout)
        if not syntax.plugins and syntax.fit is not None:
            return syntax.fit(_decode_jpeg(frame, layout), layout)
    pixels = require("pydicom.pixels", purpose="decoding a DICOM image")
    decoder = pixels.get_decoder(syntax_uid)
    plugin = next((name for name in syntax.plugins if name in decoder.available_plugins), "")
    if syntax.plugins and not plugin:
        raise MissingPackageError(
            f"{syntax.name} needs a codec that is not installed: run pip install 'unetx-opt[dicom]'"
        )
    # Not raw: luminance and chrominance become red, green and blue.
    stored, _ = decoder.as_array(dataset, index=0, raw=layout.samples == 1, decoding_plugin=plugin)
    if syntax.fit is not None and layout.samples == 1:
        return syntax.fit(stored, layout)
    return np.asarray(stored)


def _first_frame(dataset: Dataset, layout: PixelLayout) -> bytes:
    encaps = require("pydicom.encaps", purpose="reading compressed pixel data")
    return bytes(encaps.get_frame(dataset.PixelData, 0, number_of_frames=layout.frames))


def _check_stream(size: StreamSize, layout: PixelLayout) -> None:
    if (size.rows, size.columns) != (layout.rows, layout.columns):
        raise ImageError(
            f"its compressed frame is {size.rows} x {size.columns} pixels, its header says "
            f"{layout.rows} x {layout.columns}"
        )
    if size.components != layout.samples:
        raise ImageError(f"its compressed frame has {size.components} components, its header says {layout.samples}")
    if size.bits > layout.bits_allocated:
        raise ImageError(f"its compressed frame has {size.bits} bits per pixel, its header {layout.bits_allocated}")


def _decode_jpeg(frame: bytes, layout: PixelLayout) -> NDArray[Any]:
    if layout.samples != 1:
        raise ImageError("colour in lossless or 12-bit JPEG is not read: convert it to grey")
    # The codec fills what is missing with grey and reports nothing. A few bytes of padding may follow the end.
    if b"\xff\xd9" not in frame[-16:]:
        raise ImageError("its JPEG stream has no end marker: the file is truncated, send it again")
    imagecodecs = require("imagecodecs", purpose="decoding JPEG Lossless or 12-bit JPEG")
    decoded: NDArray[Any] = imagecodecs.jpeg_decode(frame)
    return decoded
