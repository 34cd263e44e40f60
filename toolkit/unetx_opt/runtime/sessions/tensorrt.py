"""TensorRT and TensorRT-RTX engines on the first CUDA device: one session for both packages."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from unetx_opt.errors import EngineError
from unetx_opt.optional import require
from unetx_opt.runtime.cuda_memory import load_driver
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.runtime.sessions.tensorrt_engine import TensorRTSession
from unetx_opt.specs import EngineRecord, Host

__all__ = [
    "MODULES",
    "open_tensorrt",
    "version_numbers",
    "why_not_tensorrt",
    "why_not_tensorrt_rtx",
]

#: Target -> the package that runs its engines.
MODULES: Final[Mapping[str, str]] = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})

_EXTRAS: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}


def why_not_tensorrt(host: Host, record: EngineRecord | None = None) -> str | None:
    """Say why a TensorRT engine cannot run on a machine."""
    reason = _why_not_device(host, "tensorrt") or _why_not_engine(host, "tensorrt", record)
    if reason is None and record is not None:
        built_on = record.settings.get("platform")
        if built_on not in (None, f"{host.system}-{host.machine}"):
            return (
                f"engine built on {built_on}, this is {host.system}-{host.machine}, and TensorRT engines do not "
                "move between systems: rebuild it here, or use the target tensorrt-rtx"
            )
    return reason


def why_not_tensorrt_rtx(host: Host, record: EngineRecord | None = None) -> str | None:
    """Say why a TensorRT-RTX engine cannot run on a machine."""
    return _why_not_device(host, "tensorrt-rtx") or _why_not_engine(host, "tensorrt-rtx", record)


def open_tensorrt(request: OpenRequest) -> TensorRTSession:
    """Load a plan from its verified bytes onto the first CUDA device.

    Parameters
    ----------
    request : OpenRequest
        A record of the target tensorrt or tensorrt-rtx with one file.

    Raises
    ------
    EngineError
        There is no usable device, or the package refuses the plan; with the last error that it reported.
    MissingPackageError
        The package is not installed.
    """
    record = request.record
    if record.target not in MODULES:
        raise EngineError(f"{record.target} is no target of TensorRT, expected one of {', '.join(MODULES)}")
    if len(record.files) != 1:
        raise EngineError(f"{record.target} has {len(record.files)} files, expected one plan")
    trt = require(MODULES[record.target], purpose=f"running a {record.target} engine")
    return TensorRTSession(trt, load_driver(), record, request.read(record.files[0]))


def version_numbers(version: str) -> tuple[int, ...]:
    """Read the numbers that a version begins with; empty where it begins with none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _why_not_device(host: Host, target: str) -> str | None:
    module = MODULES[target]
    if module not in host.packages:
        return f"the package {module} is not installed: run pip install 'unetx-opt[{_EXTRAS[target]}]'"
    if host.compute_capability is None:
        return "there is no CUDA device, or its driver cannot be used"
    needed = _cuda_major(module)
    offered = version_numbers(host.driver or "")
    if needed is not None and offered and offered[0] < needed:
        return (
            f"the installed {module} needs a driver for CUDA {needed}, this one offers {host.driver}: "
            "update the NVIDIA driver"
        )
    return None


def _why_not_engine(host: Host, target: str, record: EngineRecord | None) -> str | None:
    if record is None:
        return None
    module = MODULES[target]
    installed, built = host.packages.get(module), record.tools.get(module)
    if built is not None and installed not in (built, "unknown"):
        return (
            f"engine built by {module} {built}, installed is {installed}, which cannot read it: "
            f"run pip install {module}=={built}, or rebuild the bundle"
        )
    if host.compute_capability not in record.compute_capabilities:
        built_for = ", ".join(f"sm_{name.replace('.', '')}" for name in record.compute_capabilities)
        return (
            f"engine built for {built_for or 'no GPU'}, this GPU is "
            f"sm_{str(host.compute_capability).replace('.', '')}: "
            f"rebuild with --compute-capability {host.compute_capability}"
        )
    return None


def _cuda_major(module: str) -> int | None:
    """CUDA version that a package's libraries were made for: its wheels carry it in their name."""
    for major in range(11, 20):
        try:
            importlib.metadata.distribution(f"{module}_cu{major}")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major
    return None
