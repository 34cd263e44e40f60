"""A stand-in for libcuda: the same functions over ordinary memory, checked like the real ones, with a ledger.

"Device" memory is host memory, so that the test double of TensorRT can compute on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

SUCCESS, OUT_OF_MEMORY, INVALID_VALUE, INVALID_CONTEXT, LAUNCH_FAILURE = 0, 2, 1, 201, 719
NAMES = {
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
    LAUNCH_FAILURE: b"CUDA_ERROR_LAUNCH_FAILED",
}
CONTEXT, STREAM = 0xC0, 0x5E


class Function:
    """One function of the library: converts its arguments as ctypes does, and needs the types to be declared."""

    def __init__(self, name: str, library: FakeDriver, body: Callable[..., int]) -> None:
        self.name, self.library, self.body = name, library, body
        self.argtypes: tuple[Any, ...] | None = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        assert self.argtypes is not None, f"{self.name} is called without declared types"
        assert self.restype is ctypes.c_int
        assert len(arguments) == len(self.argtypes), f"{self.name} takes {len(self.argtypes)} arguments"
        for kind, argument in zip(self.argtypes, arguments, strict=True):
            kind.from_param(argument)
        self.library.calls.append(self.name)
        failure = self.library.failures.get(self.name)
        if failure is not None:
            return failure
        if self.name in self.library.needs_context and not self.library.stack:
            return INVALID_CONTEXT
        return self.body(*arguments)


def _value(argument: Any) -> int:
    return int(getattr(argument, "value", argument) or 0)


class FakeDriver:
    """The library.

    Attributes
    ----------
    calls : list of str
        Every call, in order.
    failures : dict of str to int
        Functions that shall fail, with their CUresult.
    memory : dict
        Live allocations, host and device, by address.
    retained, stack : int, list of int
        Holds on the primary context, and the contexts pushed by now.
    """

    needs_context = frozenset(
        name for name in ("cuStreamCreate", "cuMemAlloc_v2", "cuMemAllocHost_v2", "cuMemFree_v2", "cuMemFreeHost")
    ) | {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuStreamDestroy_v2"}

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.retained = 0
        self.streams = 0
        self.stack: list[int] = []
        bodies: dict[str, Callable[..., int]] = {
            "cuInit": lambda flags: SUCCESS,
            "cuDeviceGet": lambda device, ordinal: self._give(device, 0),
            "cuDevicePrimaryCtxRetain": self._retain,
            "cuDevicePrimaryCtxRelease_v2": self._release,
            "cuCtxPushCurrent_v2": self._push,
            "cuCtxPopCurrent_v2": lambda context: self._give(context, self.stack.pop()),
            "cuStreamCreate": self._create_stream,
            "cuStreamDestroy_v2": self._destroy_stream,
            "cuStreamSynchronize": lambda stream: SUCCESS if _value(stream) == STREAM else INVALID_VALUE,
            "cuMemAlloc_v2": self._allocate,
            "cuMemAllocHost_v2": self._allocate,
            "cuMemFree_v2": self._free,
            "cuMemFreeHost": self._free,
            "cuMemcpyHtoDAsync_v2": self._copy,
            "cuMemcpyDtoHAsync_v2": self._copy,
            "cuGetErrorName": self._name,
        }
        for name, body in bodies.items():
            setattr(self, name, Function(name, self, body))

    @property
    def is_clean(self) -> bool:
        """Whether everything that was taken has been given back."""
        return not self.memory and not self.retained and not self.streams and not self.stack

    def _give(self, target: Any, value: int) -> int:
        target._obj.value = value
        return SUCCESS

    def _retain(self, context: Any, device: Any) -> int:
        self.retained += 1
        return self._give(context, CONTEXT)

    def _release(self, device: Any) -> int:
        self.retained -= 1
        return SUCCESS

    def _push(self, context: Any) -> int:
        if _value(context) != CONTEXT:
            return INVALID_CONTEXT
        self.stack.append(CONTEXT)
        return SUCCESS

    def _create_stream(self, stream: Any, flags: int) -> int:
        self.streams += 1
        return self._give(stream, STREAM)

    def _destroy_stream(self, stream: Any) -> int:
        self.streams -= 1
        return SUCCESS

    def _allocate(self, address: Any, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return self._give(address, ctypes.addressof(block))

    def _free(self, address: Any) -> int:
        return SUCCESS if self.memory.pop(_value(address), None) is not None else INVALID_VALUE

    def _copy(self, target: Any, source: Any, size: int, stream: Any) -> int:
        if _value(target) not in self.memory or _value(source) not in self.memory or _value(stream) != STREAM:
            return INVALID_VALUE
        ctypes.memmove(_value(target), _value(source), size)
        return SUCCESS

    def _name(self, code: int, text: Any) -> int:
        text._obj.value = NAMES.get(code)
        return SUCCESS
