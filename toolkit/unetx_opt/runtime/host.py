"""What this machine offers: CPU arithmetic, installed packages, the GPU and its driver."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_opt.optional import EXTRAS, find, require
from unetx_opt.runtime.cuda_device import probe_cuda_device
from unetx_opt.specs import Host

__all__ = ["cpu_features_of", "probe_host"]

_CPUINFO: Final = Path("/proc/cpuinfo")

#: Module -> the distributions that may have brought it, where they are not named like it.
_DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cuda": ("cuda-bindings", "cuda-python"),
        "cyclonedx": ("cyclonedx-python-lib",),
        "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
        "pydensecrf": ("pydensecrf2", "pydensecrf"),
        "pynvml": ("nvidia-ml-py", "pynvml"),
        "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt_rtx": ("tensorrt-rtx",),
    }
)

#: What OpenVINO calls a capability of the CPU -> the feature name for it in `Host.cpu_features`.
_CAPABILITIES: Final[Mapping[str, str]] = MappingProxyType({"BF16": "bf16", "FP16": "fp16"})


def probe_host() -> Host:
    """Look at this machine.

    Returns
    -------
    Host
        `cpu_features` are the flags of ``/proc/cpuinfo``; where there is no such file they are what OpenVINO
        reports ("bf16", "fp16"), or empty without it. Whatever cannot be found out is left empty: never raises.
    """
    device = probe_cuda_device()
    packages = _installed_packages()
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        cpu_features=_cpu_features(packages),
        packages=MappingProxyType(packages),
        onnxruntime_providers=_onnxruntime_providers(packages),
        compute_capability=device.compute_capability,
        gpu=device.gpu,
        driver=device.driver,
    )


def cpu_features_of(lines: Iterable[str]) -> frozenset[str]:
    """Read the flags of the first processor.

    Parameters
    ----------
    lines : iterable of str
        Lines of ``/proc/cpuinfo``: "flags : ..." on x86, "Features : ..." on Arm.

    Returns
    -------
    frozenset of str
        Lower-case flags; empty where no such line exists.
    """
    for line in lines:
        key, separator, value = line.partition(":")
        if separator and key.strip().lower() in ("flags", "features"):
            return frozenset(value.lower().split())
    return frozenset()


def _cpu_features(packages: Mapping[str, str]) -> frozenset[str]:
    if platform.system() == "Linux":
        try:
            with _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
                return cpu_features_of(lines)
        except OSError:
            return frozenset()
    if "openvino" not in packages:
        return frozenset()
    try:
        core = require("openvino", purpose="reading the CPU's capabilities").Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception:  # whatever a broken installation raises, the answer is the same: unknown
        return frozenset()
    return frozenset(feature for name, feature in _CAPABILITIES.items() if name in capabilities)


def _installed_packages() -> dict[str, str]:
    return {module: _version(module) for module in sorted(EXTRAS) if _is_installed(module)}


def _is_installed(module: str) -> bool:
    try:
        return find(module)
    except (ImportError, ValueError):  # a broken parent package, or a module without a spec
        return False


def _version(module: str) -> str:
    names = _DISTRIBUTIONS.get(module, (module,))
    # Of several distributions of one module, one over the other or in different places, what is imported counts.
    if len(names) > 1 and hasattr(sys.modules.get(module), "__version__"):
        return str(sys.modules[module].__version__)
    spec = importlib.util.find_spec(module)
    nearest = [] if spec is None or spec.origin is None else [str(Path(spec.origin).parents[1])]
    for folders in (nearest, sys.path):
        for name in names:
            found = next(iter(importlib.metadata.distributions(name=name, path=folders)), None)
            if found is not None:
                return found.version
    return "unknown"


def _onnxruntime_providers(packages: Mapping[str, str]) -> tuple[str, ...]:
    if "onnxruntime" not in packages:
        return ()
    try:
        onnxruntime = require("onnxruntime", purpose="listing its execution providers")
        return tuple(onnxruntime.get_available_providers())
    except Exception:  # see above
        return ()
