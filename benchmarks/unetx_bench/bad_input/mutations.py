"""What is done to a valid file: a table of small damages, each drawn by a seeded generator."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from unetx_bench.bad_input.elements import Element, join_file, split_file
from unetx_bench.bad_input.valid import VALID, valid_bytes

__all__ = ["MUTATIONS", "VALUES"]

_Random = np.random.Generator
_INTEGERS: Final = tuple(struct.pack("<H", value) for value in (0, 1, 3, 7, 15, 16, 32, 255, 4096, 16384, 65535))
_NUMBERS: Final = (
    b"",
    b"0",
    b"-1",
    b"nan",
    b"inf",
    b"1e308",
    b"-1e400",
    b"1e-320",
    b"\\\\",
    b"abc",
    b"0\\0",
    b"9" * 16,
)
_UIDS: Final = (
    b"",
    b"../../../tmp/evil",
    b"a/b",
    b"1.2\\3.4",
    b"1.2.3\0../x",
    b"1." * 60,
    b"..\\..\\evil",
    b"/etc/passwd",
    b"1.2.840.10008.1.2.4.100",
)
_TEXTS: Final = (b"", b"\x1b$B" * 9, b"\xff\xfe" * 8, b"A" * 5000, b"\n\r\t\0", b"x\\" * 200, b"HAND", b"%s%n{}")
_TABLES: Final = (b"", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\x10\0\0\0" + bytes(16), b"\xff" * 40)

#: Tag -> value representation and values that do harm, of everything that the reader looks at.
VALUES: Final[Mapping[int, tuple[bytes, tuple[bytes, ...]]]] = MappingProxyType(
    {
        0x00020000: (b"UL", (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0")),
        0x00020010: (b"UI", (*(kind.syntax.encode() for kind in VALID.values()), *_UIDS)),
        0x00080005: (b"CS", (b"ISO 2022 IR 87", b"GB18030", b"nonsense", b"\\ISO 2022 IR 149", *_TEXTS)),
        0x00080016: (b"UI", (*_UIDS, b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.5.1.4.1.1.7")),
        0x00080018: (b"UI", _UIDS),
        0x00080060: (b"CS", _TEXTS),
        0x00082218: (b"SQ", _TABLES),
        0x00100010: (b"PN", _TEXTS),
        0x00100030: (b"DA", (b"not-a-date", b"99999999", *_TEXTS)),
        0x00180015: (b"CS", _TEXTS),
        0x0020000D: (b"UI", _UIDS),
        0x0020000E: (b"UI", _UIDS),
        0x00280002: (b"US", _INTEGERS),
        0x00280004: (b"CS", (b"RGB", b"YBR_FULL_422", b"PALETTE COLOR", b"MONOCHROME1", *_TEXTS)),
        0x00280006: (b"US", _INTEGERS),
        0x00280008: (b"IS", (b"2147483647", b"2147483648", b"65536", b"96", *_NUMBERS)),
        0x00280010: (b"US", _INTEGERS),
        0x00280011: (b"US", _INTEGERS),
        0x00280030: (b"DS", (b"-1\\1", b"1000\\0.1", b"1\\2\\3", *_NUMBERS)),
        0x00280034: (b"IS", (b"1\\0", b"-1\\1", b"1\\999999999999", *_NUMBERS)),
        0x00280100: (b"US", _INTEGERS),
        0x00280101: (b"US", _INTEGERS),
        0x00280102: (b"US", _INTEGERS),
        0x00280103: (b"US", _INTEGERS),
        0x00281050: (b"DS", _NUMBERS),
        0x00281051: (b"DS", _NUMBERS),
        0x00281052: (b"DS", _NUMBERS),
        0x00281053: (b"DS", _NUMBERS),
        0x00281056: (b"CS", (b"SIGMOID", b"LINEAR_EXACT", b"CUBIC", *_TEXTS)),
        0x00283000: (b"SQ", _TABLES),
        0x00283010: (b"SQ", _TABLES),
        0x20500020: (b"CS", (b"INVERSE", *_TEXTS)),
    }
)
_VRS: Final = (b"OB", b"OW", b"UN", b"SQ", b"US", b"SS", b"DS", b"IS", b"PN", b"AT", b"FD", b"UT", b"ZZ", b"\0\0")
_LENGTHS: Final = (0, 1, 3, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def _flip_bytes(data: bytes, random: _Random) -> bytes:
    damaged = bytearray(data)
    for place in random.integers(128, len(data), size=int(random.integers(1, 17))).tolist():
        damaged[place] = int(random.integers(256))
    return bytes(damaged)


def _flip_header_bits(data: bytes, random: _Random) -> bytes:
    damaged = bytearray(data)
    for place in random.integers(132, min(len(data), 1200), size=int(random.integers(1, 5))).tolist():
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def _flip_tail_bits(data: bytes, random: _Random) -> bytes:
    """Damage what is most likely the compressed frame."""
    damaged = bytearray(data)
    for place in random.integers(len(data) // 2, len(data), size=int(random.integers(1, 9))).tolist():
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def _truncate(data: bytes, random: _Random) -> bytes:
    return data[: int(random.integers(len(data)))]


def _drop(data: bytes, random: _Random) -> bytes:
    start = int(random.integers(132, len(data)))
    return data[:start] + data[start + int(random.integers(1, 65)) :]


def _insert(data: bytes, random: _Random) -> bytes:
    start = int(random.integers(132, len(data)))
    return data[:start] + random.bytes(int(random.integers(1, 65))) + data[start:]


def _repeat(data: bytes, random: _Random) -> bytes:
    start, size = int(random.integers(132, len(data))), int(random.integers(1, 513))
    return data[: start + size] + data[start : start + size] * int(random.integers(1, 50)) + data[start + size :]


def _splice(data: bytes, random: _Random) -> bytes:
    other = valid_bytes(list(VALID)[int(random.integers(len(VALID)))])
    return data[: int(random.integers(132, len(data)))] + other[int(random.integers(132, len(other))) :]


def _set_value(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    for _ in range(int(random.integers(1, 4))):
        tag = list(VALUES)[int(random.integers(len(VALUES)))]
        vr, values = VALUES[tag]
        file = file.having(Element(tag, vr, values[int(random.integers(len(values)))]))
    return join_file(file)


def _remove_element(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    gone = int(random.integers(len(file.elements)))
    return join_file(replace(file, elements=file.elements[:gone] + file.elements[gone + 1 :]))


def _move_element(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    elements = list(file.elements)
    element = elements.pop(int(random.integers(len(elements))))
    elements.insert(int(random.integers(len(elements))), element)
    if random.random() < 0.5:
        elements.append(element)
    return join_file(replace(file, elements=tuple(elements)))


def _lie_about_length(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    place = int(random.integers(len(file.elements)))
    length = _LENGTHS[int(random.integers(len(_LENGTHS)))]
    lying = replace(file.elements[place], length=length)
    return join_file(replace(file, elements=(*file.elements[:place], lying, *file.elements[place + 1 :])))


def _lie_about_type(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    place = int(random.integers(len(file.elements)))
    lying = replace(file.elements[place], vr=_VRS[int(random.integers(len(_VRS)))])
    return join_file(replace(file, elements=(*file.elements[:place], lying, *file.elements[place + 1 :])))


def _resize_value(data: bytes, random: _Random) -> bytes:
    file = split_file(data)
    place = int(random.integers(len(file.elements)))
    value = file.elements[place].value
    other = (b"", value[: len(value) // 2], value + value, value + b"\0", random.bytes(len(value)))
    changed = replace(file.elements[place], value=other[int(random.integers(len(other)))])
    return join_file(replace(file, elements=(*file.elements[:place], changed, *file.elements[place + 1 :])))


#: Name -> f(valid file, random) -> damaged file.
MUTATIONS: Final[Mapping[str, Callable[[bytes, _Random], bytes]]] = MappingProxyType(
    {
        "flip-bytes": _flip_bytes,
        "flip-header-bits": _flip_header_bits,
        "flip-tail-bits": _flip_tail_bits,
        "truncate": _truncate,
        "drop": _drop,
        "insert": _insert,
        "repeat": _repeat,
        "splice": _splice,
        "set-value": _set_value,
        "remove-element": _remove_element,
        "move-element": _move_element,
        "lie-about-length": _lie_about_length,
        "lie-about-type": _lie_about_type,
        "resize-value": _resize_value,
    }
)
