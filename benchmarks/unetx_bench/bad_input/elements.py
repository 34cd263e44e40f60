"""A file as a list of raw elements, for mutations of single ones without a library that would object."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Element", "RawFile", "join_file", "split_file"]

_LONG: Final = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"})
_PREFIX_END: Final = 132
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Element:
    """One element of explicit value representation, little endian.

    Attributes
    ----------
    tag : int
        Group and element, as 0x00280010.
    vr : bytes
        Two letters.
    value : bytes
        As it is stored.
    length : int or None
        What the file says about the value's length where that is not true.
    """

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None

    def encode(self) -> bytes:
        """Write it, with the length that it claims."""
        length = len(self.value) if self.length is None else self.length
        head = struct.pack("<HH", self.tag >> 16, self.tag & 0xFFFF) + self.vr
        if self.vr in _LONG:
            return head + struct.pack("<HI", 0, length & 0xFFFFFFFF) + self.value
        return head + struct.pack("<H", length & 0xFFFF) + self.value


@dataclass(frozen=True, slots=True)
class RawFile:
    """What stands before the elements, the elements, and what follows without being understood."""

    prefix: bytes
    elements: tuple[Element, ...]
    rest: bytes
    deflated: bool = False

    def having(self, element: Element) -> RawFile:
        """Put an element in its place, for the one of its tag where there is one."""
        others = [other for other in self.elements if other.tag != element.tag]
        place = sum(other.tag < element.tag for other in others)
        return replace(self, elements=(*others[:place], element, *others[place:]))


def split_file(data: bytes) -> RawFile:
    """Take a valid file apart; of implicit or big-endian syntax only its meta information."""
    meta, at = _scan(data, _PREFIX_END, only_group=2)
    syntax = next((element.value.rstrip(b"\0 ") for element in meta if element.tag == 0x00020010), b"")
    body = data[at:]
    if syntax == _DEFLATED:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    elements, end = _scan(body, 0, only_group=None)
    return RawFile(data[:_PREFIX_END], (*meta, *elements), body[end:], syntax == _DEFLATED)


def join_file(file: RawFile) -> bytes:
    """Write what `split_file` took apart, whatever was done to it."""
    meta = b"".join(element.encode() for element in file.elements if element.tag >> 16 <= 2)
    body = b"".join(element.encode() for element in file.elements if element.tag >> 16 > 2) + file.rest
    if file.deflated:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    return file.prefix + meta + body


def _scan(data: bytes, at: int, only_group: int | None) -> tuple[list[Element], int]:
    elements = []
    for element, end in _walk(data, at):
        if only_group is not None and element.tag >> 16 != only_group:
            break
        elements.append(element)
        at = end
    return elements, at


def _walk(data: bytes, at: int) -> Iterator[tuple[Element, int]]:
    while at + 8 <= len(data):
        group, number = struct.unpack_from("<HH", data, at)
        vr = data[at + 4 : at + 6]
        if not vr.isalpha() or not vr.isupper():
            return
        if vr in _LONG:
            (length,), start = struct.unpack_from("<I", data, at + 8), at + 12
        else:
            (length,), start = struct.unpack_from("<H", data, at + 6), at + 8
        end = len(data) if length == _UNDEFINED else start + length
        claimed = _UNDEFINED if length == _UNDEFINED else None
        yield Element(group << 16 | number, vr, data[start:end], claimed), end
        at = end
