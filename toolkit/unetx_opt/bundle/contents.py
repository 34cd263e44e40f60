"""What is stored at a path, before anything about it is believed: a directory or one archive file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol

__all__ = ["MAX_ENTRIES", "Contents", "Kind", "hash_stream", "printable"]

#: How a bundle is stored.
Kind = Literal["directory", "archive"]
#: Files of a bundle at most; the manifest lists fewer.
MAX_ENTRIES: Final = 5000
_CHUNK_BYTES: Final = 1024**2


class Contents(Protocol):
    """The files at a path. It holds the path open where it can, and ends with `close`."""

    path: Path
    kind: Kind

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the container itself, one line each; asked before `sizes`."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Name and size in bytes of every file."""
        ...

    def stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file of `sizes`; the stream ends where the file ends."""
        ...

    def close(self) -> None:
        """Let go of the path."""
        ...


def hash_stream(stream: BinaryIO) -> tuple[str, int]:
    """Read a stream to its end in constant memory; return its SHA-256 in hexadecimal, and its length."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def printable(name: str) -> str:
    """Write an unchecked file name so that it cannot steer a terminal, at most 120 characters."""
    text = ascii(name)
    return text if len(text) <= 120 else f"{text[:117]}..."
