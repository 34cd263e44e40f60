"""Running the builder process: a time limit, a memory limit, and one clear line when it breaks."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import unetx_exporters
import unetx_opt
from unetx_exporters.tensorrt.builder_process import MODULE, ORDER_NAME, RESULT_NAME, order_to_json
from unetx_exporters.tensorrt.plan import PlanOrder
from unetx_opt.errors import ExportError

__all__ = ["BuilderLimits", "BuilderResult", "builder_environment", "run_builder"]

LOG_NAME: Final = "builder.log"
COMMAND: Final = (sys.executable, "-P", "-m", MODULE)

_POLL_S: Final = 0.05
_MIB: Final = 1024**2

# Variables that a driver, a loader or a temporary file depends on; all others stay behind, because the size of
# the environment moves addresses, and with them the bytes of the plan.
_KEPT_VARIABLES: Final = frozenset(
    {"APPDATA", "COMSPEC", "HOME", "LOCALAPPDATA", "PATH", "PATHEXT", "PYTHONPATH", "SYSTEMDRIVE", "SYSTEMROOT"}
    | {"TEMP", "TMP", "TMPDIR", "USERPROFILE", "WINDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
)
_KEPT_PREFIXES: Final = ("CUDA_", "NVIDIA_")


@dataclass(frozen=True, slots=True)
class BuilderLimits:
    """When a builder process is ended.

    Attributes
    ----------
    timeout_s : float
        Wall-clock seconds.
    memory_mib : int
        Resident memory in MiB, on Linux and Windows.
    """

    timeout_s: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class BuilderResult:
    """What the builder process says about itself.

    Attributes
    ----------
    version : str
        Version of the package that built the plan.
    reports : tuple of (str, str)
        See `BuiltPlan.reports`.
    seconds : float
        What the build took, without the start of the process.
    """

    version: str
    reports: tuple[tuple[str, str], ...]
    seconds: float


def run_builder(
    order: PlanOrder, directory: Path, limits: BuilderLimits, command: Sequence[str] = COMMAND
) -> BuilderResult:
    """Build one plan in a process of its own.

    Parameters
    ----------
    order : PlanOrder
        Its file names are relative to `directory`.
    directory : pathlib.Path
        Working directory of the process; holds the graph.
    limits : BuilderLimits
        When to end it.
    command : sequence of str
        What to run.

    Raises
    ------
    ExportError
        The builder refuses the graph, crashes, is killed, or reaches a limit.
    """
    (directory / ORDER_NAME).write_text(order_to_json(order), encoding="utf-8")
    log = directory / LOG_NAME
    started = time.monotonic()
    with log.open("wb") as output, _started(command, directory, output) as process:
        reason = _wait(process, started, limits)
    what = f"building the {order.package} engine"
    if reason is not None:
        raise ExportError(f"{what}: the builder process {reason}; {_last_error(log)}")
    result = _read_result(directory / RESULT_NAME)
    if result is None:
        end = _describe_end(process.returncode)
        raise ExportError(f"{what}: the builder process {end}; {_last_error(log)}; try another graph or version")
    if "error" in result:
        raise ExportError(str(result["error"]))
    return BuilderResult(
        version=result["version"],
        reports=tuple((form, text) for form, text in result["reports"]),
        seconds=result["seconds"],
    )


def builder_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose the environment variables of the builder process.

    Parameters
    ----------
    environment : mapping of str to str
        Those of this process.

    Returns
    -------
    dict of str to str
        What drivers and loaders need, a fixed hash seed, and where this project's packages are imported from.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name.upper() in _KEPT_VARIABLES or name.upper().startswith(_KEPT_PREFIXES)
    }
    roots = [str(Path(package.__path__[0]).parent) for package in (unetx_exporters, unetx_opt)]
    given = [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
    return {**kept, "PYTHONPATH": os.pathsep.join([*given, *roots]), "PYTHONHASHSEED": "0"}


@contextlib.contextmanager
def _started(command: Sequence[str], directory: Path, output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process, and see to it that it is gone whatever happens here."""
    process = subprocess.Popen(
        list(command),
        cwd=directory,
        env=builder_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], started: float, limits: BuilderLimits) -> str | None:
    """Wait for the end of the process; the reason, where a limit was reached first."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            return None
        if time.monotonic() - started > limits.timeout_s:
            return f"was ended after {limits.timeout_s:g} s: raise the option tensorrt_timeout_s"
        if _resident_bytes(process.pid) > limits.memory_mib * _MIB:
            return f"was ended at {limits.memory_mib} MiB of memory: raise the option tensorrt_memory_mib"


def _read_result(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _last_error(log: Path) -> str:
    """Quote what the package said last: the errors that it logged, or else the end of its output."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (errors or lines)[-1:]
    return f"the last it said: {last[0][:400]}" if last else "it said nothing"


def _describe_end(code: int) -> str:
    if code >= 0:  # Windows reports a crash as a large code
        return f"ended with code {code if code < 256 else hex(code)}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _resident_bytes_linux(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # it has just ended
        return 0


def _resident_bytes_windows(pid: int) -> int:
    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t),
            ("quotas", ctypes.c_size_t * 4),
            ("page_file", ctypes.c_size_t),
            ("peak_page_file", ctypes.c_size_t),
        )

    kernel = ctypes.CDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(0x1000, 0, pid))  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return 0
    counters = Counters(size=ctypes.sizeof(Counters))
    answered = kernel.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.size)
    kernel.CloseHandle(handle)
    return int(counters.working_set) if answered else 0


_RESIDENT_BYTES: Final = MappingProxyType({"linux": _resident_bytes_linux, "win32": _resident_bytes_windows})


def _resident_bytes(pid: int) -> int:
    measure = _RESIDENT_BYTES.get(sys.platform)
    return 0 if measure is None else measure(pid)
