"""Whose bundles are accepted: the option that names public keys, for every command that opens a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from unetx_opt.bundle.sign import VerifyingKey

__all__ = ["PUBLIC_KEY_VARIABLE", "public_key_option", "read_trusted_keys"]

#: Environment variable with the paths of the keys, for a workstation that accepts nothing unsigned.
PUBLIC_KEY_VARIABLE: Final = "UNETX_OPT_PUBLIC_KEY"

public_key_option = click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    envvar=PUBLIC_KEY_VARIABLE,
    show_envvar=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Demand a signature of this key, or of one of several.",
)


def read_trusted_keys(paths: Sequence[Path]) -> tuple[VerifyingKey, ...] | None:
    """Read the keys that were named; None where none was, which demands no signature.

    Raises
    ------
    SpecError
        A file is no Ed25519 public key.
    """
    from unetx_opt.bundle.sign import read_verifying_key

    return tuple(read_verifying_key(path) for path in paths) or None
