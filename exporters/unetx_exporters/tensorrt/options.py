"""What a user can decide about TensorRT engines beyond precision and GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from unetx_exporters.tensorrt.plan import COMPATIBILITY_LEVELS
from unetx_exporters.tensorrt.process import BuilderLimits
from unetx_opt.errors import SpecError

__all__ = ["TensorRTOptions", "read_options"]

_PREFIX: Final = "tensorrt_"


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    """Settings of both TensorRT targets; in `BuildRequest.options` each name is preceded by ``tensorrt_``.

    Attributes
    ----------
    max_batch : int
        Largest batch that an engine runs, 1 to 256. It is tuned for 1.
    compatibility : str
        For TensorRT: "none" builds for the GPU that is there, "same_compute_capability" for all GPUs like it,
        "ampere_plus" for compute capability 8.0 and newer.
    timing_cache : str
        For TensorRT: path of a file with measured kernels, read before and written after a build; empty for none.
    timeout_s : float
        Seconds after which the build of one engine is ended.
    memory_mib : int
        Resident memory in MiB at which the build of one engine is ended.
    attention_plugin : bool
        For TensorRT: put the fused kernel of the neighbourhood gate into the engine where the version takes it.
    """

    max_batch: int = 4
    compatibility: str = "none"
    timing_cache: str = ""
    timeout_s: float = 1800.0
    memory_mib: int = 16384
    attention_plugin: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 256:
            raise SpecError(f"tensorrt_max_batch is {self.max_batch}, expected 1 to 256")
        if self.compatibility not in COMPATIBILITY_LEVELS:
            raise SpecError(
                f"tensorrt_compatibility is {self.compatibility!r}, expected one of {', '.join(COMPATIBILITY_LEVELS)}"
            )
        if self.timeout_s <= 0 or self.memory_mib <= 0:
            raise SpecError(
                f"tensorrt_timeout_s is {self.timeout_s} and tensorrt_memory_mib {self.memory_mib}, "
                "both must be positive"
            )

    @property
    def limits(self) -> BuilderLimits:
        """When a builder process is ended."""
        return BuilderLimits(float(self.timeout_s), self.memory_mib)

    @property
    def cache_path(self) -> Path | None:
        """Where the timing cache is kept between builds."""
        return Path(self.timing_cache) if self.timing_cache else None


def read_options(options: Mapping[str, Any]) -> TensorRTOptions:
    """Read the settings of this builder out of all targets' settings.

    Raises
    ------
    SpecError
        A name that begins with ``tensorrt_`` is unknown, or a value is of the wrong type or out of range.
    """
    own = {name.removeprefix(_PREFIX): value for name, value in options.items() if name.startswith(_PREFIX)}
    defaults = {field.name: field.default for field in fields(TensorRTOptions)}
    for name, value in own.items():
        if name not in defaults:
            known = ", ".join(_PREFIX + known for known in defaults)
            raise SpecError(f"unknown option {_PREFIX}{name}, expected one of {known}")
        kinds = (int, float) if isinstance(defaults[name], float) else (type(defaults[name]),)
        if type(value) not in kinds:
            raise SpecError(f"{_PREFIX}{name} is {value!r}, expected a value like {defaults[name]!r}")
    return TensorRTOptions(**own)
