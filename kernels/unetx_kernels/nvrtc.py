"""Compiling a .cu file without a CUDA toolkit: NVIDIA's run-time compiler as a library."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any, Final

from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation, packaged_roots

__all__ = ["compile_at_run_time", "include_folders", "nvrtc_version", "why_not_nvrtc"]

_MODULE: Final = "cuda.bindings.nvrtc"
_INSTALL: Final = "run pip install cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl"
_WITNESS: Final = "cuda_fp16.h"


def why_not_nvrtc() -> str | None:
    """Return which part of NVRTC lacks here, or None where it can compile."""
    try:
        importlib.import_module(_MODULE).nvrtcVersion()
    except ImportError:
        return f"no cuda-bindings for NVRTC: {_INSTALL}"
    except RuntimeError as error:  # what the bindings raise where the library itself is not found
        return f"no NVRTC library ({str(error).splitlines()[0]}): {_INSTALL}"
    return None if include_folders() else f"no {_WITNESS} for NVRTC: {_INSTALL}"


def nvrtc_version() -> str:
    """Return the release of NVRTC, "13.5"."""
    _, major, minor = importlib.import_module(_MODULE).nvrtcVersion()
    return f"{major}.{minor}"


def include_folders() -> list[Path]:
    """Return the folders of CUDA's headers: of NVIDIA's packages, of CUDA_HOME, or beside an nvcc on PATH."""
    roots = packaged_roots()
    if os.environ.get("CUDA_HOME"):
        roots.append(Path(os.environ["CUDA_HOME"]))
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        roots.append(Path(nvcc).resolve().parents[1])
    found = next((root / "include" for root in roots if (root / "include" / _WITNESS).is_file()), None)
    return [] if found is None else [found, *([found / "cccl"] if (found / "cccl").is_dir() else [])]


def compile_at_run_time(compilation: Compilation) -> bytes:
    """Compile one file.

    Returns
    -------
    bytes
        The cubin, or PTX for an architecture "compute_..".

    Raises
    ------
    KernelError
        NVRTC lacks, or does not take the source or the architecture.
    """
    reason = why_not_nvrtc()
    if reason is not None:
        raise KernelError(reason)
    nvrtc = importlib.import_module(_MODULE)
    headers = [(path.read_bytes(), path.name.encode()) for path in compilation.headers]
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            compilation.source.read_bytes(),
            compilation.source.name.encode(),
            len(headers),
            [text for text, _ in headers],
            [name for _, name in headers],
        )
    )
    try:
        options = [option.encode() for option in _options(compilation)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            raise KernelError(f"NVRTC cannot compile {compilation.source.name}: {_first_error(nvrtc, program)}")
        return _read(nvrtc, program, "PTX" if compilation.architecture.startswith("compute_") else "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _options(compilation: Compilation) -> list[str]:
    return [
        "-std=c++17",
        f"-arch={compilation.architecture}",
        *(f"-I{folder}" for folder in (*include_folders(), compilation.source.parent)),
        *(f"-D{name}={value}" for name, value in sorted(compilation.definitions.items())),
    ]


def _first_error(nvrtc: Any, program: Any) -> str:
    log = _read(nvrtc, program, "ProgramLog").decode(errors="replace").splitlines()
    return next((line for line in log if "error" in line), log[0] if log else "no message")


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    size = _checked(getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    data = bytes(bytearray(size))  # the library writes into it
    _checked(getattr(nvrtc, f"nvrtcGet{what}")(program, data))
    return data if what == "CUBIN" else data.rstrip(b"\0")


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise KernelError(f"NVRTC failed: {status}")
    return values[0] if values else None
