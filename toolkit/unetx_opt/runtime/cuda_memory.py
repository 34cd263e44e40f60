"""Memory, copies and a stream on the first CUDA device, by the driver alone: no toolkit, no Python package.

The device's primary context is used, the one that every CUDA runtime library in the process shares. Each call of
the driver is checked, and whatever was allocated is freed in `CudaStream.close`.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import EngineError
from unetx_opt.lifetime import Closing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CudaDriver", "CudaStream", "FloatBuffer", "load_driver"]

_LIBRARIES: Final = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")

_POINTER: Final = ctypes.POINTER(ctypes.c_void_p)
_DEVICE: Final = ctypes.c_int
_ADDRESS: Final = ctypes.c_uint64  # CUdeviceptr

#: Function of the CUDA driver API -> the types of its arguments. Each returns a CUresult.
_FUNCTIONS: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "cuInit": (ctypes.c_uint,),
        "cuDeviceGet": (ctypes.POINTER(_DEVICE), ctypes.c_int),
        "cuDevicePrimaryCtxRetain": (_POINTER, _DEVICE),
        "cuDevicePrimaryCtxRelease_v2": (_DEVICE,),
        "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
        "cuCtxPopCurrent_v2": (_POINTER,),
        "cuStreamCreate": (_POINTER, ctypes.c_uint),
        "cuStreamDestroy_v2": (ctypes.c_void_p,),
        "cuStreamSynchronize": (ctypes.c_void_p,),
        "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), ctypes.c_size_t),
        "cuMemFree_v2": (_ADDRESS,),
        "cuMemAllocHost_v2": (_POINTER, ctypes.c_size_t),
        "cuMemFreeHost": (ctypes.c_void_p,),
        "cuMemcpyHtoDAsync_v2": (_ADDRESS, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
        "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _ADDRESS, ctypes.c_size_t, ctypes.c_void_p),
        "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    }
)
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream
_FLOAT_BYTES: Final = 4


class CudaDriver:
    """The driver library with typed, checked functions.

    Parameters
    ----------
    library : object
        Loaded ``libcuda``; its functions are attributes.

    Raises
    ------
    EngineError
        It lacks a function, or has no device.
    """

    def __init__(self, library: Any) -> None:
        self._functions = {}
        for name, types in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise EngineError(f"the CUDA driver has no function {name}: update it")
            function.argtypes, function.restype = types, ctypes.c_int
            self._functions[name] = function
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises
        ------
        EngineError
            It fails; with the driver's name for the failure.
        """
        code = self._functions[name](*arguments)
        if code != 0:
            raise EngineError(f"the CUDA driver failed in {name}: {self._error_name(code)}")

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._functions["cuGetErrorName"](code, ctypes.byref(text))
        return text.value.decode("ascii", "replace") if text.value else f"error {code}"


def load_driver(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDriver:
    """Load the installed CUDA driver.

    Parameters
    ----------
    load : callable
        Library name -> loaded library; `OSError` where there is none.

    Raises
    ------
    EngineError
        There is none, or it does not work.
    """
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            return CudaDriver(load(name))
    raise EngineError(f"no CUDA driver can be loaded ({' or '.join(_LIBRARIES)}): install one from NVIDIA")


class FloatBuffer:
    """float32 values twice: in page-locked host memory, and on the device.

    Attributes
    ----------
    host : numpy.ndarray
        float32 (count,), a view of the host's side; dead once the stream is closed.
    address : int
        Device address.
    """

    def __init__(self, host: NDArray[np.float32], address: int) -> None:
        self.host = host
        self.address = address


class CudaStream(Closing):
    """A stream on the first device with the buffers that belong to it: a context manager, not thread-safe.

    Parameters
    ----------
    driver : CudaDriver
        The driver.

    Raises
    ------
    EngineError
        There is no device, or it has no memory left.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._releases: list[tuple[str, Any]] = []  # (function that frees, what it frees), oldest first
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._device, self._context = device, context
        self._is_open = True
        try:
            with self.current():
                driver.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        except EngineError:
            self.close()
            raise
        self._stream = stream
        self._releases.append(("cuStreamDestroy_v2", stream))

    @property
    def handle(self) -> int:
        """The stream as a number, for libraries that enqueue work on it."""
        return self._stream.value or 0

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context that of this thread for a while."""
        previous = ctypes.c_void_p()
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(previous))

    def allocate(self, count: int) -> FloatBuffer:
        """Make a buffer that lives as long as the stream.

        Parameters
        ----------
        count : int
            Number of float32 values.
        """
        import numpy as np

        host, device, size = ctypes.c_void_p(), _ADDRESS(), count * _FLOAT_BYTES
        with self.current():
            self._driver.call("cuMemAllocHost_v2", ctypes.byref(host), size)
            self._releases.append(("cuMemFreeHost", host))
            self._driver.call("cuMemAlloc_v2", ctypes.byref(device), size)
            self._releases.append(("cuMemFree_v2", device))
        values = (ctypes.c_float * count).from_address(host.value or 0)
        return FloatBuffer(np.ctypeslib.as_array(values), device.value)

    def upload(self, buffer: FloatBuffer, count: int) -> None:
        """Enqueue a copy of the first `count` values to the device."""
        host, size = buffer.host.ctypes.data, count * _FLOAT_BYTES
        self._driver.call("cuMemcpyHtoDAsync_v2", buffer.address, host, size, self._stream)

    def download(self, buffer: FloatBuffer, count: int) -> None:
        """Enqueue a copy of the first `count` values from the device."""
        host, size = buffer.host.ctypes.data, count * _FLOAT_BYTES
        self._driver.call("cuMemcpyDtoHAsync_v2", host, buffer.address, size, self._stream)

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free every buffer, the stream, and this process's hold on the context; again: nothing.

        A device that has failed refuses this too; its memory is then freed with the process.
        """
        if not self._is_open:
            return
        self._is_open = False
        with contextlib.suppress(EngineError), self.current():
            while self._releases:
                name, argument = self._releases.pop()
                with contextlib.suppress(EngineError):
                    self._driver.call(name, argument)
        with contextlib.suppress(EngineError):
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
