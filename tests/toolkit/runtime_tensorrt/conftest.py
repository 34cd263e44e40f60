"""A TensorRT package and a CUDA driver that are not there: test doubles of both."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
BUILDER_TESTS = HERE.parents[1] / "exporters" / "tensorrt"


def _load(path: Path) -> ModuleType:
    qualified = f"tests_runtime_tensorrt_{path.stem}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


@pytest.fixture
def library() -> Any:
    """A fake CUDA driver library."""
    return _load(HERE / "fake_driver.py").FakeDriver()


@pytest.fixture
def make_double() -> Callable[..., Any]:
    """Return a function: version and answers -> test double of a TensorRT package."""

    def make(version: str, **answers: Any) -> Any:
        surface = json.loads((BUILDER_TESTS / "golden" / f"surface-{version}.json").read_text(encoding="utf-8"))
        return _load(BUILDER_TESTS / "tensorrt_double.py").Package(surface, version.partition("-")[2], **answers)

    return make
