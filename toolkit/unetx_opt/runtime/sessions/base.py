"""What every engine looks like from outside: logits for images, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from unetx_opt.errors import EngineError
from unetx_opt.specs import EngineRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "OpenRequest", "OtherArithmeticError", "Session"]

#: Names of the one input and the one output of every graph and engine.
INPUT_NAME = "image"
OUTPUT_NAME = "logits"


class OtherArithmeticError(EngineError):
    """This machine computes in another type than the engine's record says: no defect of the bundle, and no run."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An engine of a bundle that shall be loaded on this machine.

    Attributes
    ----------
    record : EngineRecord
        The engine; its first file is the entry point.
    read : callable
        File name of the record -> its bytes, already verified against the manifest. A session loads from
        these bytes and never opens the file again: what was verified is what runs.
    threads : int or None
        CPU threads that one inference may use; None leaves it to the engine. GPU sessions ignore it.
    """

    record: EngineRecord
    read: Callable[[str], bytes]
    threads: int | None = None


class Session(Protocol):
    """A loaded engine: a context manager that owns memory and perhaps a device.

    `infer` may be called from several threads at once; a session that cannot run two at a time queues them.
    `close` may be called twice; `infer` after `close` is an `EngineError`.

    Attributes
    ----------
    target : str
        Name of the target, a key of the session table.
    compute_dtype : str
        Type that the engine really computes in, by ONNX name ("float32", "bfloat16"), read back from the
        loaded engine where it can tell, else the attested type of its record.
    """

    @property
    def target(self) -> str:
        """Name of the target."""
        ...

    @property
    def compute_dtype(self) -> str:
        """Type of the arithmetic, by ONNX name."""
        ...

    def infer(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine.

        Parameters
        ----------
        image_nchw : numpy.ndarray
            float32 (N, C, H, W), C-contiguous, values in the contract's `value_range`.

        Returns
        -------
        numpy.ndarray
            Logits, float32 (N, K, H, W), owned by the caller: a later call does not change them.

        Raises
        ------
        EngineError
            The session is closed, the shape does not fit, or the engine fails.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
