"""Opening a bundle: every byte is checked before anything is used, and again when it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unetx_opt.bundle.archive import ArchiveContents
from unetx_opt.bundle.contents import Contents, Kind, hash_stream
from unetx_opt.bundle.directory import DirectoryContents
from unetx_opt.bundle.manifest import (
    CHECKSUM_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
)
from unetx_opt.bundle.sign import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    Signature,
    VerifyingKey,
    check_signature,
    parse_signature,
)
from unetx_opt.errors import BundleError
from unetx_opt.lifetime import Closing

__all__ = ["Bundle", "StoredManifest", "file_problems", "open_contents", "open_verified", "read_manifest"]


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it is stored, with what signs it.

    Attributes
    ----------
    manifest : Manifest
        What it says.
    data : bytes
        Its bytes.
    signature : Signature or None
        Of the key that the manifest names; not proven, see `demand`.
    """

    manifest: Manifest
    data: bytes
    signature: Signature | None

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of `data`."""
        return hashlib.sha256(self.data).hexdigest()

    def demand(self, trusted: Sequence[VerifyingKey]) -> VerifyingKey:
        """Return the one of some keys that signed the manifest, or raise `BundleError`."""
        return check_signature(self.data, self.signature, trusted)


class Bundle(Closing):
    """An opened bundle whose every byte was checked; a context manager.

    Attributes
    ----------
    path : pathlib.Path
        Where it is.
    kind : str
        "directory" or "archive".
    manifest : Manifest
        What it holds.
    manifest_sha256 : str
        SHA-256 of ``manifest.json``; as that holds the hash of every other file, it identifies the bundle.
    """

    def __init__(self, contents: Contents, manifest: Manifest, manifest_sha256: str) -> None:
        self._contents = contents
        self.path: Path = contents.path
        self.kind: Kind = contents.kind
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256

    @property
    def names(self) -> tuple[str, ...]:
        """The files that the manifest lists, sorted."""
        return tuple(sorted(self.manifest.files))

    def read(self, name: str) -> bytes:
        """Read a whole file.

        The bytes are hashed after they were read: what is returned is what was checked, even where the file
        was exchanged after the bundle was opened.

        Raises
        ------
        BundleError
            The bundle has no such file, or it was altered since the bundle was opened.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.path} has no file {name!r}; it has {', '.join(self.names)}")
        with _reading(self._contents, name) as stream:
            data = stream.read(record.size + 1)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(f"{self.path}: {name} was altered after the bundle was opened: get the bundle again")
        return data

    def close(self) -> None:
        """Let go of the path."""
        self._contents.close()


def open_verified(path: Path, trusted: Sequence[VerifyingKey] | None = None) -> Bundle:
    """Open a bundle after checking every byte of it, in constant memory.

    Parameters
    ----------
    path : pathlib.Path
        A bundle directory, or an archive.
    trusted : sequence of VerifyingKey, optional
        Keys of which one must have signed it; None opens unsigned bundles too.

    Raises
    ------
    BundleError
        There is no bundle; a file is missing, altered, cut, or one that the manifest does not list; a link or
        a special file; a name that is unsafe or not portable; a manifest that is altered, malformed, too large
        or of another schema version; a signature that was taken away, or is not one of the keys demanded.
    """
    contents = open_contents(path)
    try:
        for problem in contents.problems():
            raise BundleError(f"{path}: {problem}")
        stored = read_manifest(contents)
        if trusted is not None:
            _demand(path, stored, trusted)
        for problem in file_problems(contents, stored.manifest):
            raise BundleError(f"{path}: {problem}")
    except BaseException:
        contents.close()
        raise
    return Bundle(contents, stored.manifest, stored.sha256)


def open_contents(path: Path) -> Contents:
    """Open what is at a path, with nothing checked.

    Raises
    ------
    BundleError
        Nothing is there, or neither a directory nor a file, or it cannot be read.
    """
    try:
        if path.is_dir():
            return DirectoryContents(path)
        if path.is_file():
            return ArchiveContents(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    reason = "is neither a directory nor a file" if path.exists() else "does not exist"
    raise BundleError(f"{path} {reason}: expected a bundle, as unetx-opt build makes it")


def read_manifest(contents: Contents) -> StoredManifest:
    """Read the manifest and its signature, and check it against its checksum.

    Raises
    ------
    BundleError
        It is missing, altered or malformed, or the signature that it names is missing or another one.
    """
    data = _read_small(contents, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if _read_small(contents, CHECKSUM_NAME, 1024) != f"{digest}  {MANIFEST_NAME}\n".encode("ascii"):
        raise BundleError(
            f"{contents.path}: {MANIFEST_NAME} was altered: {CHECKSUM_NAME} does not hold its hash; get the "
            "bundle again"
        )
    manifest = parse_manifest(data, f"{contents.path}: {MANIFEST_NAME}")
    return StoredManifest(manifest, data, _read_signature(contents, manifest.signing_key_sha256))


def file_problems(contents: Contents, manifest: Manifest) -> Iterator[str]:
    """Compare every file with the manifest, reading each once, in constant memory.

    Yields
    ------
    str
        One line for each file that is missing, unlisted, of another size, or altered.
    """
    sizes = contents.sizes()
    for name in sorted(set(sizes) - set(manifest.files) - {MANIFEST_NAME, CHECKSUM_NAME, SIGNATURE_NAME}):
        yield f"{name} is not listed in the manifest"
    for name, record in sorted(manifest.files.items()):
        if name not in sizes:
            yield f"{name} is missing"
        elif sizes[name] != record.size:
            yield f"{name} has {sizes[name]} bytes, the manifest says {record.size}"
        else:
            with _reading(contents, name) as stream:
                found, _ = hash_stream(stream)
            if found != record.sha256:
                yield f"{name} was altered: its SHA-256 is {found}, the manifest says {record.sha256}"


def _read_signature(contents: Contents, key_sha256: str | None) -> Signature | None:
    is_there = SIGNATURE_NAME in contents.sizes()
    if key_sha256 is None:
        if is_there:
            raise BundleError(f"{contents.path}: {SIGNATURE_NAME} is there, but the manifest names no key")
        return None
    if not is_there:
        raise BundleError(
            f"{contents.path}: the key {key_sha256[:16]} signed the bundle, and {SIGNATURE_NAME} was taken away: "
            "get the bundle again"
        )
    data = _read_small(contents, SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    signature = parse_signature(data, f"{contents.path}: {SIGNATURE_NAME}")
    if signature.key_sha256 != key_sha256:
        raise BundleError(
            f"{contents.path}: {SIGNATURE_NAME} is of the key {signature.key_sha256[:16]}, the manifest names "
            f"{key_sha256[:16]}: get the bundle again"
        )
    return signature


def _demand(path: Path, stored: StoredManifest, trusted: Sequence[VerifyingKey]) -> None:
    try:
        stored.demand(trusted)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def _read_small(contents: Contents, name: str, limit: int) -> bytes:
    size = contents.sizes().get(name)
    if size is None:
        raise BundleError(f"{contents.path}: {name} is missing, so this is no complete bundle")
    if size > limit:
        raise BundleError(f"{contents.path}: {name} has {size} bytes, expected at most {limit}")
    with _reading(contents, name) as stream:
        return stream.read(size + 1)


@contextmanager
def _reading(contents: Contents, name: str) -> Iterator[BinaryIO]:
    try:
        with contents.stream(name) as stream:
            yield stream
    except OSError as error:
        raise BundleError(f"{contents.path}: {name} cannot be read: {error.strerror}") from error
