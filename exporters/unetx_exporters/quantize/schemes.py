"""How each family of targets holds 8-bit tensors, and what its integer arithmetic covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from unetx_exporters.quantize.grids import Grid
from unetx_opt.errors import SpecError

__all__ = ["FORMS", "Form", "get_form"]

_INT8 = Grid(np.dtype(np.int8), symmetric=True)
_UINT8 = Grid(np.dtype(np.uint8), symmetric=False)


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which a family of targets takes an 8-bit graph.

    Attributes
    ----------
    name : str
        "cpu" or "tensorrt".
    activations : Grid
        Of the data.
    layers : frozenset of str
        Operators with weights that have integer arithmetic.
    additions : bool
        Whether an addition reads 8-bit values.
    float_dtype : str
        Type of everything that is neither 8-bit nor named by a plan: "float32" or "float16".
    """

    name: str
    activations: Grid
    layers: frozenset[str]
    additions: bool
    float_dtype: str


_ROWS: Final = (
    # OpenVINO, and ONNX Runtime after `unetx_exporters.onnxruntime.integer_form`.
    Form("cpu", _UINT8, frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}), True, "float32"),
    # TensorRT and TensorRT-RTX: symmetric only; no integer transposed convolution.
    Form("tensorrt", _INT8, frozenset({"Conv", "Gemm", "MatMul"}), False, "float16"),
)

#: Scheme -> its form.
FORMS: Final[Mapping[str, Form]] = MappingProxyType({row.name: row for row in _ROWS})


def get_form(name: str) -> Form:
    """Look the form of a scheme up.

    Raises
    ------
    SpecError
        There is no scheme of that name.
    """
    if name not in FORMS:
        raise SpecError(f"unknown quantization scheme {name!r}: choose from {', '.join(FORMS)}")
    return FORMS[name]
