"""Files that are known to do harm: each has brought down or filled up some reader of DICOM."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from unetx_bench.bad_input.elements import Element, RawFile, join_file, split_file
from unetx_bench.bad_input.valid import valid_bytes

__all__ = ["HOSTILE"]

_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = b"\xfe\xff\x00\xe0"
_END_OF_SEQUENCE: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"
_SIZE: Final = {"rows": 0x00280010, "columns": 0x00280011}


def _plain(name: str = "explicit") -> RawFile:
    return split_file(valid_bytes(name))


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _sized(file: RawFile, rows: int, columns: int) -> RawFile:
    return file.having(Element(0x00280010, b"US", _short(rows))).having(Element(0x00280011, b"US", _short(columns)))


def _framed(file: RawFile, *frames: bytes) -> RawFile:
    body = b"".join(_ITEM + struct.pack("<I", len(frame)) + frame for frame in (b"", *frames)) + _END_OF_SEQUENCE
    return file.having(Element(_PIXEL_DATA, b"OB", body, 0xFFFFFFFF))


def _frame_of(name: str) -> tuple[RawFile, bytearray]:
    """A compressed file and its one frame, which follows the empty offset table."""
    file = _plain(name)
    (body,) = (element.value for element in file.elements if element.tag == _PIXEL_DATA)
    table = int.from_bytes(body[4:8], "little")
    (size,) = struct.unpack_from("<I", body, 8 + table + 4)
    return file, bytearray(body[8 + table + 8 : 8 + table + 8 + size])


def _inflating(gigabytes: float) -> bytes:
    """A deflated file whose data set goes on with zeros; the same compressed megabyte is repeated."""
    file = _plain("deflated")
    head = join_file(replace(file, elements=tuple(element for element in file.elements if element.tag >> 16 == 2)))
    meta = head[: len(head) - len(_deflate(b""))]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(element.encode() for element in file.elements if element.tag >> 16 > 2)
    first = packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return meta + first + megabyte * int(gigabytes * 1024) + _deflate(b"")


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _nested(depth: int) -> bytes:
    opening = b"\x08\0\x11\x11SQ\0\0\xff\xff\xff\xff" + _ITEM + b"\xff\xff\xff\xff"
    file = _plain()
    meta = tuple(element for element in file.elements if element.tag >> 16 == 2)
    return join_file(replace(file, elements=meta, rest=opening * depth))


def _many_items(count: int) -> bytes:
    items = (_ITEM + bytes(4)) * count
    return join_file(_plain().having(Element(0x00081140, b"SQ", items)))


def _many_open_items(count: int) -> bytes:
    """The sequence has no length: its end can only be found by reading all of it."""
    items = (_ITEM + bytes(4)) * count + _END_OF_SEQUENCE
    return join_file(_plain().having(Element(0x00081140, b"SQ", items, 0xFFFFFFFF)))


def _many_elements(count: int) -> bytes:
    file = _plain()
    private = tuple(Element(0x00090000 | (0x1000 + place % 0xE000), b"LO", b"x") for place in range(count))
    elements = sorted((*file.elements, *private), key=lambda element: element.tag)
    return join_file(replace(file, elements=tuple(elements)))


def _claimed_jpeg(name: str, rows: int, columns: int, markers: bytes) -> bytes:
    file, frame = _frame_of(name)
    place = next(at for at in range(len(frame) - 1) if frame[at] == 0xFF and frame[at + 1] in markers)
    frame[place + 5 : place + 9] = struct.pack(">HH", rows, columns)
    return join_file(_framed(_sized(file, rows, columns), bytes(frame)))


def _claimed_jpeg_2000(rows: int, columns: int, tile: int | None = None) -> bytes:
    file, frame = _frame_of("jpeg-2000")
    frame[8:16] = struct.pack(">II", columns, rows)
    if tile:
        frame[24:32] = struct.pack(">II", tile, tile)
    return join_file(_framed(_sized(file, rows, columns), bytes(frame)))


def _many_components(count: int) -> bytes:
    file, frame = _frame_of("jpeg-2000")
    frame[40:42] = struct.pack(">H", count)
    return join_file(_framed(file, bytes(frame)))


def _run_lengths(offsets: tuple[int, ...], runs: bytes, rows: int = 48, columns: int = 64) -> bytes:
    head = struct.pack("<16I", 2, *offsets, *([0] * (15 - len(offsets))))
    return join_file(_framed(_sized(_plain("rle"), rows, columns), head + runs))


def _preamble(start: bytes) -> bytes:
    data = valid_bytes("explicit")
    return start + data[len(start) :]


def _with(*elements: Element, name: str = "explicit") -> bytes:
    file = _plain(name)
    for element in elements:
        file = file.having(element)
    return join_file(file)


def _claimed_pixels(length: int) -> bytes:
    file = _plain()
    (pixels,) = (element for element in file.elements if element.tag == _PIXEL_DATA)
    return join_file(file.having(replace(pixels, value=pixels.value[:100], length=length)))


_MANY_FRAMES: Final = Element(0x00280008, b"IS", b"2147483647")
_TABLE_OF_LIES: Final = _ITEM + struct.pack("<I", 22) + Element(0x00283002, b"US", _short(0) * 3).encode() + bytes(8)

#: Name -> function that makes the file.
HOSTILE: Final[Mapping[str, Callable[[], bytes]]] = MappingProxyType(
    {
        "deflate-1-gib": lambda: _inflating(1),
        "deflate-200-mib": lambda: _inflating(200 / 1024),
        "nested-20000": lambda: _nested(20_000),
        "nested-300": lambda: _nested(300),
        "items-200000": lambda: _many_items(200_000),
        "items-2000000": lambda: _many_items(2_000_000),
        "open-items-1000000": lambda: _many_open_items(1_000_000),
        "elements-50000": lambda: _many_elements(50_000),
        "pixels-4-gib": lambda: _claimed_pixels(0xFFFFFFFE),
        "pixels-2-gib": lambda: _claimed_pixels(0x7FFFFFFE),
        "pixels-undefined-length": lambda: _claimed_pixels(0xFFFFFFFF),
        "sides-65535-frames-2-31": lambda: join_file(_sized(_plain(), 65535, 65535).having(_MANY_FRAMES)),
        "frames-2-31": lambda: _with(_MANY_FRAMES),
        "frames-2-31-compressed": lambda: _with(_MANY_FRAMES, name="jpeg-2000"),
        "sides-4096-no-pixels": lambda: join_file(_sized(_plain(), 4096, 4096)),
        "jpeg-2000-65535": lambda: _claimed_jpeg_2000(65535, 65535),
        "jpeg-2000-4096": lambda: _claimed_jpeg_2000(4096, 4096),
        "jpeg-2000-tiles": lambda: _claimed_jpeg_2000(4096, 4096, tile=1),
        "jpeg-2000-components": lambda: _many_components(16384),
        "jpeg-65500": lambda: _claimed_jpeg("jpeg-baseline", 65500, 65500, b"\xc0\xc1\xc2"),
        "jpeg-4096": lambda: _claimed_jpeg("jpeg-baseline", 4096, 4096, b"\xc0\xc1\xc2"),
        "jpeg-lossless-4096": lambda: _claimed_jpeg("jpeg-lossless", 4096, 4096, b"\xc3"),
        "jpeg-ls-4096": lambda: _claimed_jpeg("jpeg-ls", 4096, 4096, b"\xf7"),
        "rle-offsets-outside": lambda: _run_lengths((64, 0xFFFFFF00), b"\x81\0" * 40),
        "rle-runs-of-4096": lambda: _run_lengths((64, 80), b"\x81\0" * 8, 4096, 4096),
        "rle-too-long": lambda: _run_lengths((64, 64 + 200_000), b"\x81\0" * 200_000),
        "fragments-100000": lambda: join_file(_framed(_plain("jpeg-baseline"), *[b"\xff\xd8"] * 100_000)),
        "no-fragment": lambda: join_file(_framed(_plain("jpeg-baseline"))),
        "window-width-0": lambda: _with(Element(0x00281051, b"DS", b"0 ")),
        "window-nan": lambda: _with(Element(0x00281050, b"DS", b"nan "), Element(0x00281051, b"DS", b"nan ")),
        "slope-1e308": lambda: _with(Element(0x00281053, b"DS", b"1e308 ")),
        "table-of-lies": lambda: _with(Element(0x00283010, b"SQ", _TABLE_OF_LIES)),
        "instance-uid-upwards": lambda: _with(Element(0x00080018, b"UI", b"../../../../tmp/evil")),
        "study-uid-upwards": lambda: _with(Element(0x0020000D, b"UI", b"../../../../tmp/evil")),
        "series-uid-absolute": lambda: _with(Element(0x0020000E, b"UI", b"/tmp/evil")),
        "elf-preamble": lambda: _preamble(b"\x7fELF\x02\x01\x01"),
        "exe-preamble": lambda: _preamble(b"MZ\x90\x00"),
        "text-64-mib": lambda: _with(Element(0x00104000, b"UT", b"x" * (1 << 26))),
        "charset-shift": lambda: _with(Element(0x00100010, b"PN", b"\x1b$B\x1b(J" * 4000)),
        "empty": lambda: b"",
        "prefix-only": lambda: bytes(128) + b"DICM",
        "meta-only": lambda: valid_bytes("explicit")[:300],
        "png": lambda: b"\x89PNG\r\n\x1a\n" + bytes(60),
        "zeros": lambda: bytes(5000),
    }
)
