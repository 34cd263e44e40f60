"""A loaded TensorRT or TensorRT-RTX engine: its execution context and its buffers on the first CUDA device."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import EngineError
from unetx_opt.files import write_file
from unetx_opt.lifetime import Closing
from unetx_opt.runtime.cuda_memory import CudaDriver, CudaStream, FloatBuffer
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME
from unetx_opt.specs import EngineRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CACHE_VARIABLE", "TensorRTSession"]

#: Environment variable that names a folder where TensorRT-RTX keeps the kernels that it compiles when an engine
#: first runs. They are code for the GPU that the bundle's signature does not cover, so nothing is kept unless asked.
CACHE_VARIABLE: Final = "UNETX_TENSORRT_CACHE"

_log = logging.getLogger(__name__)


class TensorRTSession(Closing):
    """A plan with its execution context and its buffers on the device; a lock hands it to one caller at a time.

    Parameters
    ----------
    trt : module
        `tensorrt` or `tensorrt_rtx`.
    driver : CudaDriver
        The CUDA driver.
    record : EngineRecord
        What the bundle says about the engine.
    plan : bytes
        The engine.

    Raises
    ------
    EngineError
        The package refuses the plan, or its tensors are not those of this toolkit.
    """

    def __init__(self, trt: Any, driver: CudaDriver, record: EngineRecord, plan: bytes) -> None:
        self._target, self._compute_dtype = record.target, record.compute_dtype
        self._lock = threading.Lock()
        self._errors = _error_log(trt)
        self._cache_path: Path | None = None
        # The packages carry no types. Each of these needs the ones before it as long as it lives.
        self._runtime: Any = None
        self._engine: Any = None
        self._cache: Any = None
        self._context: Any = None
        self._profiler: Any = None
        self._stream = CudaStream(driver)
        self._is_open = True
        try:
            with self._stream.current():
                self._load(trt, plan)
                self._image = self._bind(INPUT_NAME, self._image_shape)
                self._logits = self._bind(OUTPUT_NAME, self._logits_shape)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> str:
        """Name of the target."""
        return self._target

    @property
    def compute_dtype(self) -> str:
        """Type of the arithmetic, as attested when the engine was built: a plan cannot be asked again."""
        return self._compute_dtype

    def infer(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine, at most its largest batch at a time; see `Session.infer`."""
        import numpy as np

        with self._lock:
            if not self._is_open:
                raise EngineError(f"{self._target} is closed: open the engine again")
            if image_nchw.shape[1:] != self._image_shape or not len(image_nchw) or image_nchw.dtype != np.float32:
                raise EngineError(
                    f"{self._target} failed on an input of shape {image_nchw.shape} and type {image_nchw.dtype}, "
                    f"expected float32 (N, {', '.join(str(side) for side in self._image_shape)})"
                )
            logits = np.empty((len(image_nchw), *self._logits_shape), np.float32)
            with self._stream.current():
                for start in range(0, len(image_nchw), self._max_batch):
                    rows = slice(start, start + self._max_batch)
                    logits[rows] = self._infer_batch(image_nchw[rows])
        return logits

    def report_layers_to(self, profiler: Any) -> None:
        """Let every inference from now on tell a profiler how long each layer took; it takes longer itself.

        Parameters
        ----------
        profiler : IProfiler
            Of the package that runs the engine.
        """
        with self._lock, self._stream.current():
            self._profiler = profiler  # the package keeps no reference
            self._context.profiler = profiler

    def close(self) -> None:
        """Free the engine and its memory; an inference that still runs in another thread ends first."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            with self._stream.current():
                self._save_cache()
                for name in ("_context", "_profiler", "_cache", "_engine", "_runtime"):
                    setattr(self, name, None)
            self._stream.close()

    def _load(self, trt: Any, plan: bytes) -> None:
        self._runtime = trt.Runtime(self._errors)
        engine = self._engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self._target} refuses the engine: {self._errors.last_error}; rebuild the bundle for this machine"
            )
        self._check_tensors(trt, engine)
        largest = tuple(engine.get_tensor_profile_shape(INPUT_NAME, 0)[2])
        self._max_batch, self._image_shape = largest[0], largest[1:]
        self._logits_shape = tuple(engine.get_tensor_shape(OUTPUT_NAME))[1:]
        self._context = self._create_context(trt, engine, plan)
        if self._context is None:
            raise EngineError(f"{self._target} cannot run the engine: {self._errors.last_error}")

    def _check_tensors(self, trt: Any, engine: Any) -> None:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if sorted(names) != sorted((INPUT_NAME, OUTPUT_NAME)):
            raise EngineError(f"the engine's tensors are {', '.join(names)}, expected {INPUT_NAME}, {OUTPUT_NAME}")
        for name in names:
            dtype, shape = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))
            if dtype != trt.float32 or len(shape) != 4 or min(shape[1:]) < 1:
                raise EngineError(f"the engine's {name} is {dtype} {shape}, expected float32 (N, C, H, W)")

    def _create_context(self, trt: Any, engine: Any, plan: bytes) -> Any:
        if not hasattr(trt, "IRuntimeCache"):  # TensorRT compiled its kernels when it built the engine
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        # Kernels for the batch at hand at once: otherwise the first images run on other kernels than later ones.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        folder = os.environ.get(CACHE_VARIABLE)
        if folder:
            self._cache_path = Path(folder) / f"{hashlib.sha256(plan).hexdigest()}.kernels"
            cache = self._cache = config.create_runtime_cache()
            if self._cache_path.is_file():
                cache.deserialize(self._cache_path.read_bytes())  # refuses another GPU's, driver's or version's
            config.set_runtime_cache(cache)
        return engine.create_execution_context(config)

    def _bind(self, name: str, shape: tuple[int, ...]) -> FloatBuffer:
        buffer = self._stream.allocate(self._max_batch * math.prod(shape))
        if not self._context.set_tensor_address(name, buffer.address):
            raise EngineError(f"{self._target} refuses memory for {name}: {self._errors.last_error}")
        return buffer

    def _infer_batch(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; the result lies in memory that the next one overwrites."""
        context, stream = self._context, self._stream
        shape = (len(image_nchw), *self._logits_shape)
        self._image.host[: image_nchw.size] = image_nchw.ravel()
        if not context.set_input_shape(INPUT_NAME, image_nchw.shape):
            raise EngineError(f"{self._target} refuses a batch of {shape[0]}: {self._errors.last_error}")
        stream.upload(self._image, image_nchw.size)
        if not context.execute_async_v3(stream.handle):
            raise EngineError(f"{self._target} failed: {self._errors.last_error}")
        stream.download(self._logits, math.prod(shape))
        stream.synchronize()
        return self._logits.host[: math.prod(shape)].reshape(shape)

    def _save_cache(self) -> None:
        if self._cache is None or self._cache_path is None:
            return
        data = bytes(self._cache.serialize())
        try:
            if not self._cache_path.is_file() or self._cache_path.read_bytes() != data:
                write_file(self._cache_path, data)
        except OSError as error:
            _log.warning("compiled kernels cannot be kept in %s: %s", self._cache_path.parent, error)


def _error_log(trt: Any) -> Any:
    """Make a logger that keeps the last error; its base class comes with the package."""
    severities = trt.ILogger.Severity
    failures = (severities.INTERNAL_ERROR, severities.ERROR)

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last_error = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in failures:
                self.last_error = " ".join(message.split())

    return ErrorLog()
