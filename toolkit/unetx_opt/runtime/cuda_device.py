"""The first CUDA device, asked of the driver itself: no CUDA toolkit, no Python package, no context."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CudaDevice", "probe_cuda_device"]

_LIBRARIES: Final = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
_NAME_BYTES: Final = 256
# CUdevice_attribute of the CUDA driver API.
_COMPUTE_CAPABILITY_MAJOR: Final = 75
_COMPUTE_CAPABILITY_MINOR: Final = 76


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """What the driver says about device 0.

    Attributes
    ----------
    driver : str or None
        Version of the CUDA driver API, "13.0"; None where no driver can be loaded.
    gpu : str or None
        Name of the device; None without one that works.
    compute_capability : str or None
        "8.6", or None likewise.
    """

    driver: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None


def probe_cuda_device(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDevice:
    """Ask the installed driver for its version and its first device.

    Parameters
    ----------
    load : callable
        Library name -> loaded library; `OSError` where there is none.

    Returns
    -------
    CudaDevice
        Empty fields for what is missing; a driver without a device still gives its version. Never raises.
    """
    library = _load_driver(load)
    if library is None:
        return CudaDevice()
    try:
        driver = _driver_version(library)
        if library.cuInit(0) != 0:
            return CudaDevice(driver=driver)
        return _first_device(library, driver)
    except (AttributeError, OSError, ValueError):
        # Something else under the driver's name: a stub without these functions.
        return CudaDevice()


def _load_driver(load: Callable[[str], Any]) -> Any | None:
    for name in _LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    return None


def _driver_version(library: Any) -> str | None:
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value <= 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _first_device(library: Any, driver: str | None) -> CudaDevice:
    count, device = ctypes.c_int(), ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        return CudaDevice(driver=driver)
    if library.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return CudaDevice(driver=driver)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    answers = (
        library.cuDeviceGetName(name, _NAME_BYTES, device),
        library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(answer != 0 for answer in answers):
        return CudaDevice(driver=driver)
    return CudaDevice(
        driver=driver,
        gpu=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
    )
