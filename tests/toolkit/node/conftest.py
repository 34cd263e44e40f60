"""Real peers for the node: the module of them, loaded from beside the tests, and what starts and ends them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_SOURCE = Path(__file__).parent / "peers.py"
_NAME = "tests_toolkit_node_peers"


@pytest.fixture(scope="session")
def peers() -> ModuleType:
    """The module of peers: ``free_port``, ``wait_until``, ``dcmtk``, ``Orthanc``, ``StoreScp``."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, _SOURCE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


@pytest.fixture
def make_orthanc(peers: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start an Orthanc that lets the given AE titles store: ``make_orthanc({"NODE": ("127.0.0.1", port)})``."""
    peers.orthanc_program()
    running: list[Any] = []

    def make(modalities: Mapping[str, tuple[str, int]], **settings: Any) -> Any:
        folder = tmp_path / f"orthanc-{len(running)}"
        folder.mkdir()
        pacs = peers.Orthanc(folder, modalities, **settings)
        running.append(pacs)
        pacs.start()
        return pacs

    yield make
    for pacs in running:
        pacs.kill()


@pytest.fixture
def make_storescp(peers: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a storescp with more arguments for it: ``make_storescp("--abort-after")``."""
    peers.dcmtk("storescp")
    running: list[Any] = []

    def make(*arguments: str) -> Any:
        peer = peers.StoreScp(tmp_path / f"storescp-{len(running)}", arguments)
        running.append(peer)
        peer.start()
        return peer

    yield make
    for peer in running:
        peer.stop()
