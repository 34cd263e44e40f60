"""The test double of the TensorRT packages, and what builders of them are given."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unetx_exporters.request import BuildRequest
from unetx_opt.specs import Precision

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Load a module that lies beside the tests: they are no package."""
    qualified = f"tests_exporters_tensorrt_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


@pytest.fixture(scope="session")
def load_beside() -> Callable[[str], ModuleType]:
    """Return a function that loads a module beside the tests."""
    return _load


@pytest.fixture(scope="session")
def surface() -> ModuleType:
    """The names that the sources use, and the reduced surfaces of the packages."""
    return _load("surface")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], str]:
    """Return a function that reads a recorded text."""
    return lambda name: (HERE / "golden" / name).read_text(encoding="utf-8")


@pytest.fixture
def make_double(surface: ModuleType) -> Callable[..., Any]:
    """Return a function: version and answers -> test double of a package."""

    def make(version: str, **answers: Any) -> Any:
        return _load("tensorrt_double").Package(surface.read_surface(version), version.partition("-")[2], **answers)

    return make


@pytest.fixture(scope="session")
def symmetric_int8() -> Callable[..., Any]:
    """Return a function: model and operations -> model with Q/DQ pairs that TensorRT-RTX takes."""
    quantize: Callable[..., Any] = _load("symmetric_int8").quantize
    return quantize


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """Return a function that makes a U-Net of any width, depth and size with random weights as an ONNX model."""
    make: Callable[..., Any] = _load("random_unet").make_unet
    return make


@pytest.fixture(scope="session")
def tiny_unet() -> Callable[..., Any]:
    """Return a function that makes a U-Net of one level and 32 x 32 pixels, computed in a given type."""
    make: Callable[..., Any] = _load("random_unet").tiny_unet
    return make


@pytest.fixture
def make_request(tmp_path: Path, tiny_unet: Callable[..., Any]) -> Callable[..., BuildRequest]:
    """Return a function: precision and typed graph (or `tiny_unet` of that precision) -> request."""

    def make(precision: str, graph: Any = None) -> BuildRequest:
        dtype = {"fp32": "float32", "fp16": "float16", "int8": "int8"}[precision]
        path = tmp_path / "typed.onnx"
        path.write_bytes((graph or tiny_unet("float16" if precision == "fp16" else "float32")).SerializeToString())
        directory = tmp_path / "bundle"
        directory.mkdir(exist_ok=True)
        return BuildRequest(
            graph_fp32=path,
            graph=path,
            graph_stored=path,
            precision=Precision(precision),
            directory=directory,
            layer_types=dict.fromkeys(("down", "bottom", "up", "merge", "head"), dtype),
        )

    return make
