"""Frozen data that several stages share: the model's shape, the input contract, precisions, engines, the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from unetx_opt.errors import SpecError

__all__ = [
    "EngineRecord",
    "Gate",
    "Host",
    "InputContract",
    "ModelSpec",
    "Normalization",
    "Precision",
    "Upsampling",
    "model_spec_from_json",
    "model_spec_to_json",
]

MAX_SIDE_PX: Final = 8192


class Precision(StrEnum):
    """What a user asks for; the manifest says per layer what was built."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Upsampling(StrEnum):
    """How the decoder doubles height and width."""

    TRANSPOSED = "transposed"
    BILINEAR = "bilinear"


class Gate(StrEnum):
    """How a skip connection is attended before it is added to the decoder's features."""

    NEIGHBOURHOOD = "neighbourhood"
    ADDITIVE = "additive"


class Normalization(StrEnum):
    """How grey values are mapped to the value range of the network."""

    PERCENTILE = "percentile"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that decides the graph of a U-Net, and nothing else.

    Attributes
    ----------
    width : int
        Channels of the first stage, 1 to 256; each deeper stage doubles them.
    depth : int
        Number of stages below the first, 1 to 6.
    in_channels : int
        Channels of the input image, 1 to 16.
    num_classes : int
        1 for a binary mask (one logit, sigmoid), K >= 2 for K classes (K logits, softmax), at most 64.
    upsampling : Upsampling
        Transposed convolution 2 x 2, or bilinear interpolation followed by a 1 x 1 convolution.
    gate : Gate or None
        None concatenates skips. Otherwise every skip is *added* to the upsampled features, so that the decoder
        reads C and not 2 C channels, and the skips named by `gate_levels` pass through this gate first.
    gate_levels : tuple of int
        Skip levels with a gate; level 0 is the full resolution, level ``depth - 1`` the deepest.
    gate_window : int
        Side of the neighbourhood in pixels: 3, 5 or 7. The additive gate ignores it.
    dilations : tuple of int
        Empty, or the dilation rates of the last convolutions of the encoder, two per stage. The last
        ``len(dilations) // 2`` stages then share one resolution: only the first of them is pooled.
    """

    width: int = 16
    depth: int = 4
    in_channels: int = 1
    num_classes: int = 1
    upsampling: Upsampling = Upsampling.TRANSPOSED
    gate: Gate | None = None
    gate_levels: tuple[int, ...] = ()
    gate_window: int = 3
    dilations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_range("width", self.width, 1, 256)
        _check_range("depth", self.depth, 1, 6)
        _check_range("in_channels", self.in_channels, 1, 16)
        _check_range("num_classes", self.num_classes, 1, 64)
        if self.gate_window not in (3, 5, 7):
            raise SpecError(f"gate_window is {self.gate_window}, expected 3, 5 or 7")
        if self.gate is None and self.gate_levels:
            raise SpecError(f"gate_levels is {self.gate_levels} but there is no gate: set gate, or leave it empty")
        if len(set(self.gate_levels)) != len(self.gate_levels):
            raise SpecError(f"gate_levels names a level twice: {self.gate_levels}")
        for level in self.gate_levels:
            _check_range("gate level", level, 0, self.poolings - 1)
        if len(self.dilations) % 2 or len(self.dilations) // 2 > self.depth:
            raise SpecError(
                f"dilations has {len(self.dilations)} rates, expected two per stage for at most {self.depth} stages"
            )
        for rate in self.dilations:
            _check_range("dilation rate", rate, 1, 64)

    @property
    def poolings(self) -> int:
        """How often height and width are halved; also the number of skip connections."""
        return self.depth - max(0, len(self.dilations) // 2 - 1)

    @property
    def divisor(self) -> int:
        """Height and width that need no padding are multiples of this number of pixels."""
        return int(2**self.poolings)

    def channels(self, stage: int) -> int:
        """Channels of an encoder stage; stage 0 is the first."""
        return int(self.width * 2**stage)


def model_spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """Turn a spec into plain JSON types."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(spec).items()
    }


def model_spec_from_json(data: object) -> ModelSpec:
    """Read a spec that came from a file.

    Raises
    ------
    SpecError
        A field is missing, unknown, of the wrong type or out of range.
    """
    if not isinstance(data, dict):
        raise SpecError(f"a model spec is a JSON object, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(ModelSpec)}
    if set(data) != set(fields):
        missing, unknown = sorted(set(fields) - set(data)), sorted(map(str, set(data) - set(fields)))
        raise SpecError(f"model spec does not fit this version: missing {missing}, unknown {unknown}")
    integers = {name: _read_integer(name, data[name]) for name in _INTEGER_FIELDS}
    try:
        upsampling = Upsampling(data["upsampling"])
        gate = None if data["gate"] is None else Gate(data["gate"])
    except ValueError as error:
        raise SpecError(f"model spec: {error}") from error
    return ModelSpec(
        **integers,
        upsampling=upsampling,
        gate=gate,
        gate_levels=_read_integers("gate_levels", data["gate_levels"]),
        dilations=_read_integers("dilations", data["dilations"]),
    )


_INTEGER_FIELDS: Final = ("width", "depth", "in_channels", "num_classes", "gate_window")


def _read_integer(name: str, value: object) -> int:
    if type(value) is not int:
        raise SpecError(f"model spec: {name} is {value!r}, expected an integer")
    return value


def _read_integers(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise SpecError(f"model spec: {name} is {value!r}, expected a list of integers")
    return tuple(_read_integer(name, item) for item in value)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(f"{name} is {value}, expected {low} to {high}")


@dataclass(frozen=True, slots=True)
class InputContract:
    """What an engine reads, and how an image of any size is brought to it and back.

    The image is normalised to `value_range`, scaled with its aspect kept so that it fits ``height x width``
    (physical aspect where the pixel spacing is known and not square), centred, and padded with `padding_value`.

    Attributes
    ----------
    height, width : int
        Engine input in pixels.
    channels : int
        Engine input channels.
    normalization : Normalization
        PERCENTILE maps the two percentiles of the image to the ends of `value_range`, WINDOW the two ends of a
        fixed window of grey values; both clip.
    lower_percentile, upper_percentile : float
        In percent, for PERCENTILE.
    window : tuple of float or None
        Lower and upper grey value, for WINDOW.
    value_range : tuple of float
        Lowest and highest value that the network sees.
    padding_value : float
        Value of the padding, after normalisation.
    """

    height: int = 512
    width: int = 512
    channels: int = 1
    normalization: Normalization = Normalization.PERCENTILE
    lower_percentile: float = 0.5
    upper_percentile: float = 99.5
    window: tuple[float, float] | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    padding_value: float = 0.0

    def __post_init__(self) -> None:
        _check_range("input height", self.height, 16, MAX_SIDE_PX)
        _check_range("input width", self.width, 16, MAX_SIDE_PX)
        _check_range("input channels", self.channels, 1, 16)
        if not 0.0 <= self.lower_percentile < self.upper_percentile <= 100.0:
            raise SpecError(
                f"percentiles are {self.lower_percentile} and {self.upper_percentile}, "
                "expected 0 <= lower < upper <= 100"
            )
        if (self.normalization is Normalization.WINDOW) != (self.window is not None):
            raise SpecError("a window is given if and only if the normalisation is 'window'")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise SpecError(f"window is {self.window}, expected lower < upper")
        if not self.value_range[0] < self.value_range[1]:
            raise SpecError(f"value_range is {self.value_range}, expected lower < upper")


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One engine of a bundle, as its builder leaves it and the runtime finds it.

    Attributes
    ----------
    target : str
        Name of the target: "onnxruntime-cpu", "tensorrt-rtx", ...
    files : tuple of str
        Names relative to the bundle, ``/`` between parts; the first is the entry point.
    settings : mapping of str to str
        What the session must be opened with, for instance ``{"inference_precision": "bf16"}``.
    storage_dtype : str
        Type of the stored weights, by ONNX name: "float16".
    compute_dtype : str
        Type of the arithmetic as read back from the built engine.
    layers : mapping of str to str
        Layer name to its data type as read back from the built engine (the attestation).
    compute_capabilities : tuple of str
        CUDA compute capabilities that it runs on, such as "8.6"; empty for a CPU engine.
    tools : mapping of str to str
        Name to version of what built it.
    """

    target: str
    files: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    storage_dtype: str = "float32"
    compute_dtype: str = "float32"
    layers: Mapping[str, str] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """What a machine offers, as far as a choice of target depends on it.

    Attributes
    ----------
    system, machine : str
        "Linux", "Windows", ...; "x86_64", "AMD64", "aarch64", ...
    cpu_features : frozenset of str
        Lower-case flags such as "avx512_bf16", "avx512_vnni", "amx_bf16"; empty where unknown.
    packages : mapping of str to str
        Installed optional packages (module name) and their versions.
    onnxruntime_providers : tuple of str
        Execution providers of the installed ONNX Runtime.
    compute_capability : str or None
        Of the first CUDA device ("8.6"), None without a usable device and driver.
    gpu : str or None
        Name of that device.
    driver : str or None
        Version of the CUDA driver API that the installed driver offers ("13.0").
    """

    system: str
    machine: str
    cpu_features: frozenset[str] = frozenset()
    packages: Mapping[str, str] = field(default_factory=dict)
    onnxruntime_providers: tuple[str, ...] = ()
    compute_capability: str | None = None
    gpu: str | None = None
    driver: str | None = None
