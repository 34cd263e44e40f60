"""The header of a TensorRT-RTX plan: what kind of file it is, its size, and the GPUs that it was built for."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_opt.errors import ExportError, SpecError

__all__ = [
    "CAPABILITY_BITS",
    "HEADER_BYTES",
    "PlanHeader",
    "check_capabilities",
    "check_header",
    "parse_header",
]

#: CUDA compute capability -> its bit in the header. TensorRT-RTX names no other target.
CAPABILITY_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {"7.5": 1, "8.0": 2, "8.6": 4, "8.9": 8, "12.0": 16, "12.1": 32}
)

HEADER_BYTES: Final = 64
_MAGIC: Final = b"vtrt"
# Offset 0: magic; 0x10: bytes in the file; 0x18: version, one byte per number; 0x20: capability mask.
_LAYOUT: Final = struct.Struct("<4s12xQ4s4xI")


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What the first bytes of a plan say.

    Attributes
    ----------
    size_bytes : int
        Length of the whole file.
    version : str
        Version of TensorRT-RTX that built it, and the only one that can run it.
    capability_mask : int
        Sum of `CAPABILITY_BITS`.
    """

    size_bytes: int
    version: str
    capability_mask: int


def check_capabilities(capabilities: Iterable[str]) -> tuple[str, ...]:
    """Put compute capabilities in order, each once.

    Parameters
    ----------
    capabilities : iterable of str
        Such as "8.6".

    Raises
    ------
    SpecError
        TensorRT-RTX builds for no such capability; the known ones are listed.
    """
    asked = set(capabilities)
    unknown = sorted(asked - set(CAPABILITY_BITS))
    if unknown:
        raise SpecError(
            f"TensorRT-RTX does not build for compute capability {', '.join(unknown)}, "
            f"it knows {', '.join(CAPABILITY_BITS)}: choose --compute-capability among these"
        )
    return tuple(capability for capability in CAPABILITY_BITS if capability in asked)


def parse_header(data: bytes) -> PlanHeader:
    """Read the header of a plan.

    Parameters
    ----------
    data : bytes
        At least the first `HEADER_BYTES` of the file.

    Raises
    ------
    ExportError
        The file is too short, or does not begin as a plan does.
    """
    if len(data) < HEADER_BYTES:
        raise ExportError(f"the plan has {len(data)} bytes, expected at least {HEADER_BYTES}: build it again")
    magic, size_bytes, version, mask = _LAYOUT.unpack_from(data)
    if magic != _MAGIC:
        raise ExportError(f"the plan begins with {magic!r}, expected {_MAGIC!r}: it is no TensorRT-RTX engine")
    return PlanHeader(size_bytes, ".".join(str(number) for number in version), mask)


def check_header(header: PlanHeader, size_bytes: int, version: str, capabilities: Iterable[str]) -> None:
    """Compare a header with what was asked for and what was written.

    Parameters
    ----------
    header : PlanHeader
        As read from the plan.
    size_bytes : int
        Length of the file.
    version : str
        Version of the package that built it.
    capabilities : iterable of str
        Compute capabilities asked for.

    Raises
    ------
    ExportError
        They differ; the message says in what.
    """
    if header.size_bytes != size_bytes:
        raise ExportError(
            f"the plan has {size_bytes} bytes, its header says {header.size_bytes}: it is cut off, build it again"
        )
    # The header keeps the low byte of each number.
    if [int(number) for number in header.version.split(".")] != [int(n) % 256 for n in version.split(".")[:4]]:
        raise ExportError(f"the plan says that TensorRT-RTX {header.version} built it, but {version} is installed")
    asked = sum(CAPABILITY_BITS[capability] for capability in set(capabilities))
    if header.capability_mask != asked:
        raise ExportError(
            f"the plan is built for {_names(header.capability_mask)}, asked for was {_names(asked)}: "
            "build the capabilities apart, or update tensorrt-rtx"
        )


def _names(mask: int) -> str:
    known = [capability for capability, bit in CAPABILITY_BITS.items() if mask & bit]
    unknown = mask & ~sum(CAPABILITY_BITS.values())
    return ", ".join([*known, *([f"unknown bits {unknown:#x}"] if unknown else [])]) or "no capability"
