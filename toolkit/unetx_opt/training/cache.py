"""Prepared images on disk, one file each, found by what they were made of.

The name of an entry is a SHA-256 over the bytes of image and mask, the label names, the size and the contract, so
that a changed image, size or version of this toolkit never meets an old entry, and runs share what they have in
common. An entry appears whole or not at all (written beside, fsynced, renamed): processes that write the same one
write the same bytes. What is read is checked; a damaged entry counts as absent and is made again.

An entry, little-endian:

====== ======================== ======================================================================
offset size                     content
====== ======================== ======================================================================
0      8                        ``UNETXPI1``
8      32                       key
40     4 x 4                    CRC-32 of the three parts; bytes of the third
56     4                        CRC-32 of everything before
60     2 S^2                    float16 (S, S), grey values
...    8 S^2                    float16 (2 S, 2 S), grey values
...    as in the header         uint8 (2 S, 2 S), labels, deflated
====== ======================== ======================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file
from unetx_opt.training.options import training_contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PreparedCache", "PreparedImage", "entry_key"]

# To be raised when the same image and mask are prepared into other numbers.
_PREPARATION: Final = 1
_MAGIC: Final = b"UNETXPI1"
_HEADER: Final = struct.Struct("<8s32s4I")
_CHECK: Final = struct.Struct("<I")
_GREY: Final = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image under the training contract at two resolutions, and its mask.

    Attributes
    ----------
    coarse_hw : ndarray
        float16 (S, S) in [0, 1]; half precision keeps 11 bits of grey, and twice as many images on a disk.
    fine_hw : ndarray
        float16 (2 S, 2 S).
    mask_hw : ndarray
        uint8 (2 S, 2 S).
    """

    coarse_hw: NDArray[np.float16]
    fine_hw: NDArray[np.float16]
    mask_hw: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PreparedCache:
    """A folder of prepared images; about 10 S^2 bytes each, 0.66 MB for S = 256.

    Attributes
    ----------
    folder : pathlib.Path
        Made when the first entry is written; entries lie in 256 folders in it.
    reserve_bytes : int
        Space that stays free on its disk. Without room an image is prepared each time it is wanted, which costs time
        and changes no result.
    """

    folder: Path
    reserve_bytes: int = 2**30

    def read(self, key: str, size_px: int, *, fine: bool) -> tuple[NDArray[np.float16], NDArray[np.uint8]] | None:
        """Return grey values at one resolution and labels; None where the entry is absent or damaged."""
        try:
            with self._path(key).open("rb") as file:
                return _read_entry(file, bytes.fromhex(key), size_px, fine=fine)
        except OSError:
            return None

    def write(self, key: str, prepared: PreparedImage) -> None:
        """Keep a prepared image, unless its disk is full.

        Raises
        ------
        UnetxError
            The folder cannot be written.
        """
        path, data = self._path(key), _to_bytes(bytes.fromhex(key), prepared)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < self.reserve_bytes + len(data):
                return
            write_file(path, data)
        except OSError as error:
            raise UnetxError(f"{path} cannot be written: {error.strerror}; choose another --cache") from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.prepared"


def entry_key(fingerprint: bytes, label_names: tuple[str, ...], size_px: int) -> str:
    """Name of an entry, 64 hexadecimal digits.

    Parameters
    ----------
    fingerprint : bytes
        Of image and mask, from `unetx_opt.training.labelled.identify`.
    label_names : tuple of str
        What the values of the mask mean.
    size_px : int
        S.
    """
    return hashlib.sha256(_preparation(label_names, size_px) + fingerprint).hexdigest()


@functools.lru_cache(maxsize=16)
def _preparation(label_names: tuple[str, ...], size_px: int) -> bytes:
    """Digest of what is done to every image of a run."""
    contracts = [dataclasses.asdict(training_contract(side)) for side in (size_px, 2 * size_px)]
    return hashlib.sha256(json.dumps([_PREPARATION, label_names, contracts]).encode()).digest()


def _to_bytes(key: bytes, prepared: PreparedImage) -> bytes:
    grey = [np.ascontiguousarray(part, dtype=_GREY).tobytes() for part in (prepared.coarse_hw, prepared.fine_hw)]
    # A mask is flat: it shrinks to a hundredth.
    parts = (*grey, zlib.compress(np.ascontiguousarray(prepared.mask_hw).tobytes(), 1))
    header = _HEADER.pack(_MAGIC, key, *(zlib.crc32(part) for part in parts), len(parts[2]))
    return b"".join((header, _CHECK.pack(zlib.crc32(header)), *parts))


def _read_entry(
    file: BinaryIO, key: bytes, size_px: int, *, fine: bool
) -> tuple[NDArray[np.float16], NDArray[np.uint8]] | None:
    head = file.read(_HEADER.size + _CHECK.size)
    if len(head) < _HEADER.size + _CHECK.size or _CHECK.unpack(head[_HEADER.size :])[0] != zlib.crc32(
        head[: _HEADER.size]
    ):
        return None
    magic, found_key, coarse_crc, fine_crc, mask_crc, mask_bytes = _HEADER.unpack(head[: _HEADER.size])
    if (magic, found_key) != (_MAGIC, key):
        return None
    coarse_bytes = _GREY.itemsize * size_px**2
    if not fine:
        grey = file.read(coarse_bytes)
        file.seek(4 * coarse_bytes, 1)
    else:
        file.seek(coarse_bytes, 1)
        grey = file.read(4 * coarse_bytes)
    packed = file.read(mask_bytes + 1)
    side = 2 * size_px if fine else size_px
    if len(grey) != _GREY.itemsize * side**2 or zlib.crc32(grey) != (fine_crc if fine else coarse_crc):
        return None
    if len(packed) != mask_bytes or zlib.crc32(packed) != mask_crc:
        return None
    # The sum fits, so these are the bytes that were written: they unpack.
    mask = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(2 * size_px, 2 * size_px)
    return np.frombuffer(grey, dtype=_GREY).reshape(side, side).astype(np.float16, copy=False), mask
