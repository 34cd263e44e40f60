"""Writing a bundle: the files that builders left in a directory get their hashes, bill of materials and manifest."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from unetx_opt.bundle.archive import write_archive
from unetx_opt.bundle.contents import hash_stream
from unetx_opt.bundle.directory import DirectoryContents
from unetx_opt.bundle.manifest import (
    CHECKSUM_NAME,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
    serialize_manifest,
    with_files,
)
from unetx_opt.bundle.parts import FileRecord
from unetx_opt.bundle.sbom import SBOM_NAME, bill_of_materials
from unetx_opt.bundle.sign import SIGNATURE_NAME, Signer
from unetx_opt.errors import BundleError, UnetxError
from unetx_opt.files import scratch_directory, staged_directory
from unetx_opt.specs import Host

__all__ = ["build_time", "command_line", "host_summary", "staged_bundle", "write_bundle"]

_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


@contextmanager
def staged_bundle(path: Path, *, archive: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Yield a directory to fill and to complete with `write_bundle`; on success the bundle appears at `path`.

    Parameters
    ----------
    path : pathlib.Path
        Where the bundle shall be; whatever goes wrong, a partial one never is.
    archive : bool
        One file (by custom ``.unetx``) instead of a directory.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    UnetxError
        `path` exists and `overwrite` is False, found before any work is done; or the disk is full.
    BundleError
        The directory was not completed, or does not fit an archive.
    """
    if not archive:
        with staged_directory(path, overwrite=overwrite) as directory:
            yield directory
            _expect_manifest(directory)
        return
    if not overwrite and os.path.lexists(path):
        raise UnetxError(f"{path} already exists: choose another output, or pass --overwrite to replace it")
    with scratch_directory(path) as directory:
        yield directory
        _expect_manifest(directory)
        write_archive(DirectoryContents(directory), path, overwrite=overwrite)


def write_bundle(directory: Path, manifest: Manifest, signer: Signer | None = None) -> Manifest:
    """Complete a directory of engines to a bundle.

    Parameters
    ----------
    directory : pathlib.Path
        Holds every file of the bundle but those that are made here: the bill of materials (``sbom.cdx.json``), the
        manifest, its checksum and its signature.
    manifest : Manifest
        Without ``files`` and ``sbom``.
    signer : Signer, optional
        Signs the manifest; without one the bundle has no signature.

    Returns
    -------
    Manifest
        The manifest as written.

    Raises
    ------
    BundleError
        The directory holds what a bundle cannot hold, or lacks a file that the manifest uses.
    """
    contents = DirectoryContents(directory)
    for problem in contents.problems():
        raise BundleError(f"{directory}: {problem}")
    for name in (MANIFEST_NAME, CHECKSUM_NAME, SIGNATURE_NAME, SBOM_NAME):
        if name in contents.sizes():
            raise BundleError(f"{directory} already holds {name}: write into an empty directory")
    files = {}
    for name in contents.sizes():
        with contents.stream(name) as stream:
            files[name] = _record(*hash_stream(stream))
    sbom = bill_of_materials(with_files(manifest, files, None))
    files[SBOM_NAME] = _record(hashlib.sha256(sbom).hexdigest(), len(sbom))
    complete = with_files(manifest, files, SBOM_NAME, None if signer is None else signer.key.sha256)
    data = serialize_manifest(complete)
    if parse_manifest(data) != complete:
        raise BundleError(f"{MANIFEST_NAME} does not read back as it was written: report this as a defect")
    Path(directory, SBOM_NAME).write_bytes(sbom)
    Path(directory, MANIFEST_NAME).write_bytes(data)
    checksum = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n"
    Path(directory, CHECKSUM_NAME).write_bytes(checksum.encode("ascii"))
    if signer is not None:
        Path(directory, SIGNATURE_NAME).write_bytes(signer.sign(data))
    return complete


def build_time() -> str:
    """Return the time to record for a build, in UTC: ``SOURCE_DATE_EPOCH`` where it is set, else now.

    Raises
    ------
    BundleError
        ``SOURCE_DATE_EPOCH`` is not a number of seconds since 1970.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        if epoch is None:
            moment = datetime.datetime.now(datetime.UTC)
        else:
            moment = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise BundleError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, expected a number of seconds since 1970: correct or unset it"
        ) from None
    return moment.strftime(_TIME_FORMAT)


def command_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without the user's directories: of each path only the file name stays."""
    return tuple(_without_directories(argument) for argument in arguments)


def host_summary(host: Host) -> dict[str, str]:
    """Return what the manifest says about the machine that built the bundle: no name, no user, no path."""
    facts = {
        "system": host.system,
        "machine": host.machine,
        "gpu": host.gpu,
        "compute_capability": host.compute_capability,
        "cuda_driver": host.driver,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _without_directories(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return _last_part(option) + equals + _last_part(value)


def _last_part(path: str) -> str:
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    return parts[-1] if parts else ""


def _expect_manifest(directory: Path) -> None:
    if not Path(directory, CHECKSUM_NAME).is_file():
        raise BundleError(f"{directory} was not completed to a bundle: call write_bundle first")


def _record(sha256: str, size: int) -> FileRecord:
    return FileRecord(sha256=sha256, size=size)
