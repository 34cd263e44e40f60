"""A bundle as one file: a plain ZIP without compression that ends with the SHA-256 of everything before it.

Any ZIP program reads it. It is written in one way only (sorted names, no dates, no extra fields, no gaps), and
reading accepts nothing else: each header must be the very bytes that this module writes for its entry, so that
no two programs can see different files in it. The last 64 bytes, the end of the ZIP comment, are the SHA-256 of
all bytes before them in hexadecimal, so that no altered byte goes unseen, headers included.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from unetx_opt.bundle.contents import MAX_ENTRIES, Contents, Kind, printable
from unetx_opt.errors import BundleError
from unetx_opt.files import relative_name, staged_file

__all__ = ["ARCHIVE_SUFFIX", "ArchiveContents", "write_archive"]

ARCHIVE_SUFFIX: Final = ".unetx"

# ZIP file format, PKWARE APPNOTE 6.3.10: sections 4.3.7, 4.3.12 and 4.3.16.
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION: Final = 20
_UNIX: Final = 3 << 8
_DATE: Final = 1 << 5 | 1  # 1 January 1980, the first that the format knows
_FILE_MODE: Final = 0o100644 << 16

_HASH_MARK: Final = b"unetx-sha256:"
_HASH_BYTES: Final = 64
_TAIL_BYTES: Final = _END.size + len(_HASH_MARK) + _HASH_BYTES
_MAX_BYTES: Final = 2**32 - 2  # beyond it the format needs extra fields
_CHUNK_BYTES: Final = 1024**2


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    crc: int
    size: int
    offset: int

    def local_header(self) -> bytes:
        name = self.name.encode("ascii")
        return _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0) + name

    def central_header(self) -> bytes:
        name = self.name.encode("ascii")
        fixed = (_UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size)
        return _CENTRAL.pack(b"PK\1\2", *fixed, len(name), 0, 0, 0, 0, _FILE_MODE, self.offset) + name

    @property
    def data_offset(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        return self.data_offset + self.size


def _end_record(count: int, size: int, offset: int) -> bytes:
    comment = len(_HASH_MARK) + _HASH_BYTES
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, comment) + _HASH_MARK


def write_archive(contents: Contents, path: Path, *, overwrite: bool = False) -> None:
    """Write the files of a bundle as one archive, the same bytes for the same files.

    Parameters
    ----------
    contents : Contents
        An opened bundle's files.
    path : pathlib.Path
        The file to make, by custom with the suffix ``.unetx``; it appears whole or not at all.
    overwrite : bool
        Replace a file that is already there.

    Raises
    ------
    BundleError
        The files need 4 GiB or more, which a plain ZIP cannot hold.
    """
    sizes = contents.sizes()
    headers = sum(_LOCAL.size + _CENTRAL.size + 2 * len(name) for name in sizes)
    if sum(sizes.values()) + headers + _TAIL_BYTES > _MAX_BYTES:
        raise BundleError(f"the files of {path} need 4 GiB or more: write the bundle as a directory instead")
    with staged_file(path, overwrite=overwrite) as staging, staging.open("w+b") as file:
        entries = [_write_entry(file, contents, name) for name in sorted(sizes)]
        offset = file.tell()
        file.writelines(entry.central_header() for entry in entries)
        file.write(_end_record(len(entries), file.tell() - offset, offset))
        end = file.tell()
        file.write(_hash_start(file, end).encode("ascii"))


def _write_entry(file: BinaryIO, contents: Contents, name: str) -> _Entry:
    offset = file.tell()
    file.write(_Entry(name, 0, 0, offset).local_header())
    crc = size = 0
    with contents.stream(name) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
            file.write(chunk)
    if size != contents.sizes()[name]:
        raise BundleError(f"{contents.path}: {name} changed while it was read")
    entry = _Entry(name, crc, size, offset)
    file.seek(offset)
    file.write(entry.local_header())
    file.seek(entry.end)
    return entry


def _hash_start(file: BinaryIO | io.FileIO, length: int) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while length and (chunk := file.read(min(length, _CHUNK_BYTES))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()


class ArchiveContents:
    """The files in an archive, which stays open."""

    kind: Kind = "archive"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] | None = None
        self._file = path.open("rb", buffering=0)
        self._size = self._file.seek(0, io.SEEK_END)

    def problems(self) -> tuple[str, ...]:
        """Whether a byte of the archive was altered, read in constant memory."""
        if self._size < _TAIL_BYTES:
            return (f"it is no bundle: {self._size} bytes are fewer than the end of one",)
        tail = self._read(self._size - _HASH_BYTES - len(_HASH_MARK), len(_HASH_MARK) + _HASH_BYTES)
        if not tail.startswith(_HASH_MARK):
            return ("it is no bundle, or was cut or added to: it does not end with its hash",)
        with self._lock:
            found = _hash_start(self._file, self._size - _HASH_BYTES)
        if found.encode("ascii") != tail[len(_HASH_MARK) :]:
            return ("the archive was altered: its bytes do not have the hash at its end; get it again",)
        return ()

    def sizes(self) -> Mapping[str, int]:
        """Name and size in bytes of every entry.

        Raises
        ------
        BundleError
            The file is not a ZIP as `write_archive` writes it.
        """
        return {name: entry.size for name, entry in self._parsed().items()}

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open an entry; several may be read at the same time."""
        entry = self._parsed()[name]
        with io.BufferedReader(_Section(self._read_into, entry.data_offset, entry.size)) as stream:
            yield stream

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _parsed(self) -> dict[str, _Entry]:
        if self._entries is None:
            self._entries = {entry.name: entry for entry in self._read_entries()}
        return self._entries

    def _read(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self._read_into(offset, memoryview(data))])

    def _read_into(self, offset: int, view: memoryview) -> int:
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view) or 0

    def _read_entries(self) -> Iterator[_Entry]:
        start = self._size - _TAIL_BYTES
        if start < 0:
            raise self._malformed("it is too short")
        _, _, _, count, _, size, offset, _ = _END.unpack(self._read(start, _END.size))
        if self._read(start, _END.size + len(_HASH_MARK)) != _end_record(count, size, offset):
            raise self._malformed("its end record is not as this program writes it")
        if count > MAX_ENTRIES or offset + size != start or size > count * (_CENTRAL.size + 200):
            raise self._malformed("its directory has an impossible size")
        directory, position, end, last = self._read(offset, size), 0, 0, ""
        for _ in range(count):
            entry = self._parse_entry(directory[position : position + _CENTRAL.size + 200])
            position += len(entry.central_header())
            if entry.offset != end or entry.end > offset or entry.name <= last:
                raise self._malformed(f"{entry.name} is out of place")
            if self._read(entry.offset, _LOCAL.size + len(entry.name)) != entry.local_header():
                raise self._malformed(f"the header of {entry.name} is not as this program writes it")
            end, last = entry.end, entry.name
            yield entry
        if position != size or end != offset:
            raise self._malformed("it holds bytes that belong to no file")

    def _parse_entry(self, header: bytes) -> _Entry:
        if len(header) < _CENTRAL.size:
            raise self._malformed("its directory is cut")
        fields = _CENTRAL.unpack_from(header)
        name = header[_CENTRAL.size : _CENTRAL.size + fields[10]].decode("latin-1")
        if relative_name(name) is None:
            raise self._malformed(f"{printable(name)} is not a name that a bundle can hold")
        entry = _Entry(name, crc=fields[7], size=fields[8], offset=fields[16])
        if not header.startswith(entry.central_header()):
            raise self._malformed(f"the entry of {name} is not as this program writes it")
        return entry

    def _malformed(self, reason: str) -> BundleError:
        return BundleError(f"{self.path} is not a bundle archive: {reason}")


class _Section(io.RawIOBase):
    """A part of a file as a stream of its own; `read_into` fills a buffer from an offset."""

    def __init__(self, read_into: Callable[[int, memoryview], int], start: int, size: int) -> None:
        self._read_into = read_into
        self._position = start
        self._end = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._end - self._position]
        count = self._read_into(self._position, view)
        self._position += count
        return count
