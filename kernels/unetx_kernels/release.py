"""The kernels of a release: one fatbin a module, for every GPU, and a record of what each kernel takes.

    python -m unetx_kernels.release -o kernels/unetx_kernels/fatbins

A fatbin holds machine code for every architecture of `ARCHITECTURES`, and PTX from which a driver makes code for any
later GPU. At run time `unetx_kernels.binaries.module_binary` looks into that folder first.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from unetx_kernels.attention_gate import strips
from unetx_kernels.attention_gate.launch import BACKWARD_SOURCE, FORWARD_SOURCE
from unetx_kernels.attention_gate.tiles import MATRIX_TILES, TILES, tile_macros
from unetx_kernels.binaries import released_name
from unetx_kernels.dense_crf.launch import SOURCE as CRF_SOURCE
from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import (
    ARCHITECTURES,
    Compilation,
    Resources,
    breach,
    compile_source,
    find_nvcc,
    nvcc_version,
    packaged_nvcc,
    read_resources,
)

__all__ = ["main", "release_modules", "write_fatbin"]

RECORD_NAME: Final = "resources.json"
_TIMEOUT_S: Final = 600


def release_modules() -> tuple[Compilation, ...]:
    """Return every module that a launcher asks for, without an architecture."""
    forward = [Compilation(FORWARD_SOURCE, "", tile_macros(tile)) for tile in dict.fromkeys((*TILES, *MATRIX_TILES))]
    backward = [Compilation(BACKWARD_SOURCE, "", tile_macros(tile)) for tile in TILES]
    return (*forward, *backward, Compilation(strips.SOURCE, "", strips.STRIP.macros), Compilation(CRF_SOURCE, ""))


def write_fatbin(
    nvcc: Path, module: Compilation, folder: Path, architectures: Sequence[str] = ARCHITECTURES, jobs: int = 1
) -> dict[str, dict[str, Resources]]:
    """Compile a module for every architecture and join the results in one file.

    Returns
    -------
    dict of str to dict of str to Resources
        Architecture to kernel to what it takes; PTX takes nothing yet.

    Raises
    ------
    KernelError
        nvcc fails, or lacks its program ``fatbinary``.
    """
    wanted = [Compilation(module.source, architecture, module.definitions) for architecture in architectures]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        compiled = list(pool.map(lambda one: compile_source(nvcc, one), wanted))
    with tempfile.TemporaryDirectory(prefix="unetx-fatbin-") as scratch:
        images = []
        for one, (code, _) in zip(wanted, compiled, strict=True):
            kind = "ptx" if one.architecture.startswith("compute_") else "elf"
            path = Path(scratch, f"{one.architecture}.{kind}")
            path.write_bytes(code)
            number = one.architecture.partition("_")[2]
            images.append(f"--image3=kind={kind},sm={number},file={path}")
        joined = Path(scratch, "joined.fatbin")
        _run([str(nvcc.resolve().with_name("fatbinary")), "-64", f"--create={joined}", *images])
        target = folder / released_name(module)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_bytes(joined.read_bytes())
        beside.replace(target)
    return {one.architecture: read_resources(report) for one, (_, report) in zip(wanted, compiled, strict=True)}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(
            f"{command[0]} does not run ({error}): install the whole package nvidia-cuda-nvcc"
        ) from error
    if done.returncode != 0:
        raise KernelError(f"{command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[:1]}")


def _record(taken: Mapping[str, Mapping[str, Resources]]) -> dict[str, dict[str, list[int]]]:
    """Architecture to kernel to registers a thread, shared bytes a block, spilled bytes."""
    return {
        architecture: {
            name: [resources.registers, resources.shared_bytes, resources.spill_bytes]
            for name, resources in sorted(kernels.items())
        }
        for architecture, kernels in taken.items()
        if kernels
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the fatbins and the record; 1 and one line on stderr where nvcc fails or a kernel breaks a bound."""
    parser = argparse.ArgumentParser(prog="python -m unetx_kernels.release", description="Compile every kernel.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the fatbins")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES, help="only this one; may repeat")
    given = parser.parse_args(arguments)
    nvcc = packaged_nvcc() or find_nvcc()
    try:
        if nvcc is None:
            raise KernelError("no nvcc: run pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
        given.output.mkdir(parents=True, exist_ok=True)
        modules: dict[str, dict[str, dict[str, list[int]]]] = {}
        for module in release_modules():
            taken = write_fatbin(nvcc, module, given.output, given.architecture or ARCHITECTURES, max(1, given.jobs))
            broken = [
                f"{where}: {said}"
                for where, found in taken.items()
                for said in map(breach, found, found.values())
                if said
            ]
            if broken:
                raise KernelError("; ".join(broken))
            modules[released_name(module)] = _record(taken)
            sys.stdout.write(f"{given.output / released_name(module)}\n")
        record = {"nvcc": nvcc_version(nvcc).strip().splitlines()[-1], "modules": modules}
        (given.output / RECORD_NAME).write_text(json.dumps(record) + "\n", encoding="utf-8")
    except KernelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
