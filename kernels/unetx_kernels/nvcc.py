"""From a .cu file to a binary: finding nvcc, compiling, and what ptxas says of each kernel."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from unetx_kernels.errors import KernelError

__all__ = [
    "ARCHITECTURES",
    "Compilation",
    "Resources",
    "breach",
    "compile_source",
    "find_nvcc",
    "nvcc_version",
    "packaged_nvcc",
    "packaged_roots",
    "read_resources",
]

#: What a release holds; "compute_75" is PTX, from which a driver makes code for every later GPU.
ARCHITECTURES: Final = (
    *("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_121"),
    "compute_75",
)

_TIMEOUT_S: Final = 600
_NVCC: Final = "nvcc.exe" if os.name == "nt" else "nvcc"
_ENTRY: Final = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED: Final = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Compilation:
    """What decides a binary, besides the compiler itself.

    Attributes
    ----------
    source : pathlib.Path
        The .cu file; it includes CUDA's own headers and the .cuh files beside it.
    architecture : str
        "sm_86" gives a cubin, "compute_75" PTX.
    definitions : mapping of str to int
        Macros.
    """

    source: Path
    architecture: str
    definitions: Mapping[str, int] = field(default_factory=dict)

    @property
    def headers(self) -> tuple[Path, ...]:
        """The files beside the source that it may include."""
        return tuple(sorted(self.source.parent.glob("*.cuh")))

    @property
    def digest(self) -> str:
        """Hash of the source, its headers and its macros: what a binary for any GPU is made from."""
        parts = [path.read_bytes() for path in (self.source, *self.headers)]
        parts.append(repr(sorted(self.definitions.items())).encode())
        return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    @property
    def flags(self) -> tuple[str, ...]:
        """Arguments of nvcc without its input and output."""
        form = "-ptx" if self.architecture.startswith("compute_") else "-cubin"
        macros = tuple(f"-D{name}={value}" for name, value in sorted(self.definitions.items()))
        return ("-std=c++17", "-O3", form, f"-arch={self.architecture}", "-Xptxas=-v", *macros)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes of a multiprocessor: registers a thread, shared bytes a block, bytes spilled."""

    registers: int
    shared_bytes: int
    spill_bytes: int


def breach(kernel: str, taken: Resources) -> str | None:
    """Say which bound a kernel breaks, or None: nothing is spilled, and a multiprocessor of any GPU runs two blocks.

    65536 registers / 256 threads / 2 blocks are 128. The gate's gradients with window 7, which keep two sets of 49
    weights, and its widest fp16 kernels run one block. The fp16 kernels fill one buffer in shared memory while they
    work on another: 48 KiB is what a kernel has without asking; on Turing's 64 KiB one block runs where two do not
    fit.
    """
    wide = (kernel.endswith("_k7") and "gradient" in kernel) or kernel.startswith("neighbourhood_gate_f16")
    bounds = (("spilled bytes", taken.spill_bytes, 0), ("registers", taken.registers, 255 if wide else 128))
    most_shared = (48 if kernel.startswith("neighbourhood_gate_f16") else 24) * 1024
    for what, value, most in (*bounds, ("shared bytes", taken.shared_bytes, most_shared)):
        if value > most:
            return f"{kernel} takes {value} {what}, expected at most {most}"
    return None


def find_nvcc() -> Path | None:
    """Return nvcc from PATH, from CUDA_HOME, or from the package nvidia-cuda-nvcc; None without any."""
    on_path = shutil.which(_NVCC)
    if on_path is not None:
        return Path(on_path)
    named = os.environ.get("CUDA_HOME")
    if named and Path(named, "bin", _NVCC).is_file():
        return Path(named, "bin", _NVCC)
    return packaged_nvcc()


def packaged_nvcc() -> Path | None:
    """Return nvcc from the package nvidia-cuda-nvcc, or None without it."""
    return next((root / "bin" / _NVCC for root in packaged_roots() if (root / "bin" / _NVCC).is_file()), None)


def packaged_roots() -> list[Path]:
    """Return the folders of NVIDIA's packages that hold ``bin``, ``lib`` and ``include``, the newest first."""
    package = importlib.util.find_spec("nvidia")
    folders = (package.submodule_search_locations if package is not None else None) or []
    return [root for folder in folders for root in sorted(Path(folder).glob("cu[0-9]*"), reverse=True)]


def compile_source(nvcc: Path, compilation: Compilation) -> tuple[bytes, str]:
    """Compile one file.

    Returns
    -------
    tuple of bytes and str
        The cubin or PTX, and what ptxas said, for `read_resources`.

    Raises
    ------
    KernelError
        nvcc fails or takes over ten minutes.
    """
    with tempfile.TemporaryDirectory(prefix="unetx-nvcc-") as folder:
        output = Path(folder, "kernel.bin")
        command = [str(nvcc), *compilation.flags, "-o", str(output), str(compilation.source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{nvcc} does not run ({error}): mend the CUDA toolkit") from error
        if done.returncode != 0 or not output.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise KernelError(
                f"nvcc cannot compile {compilation.source.name} for {compilation.architecture}: {lines[0]}; "
                "use a CUDA toolkit that knows this architecture"
            )
        return output.read_bytes(), done.stderr + done.stdout


def read_resources(report: str) -> dict[str, Resources]:
    """Read the report of ``-Xptxas -v``: kernel name to what it takes."""
    resources = {}
    for match in _ENTRY.finditer(report):
        shared = _SHARED.search(match["rest"])
        resources[match["name"]] = Resources(
            registers=int(match["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
            spill_bytes=int(match["stores"]) + int(match["loads"]),
        )
    return resources


def nvcc_version(nvcc: Path) -> str:
    """Return what ``nvcc --version`` says; every release says something else."""
    done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    return done.stdout
