"""What the first image costs: one engine opened and run once in a process of its own, with its memory.

    python -m unetx_bench.coldstart BUNDLE ENGINE

prints one JSON object. A process of its own is the only place where the peak of the resident memory, the time to
load, and the first inference belong to one engine; `measure_cold_start` runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from unetx_bench.errors import MeasurementError

__all__ = ["ColdStart", "main", "measure_cold_start"]

_LIMIT_S: Final = 600
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One engine in a fresh process.

    Attributes
    ----------
    import_ms : float
        Importing the runtime.
    load_ms : float
        From verified bytes to a loaded engine, its package's import included.
    first_ms, second_ms : float
        First and second inference.
    host_peak_bytes : int or None
        Most resident memory that the process ever had; None where the system does not tell.
    device_bytes : int or None
        Memory of the GPU in use after the second inference less that before loading, as the driver counts it for all
        processes; None without a GPU.
    """

    import_ms: float
    load_ms: float
    first_ms: float
    second_ms: float
    host_peak_bytes: int | None
    device_bytes: int | None


def measure_cold_start(bundle: Path, engine: str, threads: int | None = None) -> ColdStart:
    """Open one engine of a bundle in a new process and run it twice.

    Parameters
    ----------
    bundle : pathlib.Path
        The bundle.
    engine : str
        Name of the engine within it, as `unetx_bench.bundles.engine_names` gives it.
    threads : int, optional
        CPU threads of one inference.

    Raises
    ------
    MeasurementError
        The process failed; with its last line.
    """
    command = [sys.executable, "-m", "unetx_bench.coldstart", str(bundle), engine]
    command += [] if threads is None else [str(threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{engine} did not run twice within {_LIMIT_S} s in a process of its own") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise MeasurementError(f"{engine} failed in a process of its own (exit {done.returncode}): {last.strip()}")
    return ColdStart(**json.loads(lines[-1]))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("engine")
@click.argument("threads", required=False, type=int)
def main(bundle: Path, engine: str, threads: int | None) -> None:
    """Open one engine of BUNDLE, run it twice, and print what it cost."""
    click.echo(json.dumps(asdict(_run(bundle, engine, threads))))


def _run(path: Path, engine: str, threads: int | None) -> ColdStart:
    started = time.perf_counter()
    from unetx_bench.bundles import engine_names
    from unetx_opt.bundle.open import open_verified
    from unetx_opt.runtime.sessions.base import OpenRequest
    from unetx_opt.runtime.sessions.table import SESSIONS

    imported = time.perf_counter()
    device_before = _device_bytes()
    with open_verified(path) as bundle:
        records = tuple(row.record for row in bundle.manifest.engines)
        named = dict(zip(engine_names(records), records, strict=True))
        if engine not in named:
            raise MeasurementError(f"{path.name} has no engine {engine!r}, it holds {', '.join(named)}")
        record = named[engine]
        contract = bundle.manifest.input
        files = {name: bundle.read(name) for name in record.files}
    image = np.full((1, contract.channels, contract.height, contract.width), contract.padding_value, np.float32)
    moments = [time.perf_counter()]
    with SESSIONS[record.target].open(OpenRequest(record, files.__getitem__, threads)) as session:
        moments.append(time.perf_counter())
        for _ in range(2):
            session.infer(image)
            moments.append(time.perf_counter())
        device_after = _device_bytes()
    load_ms, first_ms, second_ms = (float(took) * 1e3 for took in np.diff(moments))
    device = None if device_before is None or device_after is None else max(0, device_after - device_before)
    return ColdStart((imported - started) * 1e3, load_ms, first_ms, second_ms, _host_peak_bytes(), device)


def _host_peak_bytes() -> int | None:
    # Linux's getrusage would give the peak of the process that started this one, where that was larger.
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_bytes() -> int | None:
    from unetx_bench.nvml import open_nvml, read_gpu

    with open_nvml() as (nvml, _):
        gpu: Any = None if nvml is None else read_gpu(nvml)
        return None if gpu is None else gpu.memory_used_bytes


if __name__ == "__main__":
    main()
