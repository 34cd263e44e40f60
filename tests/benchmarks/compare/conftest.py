"""The hand-made report, shared with the tests of the pages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SOURCE = Path(__file__).parent.parent / "report_page" / "hand_made.py"
_NAME = "tests_benchmarks_report_page_hand_made"


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """The module of hand-made figures."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, _SOURCE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]
