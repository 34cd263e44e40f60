"""The layers of a built engine with their data types, as TensorRT reports them in two formats.

TensorRT-RTX prints one line per layer at the end of a verbose build, without a GPU::

    Name: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,8,64,64], ...,
    Datatype: Half, Format: ... }], Constants: [ ... ], Outputs: [ ... ], ..., Metadata: [ONNX Layer: conv]

TensorRT's engine inspector gives the same as JSON, where a tensor's type stands under "Format/Datatype" and
that of the weights under "Weights".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from unetx_opt.errors import ExportError

__all__ = ["EngineLayer", "EngineTensor", "parse_inspector_json", "parse_layer_dump"]

#: Beginning of the log message that lists the layers.
DUMP_TITLE: Final = "Layers:"

# In this order: "BF16" must not be read as FP16, nor "Int8" out of "UInt8".
_DTYPES: Final = (
    ("bfloat16", re.compile(r"BF16|BFloat16", re.IGNORECASE)),
    ("float16", re.compile(r"FP16|Half|Float16", re.IGNORECASE)),
    ("float8e4m3fn", re.compile(r"FP8|Float8", re.IGNORECASE)),
    ("float32", re.compile(r"FP32|Float", re.IGNORECASE)),
    ("uint8", re.compile(r"UInt8", re.IGNORECASE)),
    ("int8", re.compile(r"Int8", re.IGNORECASE)),
    ("int32", re.compile(r"Int32", re.IGNORECASE)),
    ("int64", re.compile(r"Int64", re.IGNORECASE)),
    ("bool", re.compile(r"Bool", re.IGNORECASE)),
)
_KEY: Final = re.compile(r"([A-Z][A-Za-z/ ]*?): ?")
_CLOSING: Final = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """A tensor that a layer reads or writes.

    Attributes
    ----------
    dims : tuple of int
        Its shape; -1 where it is dynamic.
    dtype : str
        ONNX name of its type, empty where TensorRT does not say.
    """

    dims: tuple[int, ...]
    dtype: str

    @property
    def is_dynamic(self) -> bool:
        """Whether its shape depends on the batch: it is data and no weight."""
        return any(dim < 0 for dim in self.dims)

    @property
    def elements(self) -> int:
        """Number of elements; 0 where the shape is dynamic."""
        return 0 if self.is_dynamic else math.prod(self.dims)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer that an engine executes.

    Attributes
    ----------
    name, kind : str
        What TensorRT calls it ("correlation", "CaskConvolution", "kgen").
    inputs, constants, outputs : tuple of EngineTensor
        What it reads, what is stored in it, what it writes.
    weights_dtype : str
        Type of its weights where the report says so, else empty.
    metadata : str
        Names the ONNX nodes that were fused into it, each as ``[ONNX Layer: name]``.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...] = ()
    constants: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    weights_dtype: str = ""
    metadata: str = ""

    def stands_for(self, node: str) -> bool:
        """Whether an ONNX node was fused into this layer."""
        return f"[ONNX Layer: {node}]" in self.metadata


def parse_layer_dump(text: str) -> tuple[EngineLayer, ...]:
    """Read the layers out of a verbose build log.

    Parameters
    ----------
    text : str
        The message that begins with ``Layers:``, or a log that contains it.

    Raises
    ------
    ExportError
        It holds no layer, or a line that cannot be read.
    """
    lines = text.split(DUMP_TITLE, 1)[-1].splitlines() if DUMP_TITLE in text else []
    layers = []
    for line in lines:
        if line.startswith("Name: "):
            layers.append(_layer_of_line(line))
        elif layers and not line.strip():
            break  # tensors and metadata of the engine follow
    if not layers:
        raise ExportError("the build log lists no layers: this version of TensorRT writes it in another form")
    return tuple(layers)


def parse_inspector_json(text: str) -> tuple[EngineLayer, ...]:
    """Read the layers out of what `IEngineInspector` gives as JSON.

    Raises
    ------
    ExportError
        It is not JSON, or holds no layers with details.
    """
    try:
        raw = json.loads(text, strict=False)  # node names are joined by control characters
        items = raw["Layers"]
        # Without DETAILED verbosity each layer is just its name.
        layers = tuple(_layer_of_item(item) for item in items if isinstance(item, dict))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"the engine inspector's report cannot be read ({error}): update unetx-opt") from error
    if not layers:
        raise ExportError("the engine inspector reports no layers: this version of TensorRT gives no details")
    return layers


def _layer_of_line(line: str) -> EngineLayer:
    # Node names may hold any character, so the metadata is cut off first.
    body, _, metadata = line.partition(", Metadata: ")
    fields = _split_fields(body)
    if not {"Name", "LayerType", "Inputs", "Outputs"} <= set(fields):
        raise ExportError(f"a layer of the build log cannot be read: {line[:120]!r}; update unetx-opt")
    tensors = {
        key: tuple(_tensor(_split_fields(item)) for item in _split_items(fields.get(key, "[]")))
        for key in ("Inputs", "Constants", "Outputs")
    }
    return EngineLayer(
        name=fields["Name"],
        kind=fields["LayerType"],
        inputs=tensors["Inputs"],
        constants=tensors["Constants"],
        outputs=tensors["Outputs"],
        weights_dtype=_dtype(fields.get("Weights", "")),
        metadata=metadata,
    )


def _layer_of_item(item: Mapping[str, Any]) -> EngineLayer:
    weights = item.get("Weights")
    tensors = {
        key: tuple(_tensor(tensor) for tensor in item.get(key) or ()) for key in ("Inputs", "Constants", "Outputs")
    }
    return EngineLayer(
        name=str(item["Name"]),
        kind=str(item.get("LayerType", "")),
        inputs=tensors["Inputs"],
        constants=tensors["Constants"],
        outputs=tensors["Outputs"],
        weights_dtype=_dtype(str(weights.get("Type", ""))) if isinstance(weights, dict) else "",
        metadata=str(item.get("Metadata", "")),
    )


def _tensor(fields: Mapping[str, Any]) -> EngineTensor:
    dims = fields.get("Dimensions", ())
    if isinstance(dims, str):
        dims = re.findall(r"-?\d+", dims)
    text = fields.get("Datatype") or fields.get("Format/Datatype") or ""
    return EngineTensor(tuple(int(dim) for dim in dims), _dtype(str(text)))


def _dtype(text: str) -> str:
    return next((name for name, pattern in _DTYPES if pattern.search(text)), "")


def _split_fields(text: str) -> dict[str, str]:
    """Split ``Key: value, Key: value``; commas inside brackets belong to the value."""
    fields: dict[str, str] = {}
    text = text.strip()
    for part in _split_outside(text[1:-1].strip() if text.startswith("{") else text):
        match = _KEY.match(part)
        if match is None:  # a comma inside a name
            continue
        fields.setdefault(match[1], part[match.end() :].strip())
    return fields


def _split_items(text: str) -> Iterator[str]:
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    return (item for item in _split_outside(inner) if item.startswith("{"))


def _split_outside(text: str) -> Iterator[str]:
    """Split at the commas that stand outside every pair of brackets."""
    start, closing = 0, list[str]()
    for index, character in enumerate(text):
        if character in _CLOSING:
            closing.append(_CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            yield text[start:index].strip()
            start = index + 1
    if text[start:].strip():
        yield text[start:].strip()
