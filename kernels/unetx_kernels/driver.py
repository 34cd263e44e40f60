"""The CUDA driver: the only importer of pycuda.

Nothing happens at import. `primary_context` retains the context that PyTorch uses too, so that tensors of either are
valid in both; `device_array` takes a tensor by its pointer.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from unetx_kernels.errors import KernelError

__all__ = ["DeviceArray", "Gpu", "device_array", "keep_context", "primary_context", "why_not"]

_MODULE: Final = "pycuda.driver"
_DTYPES: Final = {"<f4": ("f32", 4), "<f2": ("f16", 2), "|u1": ("u8", 1)}


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Memory of a GPU that belongs to somebody else.

    Attributes
    ----------
    pointer : int
        Address on the device; 0 where there is no tensor.
    shape : tuple of int
        (N, C, H, W) for four axes, whatever the layout.
    dtype : str
        "f32", "f16" or "u8".
    channels_last : bool
        Whether it lies in memory as (N, H, W, C).
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its primary context.

    Attributes
    ----------
    name : str
        As the driver calls it.
    architecture : str
        "sm_86".
    driver_version : int
        Of the CUDA driver API, 13000 for 13.0.
    driver, context : object
        pycuda's module, and its primary context.
    multiprocessors : int
        How many it has.
    shared_bytes : int
        Shared memory of one of them.
    """

    name: str
    architecture: str
    driver_version: int
    driver: Any
    context: Any
    multiprocessors: int = 1
    shared_bytes: int = 48 * 1024

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread; what the driver refuses inside is a KernelError."""
        self.context.push()
        try:
            yield
        except self.driver.Error as error:
            raise KernelError(f"{self.name} fails: {str(error).splitlines()[0]}; see what nvidia-smi says") from error
        finally:
            self.driver.Context.pop()

    def load(self, binary: bytes) -> Any:
        """Load a cubin, fatbin or PTX; it has ``get_function(name)`` and lives as long as it is referred to."""
        # pycuda binds a module to the context on top of its own stack, whatever is current for the driver.
        self.context.push()
        try:
            return self.driver.module_from_buffer(binary)
        finally:
            self.driver.Context.pop()

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        """Copy an array into new memory of the current context; ``int()`` of the result is its address."""
        return self.driver.to_device(np.ascontiguousarray(array))

    def fill(self, memory: Any, array: np.ndarray[Any, Any]) -> None:
        """Copy an array into memory of `upload` or `allocate` of its size."""
        self.driver.memcpy_htod(memory, np.ascontiguousarray(array))

    def download(self, memory: Any, into: np.ndarray[Any, Any]) -> None:
        """Copy memory of `upload` or `allocate` into an array, after what was started on the default stream."""
        self.driver.memcpy_dtoh(into, memory)

    def allocate(self, size_bytes: int) -> Any:
        """Take memory of the current context; it is given back with the result."""
        return self.driver.mem_alloc(size_bytes)

    def stream(self, *, apart: bool = False) -> Any:
        """Make a stream; one that is apart neither waits for the default stream nor makes it wait.

        pycuda takes no stream of another package; None is the default stream, PyTorch's too.
        """
        return self.driver.Stream(int(apart))

    def launch(
        self,
        function: Any,
        grid: int | tuple[int, int, int],
        block: tuple[int, int],
        arguments: Sequence[Any],
        stream: Any = None,
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel. Its arguments are `DeviceArray`, None for a null pointer, int and float.

        `shared_bytes` is what it has beside the shared memory that it declares; more than 48 KiB in all have to be
        asked for before, by `allow_shared`.
        """
        blocks = (grid, 1, 1) if isinstance(grid, int) else grid
        places = {"grid": blocks, "block": (*block, 1), "shared": shared_bytes}
        function(*map(_argument, arguments), **places, stream=stream)

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        """Let a kernel be launched with up to so much shared memory beside what it declares."""
        function.set_attribute(self.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)

    def samples_ms(self, start: Callable[[], object], samples: int, warm_ups: int = 10) -> list[float]:
        """Time what a function starts on the default stream, call by call, by events of the GPU.

        The host runs ahead and waits once at the end, so that its own time hides behind the GPU's where a call keeps
        the GPU busy for longer than the host takes to start it.
        """
        for _ in range(warm_ups):
            start()
        pairs = [(self.driver.Event(), self.driver.Event()) for _ in range(samples)]
        for begin, end in pairs:
            begin.record()
            start()
            end.record()
        self.driver.Context.synchronize()
        return [float(begin.time_till(end)) for begin, end in pairs]


def why_not(device: int = 0) -> str | None:
    """Return why no kernel can run on this host, or None where one can."""
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed: run pip install 'unetx-opt[cuda]'"
    try:
        driver = importlib.import_module(_MODULE)
        driver.init()
        count = driver.Device.count()
    except ImportError as error:
        return f"no NVIDIA driver ({error}): install one that offers CUDA 12 or later"
    except Exception as error:  # pycuda's own errors have no common base that can be named without it
        return f"no usable NVIDIA GPU ({error}): see what nvidia-smi says"
    return None if device < count else f"no GPU {device}: this host has {count}"


@contextlib.contextmanager
def primary_context(device: int = 0) -> Iterator[Gpu]:
    """Make the primary context of a GPU current in this thread, and give it back at the end.

    Raises
    ------
    KernelError
        No kernel can run here; the message is that of `why_not`.
    """
    gpu = keep_context(device)
    gpu.context.push()
    try:
        yield gpu
    finally:
        gpu.driver.Context.pop()
        gpu.context.detach()


def keep_context(device: int = 0) -> Gpu:
    """Retain the primary context of a GPU without making it current, for as long as the result is referred to.

    For code that runs where PyTorch has made it current: kernels that are loaded once and started in many calls.

    Raises
    ------
    KernelError
        No kernel can run here; the message is that of `why_not`.
    """
    reason = why_not(device)
    if reason is not None:
        raise KernelError(reason)
    driver = importlib.import_module(_MODULE)
    gpu = driver.Device(device)
    major, minor = gpu.compute_capability()
    context = gpu.retain_primary_context()
    has = driver.device_attribute
    multiprocessors = gpu.get_attribute(has.MULTIPROCESSOR_COUNT)
    shared_bytes = gpu.get_attribute(has.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)
    version = driver.get_driver_version()
    return Gpu(gpu.name(), f"sm_{major}{minor}", version, driver, context, multiprocessors, shared_bytes)


def device_array(tensor: Any) -> DeviceArray:
    """Take a tensor on the GPU by its pointer, without a copy; the caller keeps it alive.

    Parameters
    ----------
    tensor : object
        Anything with ``__cuda_array_interface__``: a CUDA tensor of PyTorch, an array of CuPy; float32, float16 or
        uint8, dense, (N, C, H, W) contiguous or channels-last, or of one axis.

    Raises
    ------
    KernelError
        It is on no GPU, of another type, or has gaps.
    """
    interface = getattr(tensor, "__cuda_array_interface__", None)
    if interface is None:
        raise KernelError(f"a {type(tensor).__name__} is not on a GPU: move it there first, tensor.cuda()")
    if interface["typestr"] not in _DTYPES:
        raise KernelError(f"tensor is {interface['typestr']}, expected float32 or float16, or uint8 for an image")
    dtype, itemsize = _DTYPES[interface["typestr"]]
    shape = tuple(int(length) for length in interface["shape"])
    strides = interface.get("strides")
    rows = _dense_strides(shape, range(len(shape)), itemsize)
    pixels = _dense_strides(shape, (0, 2, 3, 1), itemsize) if len(shape) == 4 else rows
    if strides is not None and not (_lies_as(shape, strides, rows) or _lies_as(shape, strides, pixels)):
        raise KernelError(f"tensor of shape {shape} has strides {tuple(strides)}: make it contiguous first")
    channels_last = strides is not None and not _lies_as(shape, strides, rows)
    return DeviceArray(int(interface["data"][0]), shape, dtype, channels_last)


def _dense_strides(shape: tuple[int, ...], order: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides, step = [0] * len(shape), itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _lies_as(shape: tuple[int, ...], strides: Sequence[int], dense: tuple[int, ...]) -> bool:
    # The stride of an axis of length 1 is never used, and frameworks write anything there.
    return all(length == 1 or given == wanted for length, given, wanted in zip(shape, strides, dense, strict=True))


def _argument(value: Any) -> Any:
    if value is None:
        return np.uintp(0)
    if isinstance(value, DeviceArray):
        return np.uintp(value.pointer)
    return np.int32(value) if isinstance(value, int) else np.float32(value)
