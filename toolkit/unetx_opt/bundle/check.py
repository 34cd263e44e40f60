"""The full report on a bundle: every problem in it, where opening stops at the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetx_opt.bundle.contents import Contents
from unetx_opt.bundle.manifest import Manifest
from unetx_opt.bundle.open import StoredManifest, file_problems, open_contents, read_manifest
from unetx_opt.bundle.sign import VerifyingKey
from unetx_opt.errors import BundleError

__all__ = ["MAX_PROBLEMS", "BundleCheck", "check_bundle"]

MAX_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What a check of every byte found.

    Attributes
    ----------
    kind : str or None
        "directory" or "archive"; None where nothing could be opened.
    files, size : int
        Number of files and bytes in total that are stored.
    manifest : Manifest or None
        None where it could not be read.
    problems : tuple of str
        One line each, at most `MAX_PROBLEMS`; empty for a sound bundle.
    signing_key_sha256 : str or None
        The key whose signature the bundle carries.
    signature_proven : bool
        Whether that signature was checked against a key that is trusted.
    """

    kind: str | None
    files: int
    size: int
    manifest: Manifest | None
    problems: tuple[str, ...]
    signing_key_sha256: str | None = None
    signature_proven: bool = False


def check_bundle(path: Path, trusted: Sequence[VerifyingKey] | None = None) -> BundleCheck:
    """Check every byte of a bundle against its manifest, and report all that is wrong.

    Parameters
    ----------
    path : pathlib.Path
        A bundle directory, or an archive.
    trusted : sequence of VerifyingKey, optional
        Keys of which one must have signed it; None demands no signature.
    """
    try:
        contents = open_contents(path)
    except BundleError as error:
        return BundleCheck(None, 0, 0, None, (str(error),))
    try:
        problems = list(contents.problems())
        try:
            sizes = contents.sizes()
            stored = read_manifest(contents)
        except BundleError as error:
            return BundleCheck(contents.kind, 0, 0, None, (*problems, _reason(error, path)))
        unproven = [] if trusted is None else list(_unproven(stored, trusted))
        problems.extend(unproven)
        problems.extend(_remaining(contents, stored.manifest, MAX_PROBLEMS - len(problems)))
        return BundleCheck(
            contents.kind,
            len(sizes),
            sum(sizes.values()),
            stored.manifest,
            tuple(problems),
            stored.manifest.signing_key_sha256,
            signature_proven=trusted is not None and not unproven,
        )
    finally:
        contents.close()


def _unproven(stored: StoredManifest, trusted: Sequence[VerifyingKey]) -> Iterator[str]:
    try:
        stored.demand(trusted)
    except BundleError as error:
        yield str(error)


def _remaining(contents: Contents, manifest: Manifest, limit: int) -> Iterator[str]:
    try:
        for _, problem in zip(range(limit), file_problems(contents, manifest), strict=False):
            yield problem
    except BundleError as error:  # a file that cannot be read
        yield _reason(error, contents.path)


def _reason(error: BundleError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
