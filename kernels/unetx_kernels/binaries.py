"""The binary of a module: from the release's folder, from the cache on disk, or by a compiler of this host.

A release holds a fatbin for each module, with every kernel for every GPU. Without one, only the kernel that is wanted
is compiled, for the GPU that is there, and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation, compile_source, find_nvcc, nvcc_version
from unetx_kernels.nvrtc import compile_at_run_time, nvrtc_version, why_not_nvrtc

__all__ = [
    "COMPILERS",
    "RELEASED",
    "Compiler",
    "cached_binary",
    "default_cache",
    "module_binary",
    "released_name",
    "why_not_compile",
]

#: Where a release has its fatbins.
RELEASED: Final = Path(__file__).with_name("fatbins")
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Compiler:
    """One way from source to binary.

    Attributes
    ----------
    name : str
        For messages.
    why_not : callable
        Gives the reason why it cannot run here, or None.
    version : callable
        Gives its release.
    compile : callable
        Makes a cubin or PTX of a `Compilation`.
    """

    name: str
    why_not: Callable[[], str | None]
    version: Callable[[], str]
    compile: Callable[[Compilation], bytes]


def _why_not_nvcc() -> str | None:
    return None if find_nvcc() else "no nvcc: install a CUDA toolkit, or run pip install nvidia-cuda-nvcc"


def _nvcc() -> Path:
    found = find_nvcc()
    if found is None:
        raise KernelError(str(_why_not_nvcc()))
    return found


#: The first that runs is taken. NVRTC is a library and needs no C++ compiler on the host.
COMPILERS: Final = (
    Compiler("NVRTC", why_not_nvrtc, nvrtc_version, compile_at_run_time),
    Compiler("nvcc", _why_not_nvcc, lambda: nvcc_version(_nvcc()), lambda wanted: compile_source(_nvcc(), wanted)[0]),
)


def why_not_compile() -> str | None:
    """Return what lacks of every compiler, or None where one can run."""
    reasons = [compiler.why_not() for compiler in COMPILERS]
    return None if None in reasons else "; or ".join(str(reason) for reason in reasons)


def released_name(compilation: Compilation) -> str:
    """Return the name of a release's file; sources that have changed since do not find it."""
    return f"{compilation.source.stem}-{compilation.digest[:16]}.fatbin"


def default_cache() -> Path:
    """Return this user's folder for compiled kernels."""
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "unetx-opt" / "kernels"


def module_binary(
    whole: Compilation, narrow: Mapping[str, int], cache: Path, released: Path = RELEASED
) -> tuple[bytes, str]:
    """Return a binary that holds the kernels wanted, and where it is from.

    Parameters
    ----------
    whole : Compilation
        The module as a release has it.
    narrow : mapping of str to int
        Further macros that leave out the kernels which are not wanted, where it has to be compiled.
    cache : pathlib.Path
        Folder for what is compiled.
    released : pathlib.Path
        Folder of the release's fatbins.

    Raises
    ------
    KernelError
        There is no fatbin, and no compiler runs here; the message names what lacks of each.
    """
    kept = released / released_name(whole)
    if kept.is_file():
        return kept.read_bytes(), "release"
    reason = why_not_compile()
    if reason is not None:
        raise KernelError(f"no fatbin of {whole.source.name} in this installation, and no compiler: {reason}")
    compiler = next(row for row in COMPILERS if row.why_not() is None)
    wanted = dataclasses.replace(whole, definitions={**whole.definitions, **narrow})
    return cached_binary(compiler, wanted, cache), compiler.name


def cached_binary(compiler: Compiler, compilation: Compilation, cache: Path) -> bytes:
    """Return the binary from the cache, or compile it and keep it.

    Several processes may do so at once: each writes a file of its own beside the final one and renames it, so that
    a reader sees a whole file or none. The name of a file is the hash of what decides its content, and the file
    begins with the hash of its binary, so that one that was cut short or altered is made again.
    """
    decisive = "\0".join((compiler.name, compiler.version(), compilation.digest, *compilation.flags))
    kept = cache / f"{hashlib.sha256(decisive.encode()).hexdigest()}.bin"
    try:
        stored = kept.read_bytes()
    except OSError:
        stored = b""
    if len(stored) > _HASH_BYTES and hashlib.sha256(stored[_HASH_BYTES:]).digest() == stored[:_HASH_BYTES]:
        return stored[_HASH_BYTES:]
    binary = compiler.compile(compilation)
    cache.mkdir(parents=True, exist_ok=True)
    beside = cache / f".{kept.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        beside.write_bytes(hashlib.sha256(binary).digest() + binary)
        beside.replace(kept)
    finally:
        beside.unlink(missing_ok=True)
    return binary
