"""Image size as a compressed frame itself declares it, read without decoding.

A codec allocates what the frame's own header asks for, whatever Rows and Columns of the DICOM header say.
Markers: ITU-T T.81 table B.1 (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000, also with T.814).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from unetx_opt.errors import ImageError

__all__ = ["StreamSize", "jpeg2000_size", "jpeg_size"]

# SOF0 to SOF15 of JPEG without DHT, JPG and DAC, which share the range; SOF55 of JPEG-LS.
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# Markers without a length: TEM, RST0 to RST7, SOI.
_BARE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(frozen=True, slots=True)
class StreamSize:
    """What a compressed frame declares.

    Attributes
    ----------
    rows, columns : int
        In pixels.
    components : int
        1 of a grey image.
    bits : int
        Precision of a sample.
    """

    rows: int
    columns: int
    components: int
    bits: int


def jpeg_size(frame: bytes) -> StreamSize:
    """Read the frame header of a JPEG or JPEG-LS stream.

    Raises
    ------
    ImageError
        There is no frame header before the first scan.
    """
    if not frame.startswith(b"\xff\xd8"):
        raise ImageError("its pixel data is no JPEG stream")
    offset = 2
    while offset + 4 <= len(frame):
        if frame[offset] != 0xFF:
            break
        marker = frame[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
        elif marker in _BARE_MARKERS:
            offset += 2
        elif marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        elif marker in _FRAME_MARKERS and offset + 10 <= len(frame):
            bits, rows, columns, components = struct.unpack(">BHHB", frame[offset + 4 : offset + 10])
            return StreamSize(rows=rows, columns=columns, components=components, bits=bits)
        else:
            offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    raise ImageError("its JPEG stream has no frame header")


def jpeg2000_size(frame: bytes) -> StreamSize:
    """Read the SIZ marker segment of a JPEG 2000 codestream, which follows its first marker.

    Raises
    ------
    ImageError
        The stream does not begin so; DICOM forbids the JP2 file format (PS3.5 A.4.4).
    """
    if not frame.startswith(b"\xff\x4f\xff\x51") or len(frame) < 43:
        raise ImageError("its pixel data is no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4I", frame[8:24])
    components, depth = struct.unpack(">HB", frame[40:43])
    # The highest bit of the depth tells the sign.
    return StreamSize(rows=bottom - top, columns=right - left, components=components, bits=(depth & 0x7F) + 1)
