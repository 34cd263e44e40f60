"""The header of a plan, against hand-made bytes; real plans are checked where they are built."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_exporters.tensorrt.header import (
    CAPABILITY_BITS,
    HEADER_BYTES,
    check_capabilities,
    check_header,
    parse_header,
)
from unetx_opt.errors import ExportError, SpecError


def make_header(size: int = 1000, version: bytes = b"\x01\x07\x01\x74", mask: int = 6) -> bytes:
    data = bytearray(HEADER_BYTES)
    data[0:4] = b"vtrt"
    data[0x10:0x18] = struct.pack("<Q", size)
    data[0x18:0x1C] = version
    data[0x20:0x24] = struct.pack("<I", mask)
    return bytes(data)


def test_a_header_tells_size_version_and_capabilities() -> None:
    header = parse_header(make_header() + b"rest")
    assert (header.size_bytes, header.version, header.capability_mask) == (1000, "1.7.1.116", 6)
    check_header(header, 1000, "1.7.1.116", ("8.0", "8.6"))


@given(st.sets(st.sampled_from(sorted(CAPABILITY_BITS)), min_size=1))
def test_every_set_of_capabilities_is_its_own_mask(capabilities: set[str]) -> None:
    mask = sum(CAPABILITY_BITS[name] for name in capabilities)
    check_header(parse_header(make_header(mask=mask)), 1000, "1.7.1.116", capabilities)


def test_a_build_number_above_255_is_compared_by_its_low_byte() -> None:
    check_header(parse_header(make_header(version=b"\x01\x08\x00\x05")), 1000, "1.8.0.261", ("8.0", "8.6"))


@pytest.mark.parametrize(
    ("size", "version", "capabilities", "message"),
    [
        (999, "1.7.1.116", ("8.0", "8.6"), "999 bytes, its header says 1000"),
        (1000, "1.8.0.1", ("8.0", "8.6"), r"TensorRT-RTX 1\.7\.1\.116 built it, but 1\.8\.0\.1"),
        (1000, "1.7.1.116", ("7.5", "8.6"), r"built for 8\.0, 8\.6, asked for was 7\.5, 8\.6"),
    ],
    ids=["size", "version", "capabilities"],
)
def test_a_header_that_differs_from_the_order_is_refused(
    size: int, version: str, capabilities: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        check_header(parse_header(make_header()), size, version, capabilities)


def test_capabilities_that_this_version_does_not_know_are_shown_as_bits() -> None:
    with pytest.raises(ExportError, match=r"8\.0, unknown bits 0x100"):
        check_header(parse_header(make_header(mask=0x102)), 1000, "1.7.1.116", ("8.0",))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    if data[:4] != b"vtrt":
        with pytest.raises(ExportError):
            parse_header(data)


def test_capabilities_are_put_in_order_each_once() -> None:
    assert check_capabilities(["12.0", "7.5", "8.6", "7.5"]) == ("7.5", "8.6", "12.0")


@pytest.mark.parametrize("name", ["8.7", "9.0", "86", "sm_86", ""])
def test_an_unknown_capability_lists_the_known_ones(name: str) -> None:
    with pytest.raises(SpecError, match=r"it knows 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        check_capabilities(["8.0", name])
