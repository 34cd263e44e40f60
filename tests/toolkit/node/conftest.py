"""Real peers for the node: the module of them, loaded from beside the tests, and what starts and ends them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Import a module that lies beside the tests, which are no package."""
    full_name = f"tests_toolkit_node_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, _HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def peers() -> ModuleType:
    """The module of peers: ``free_port``, ``wait_until``, ``dcmtk``, ``Orthanc``, ``StoreScp``, ``Authority``."""
    return _load("peers")


@pytest.fixture(scope="session")
def make_node(tmp_path_factory: pytest.TempPathFactory, peers: ModuleType) -> Callable[[], Any]:
    """Make a journal and results without a receiver: whatever comes after segmentation."""
    template = tmp_path_factory.mktemp("template") / "seg.dcm"
    template.write_bytes(peers.segmentation(peers.radiograph())["seg"])
    return lambda: _load("journalled_node").JournalledNode(tmp_path_factory.mktemp("state"), template)


@pytest.fixture
def node(make_node: Callable[[], Any]) -> Any:
    """One of them."""
    return make_node()


@pytest.fixture(scope="session")
def threshold_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose mask is a threshold of the image."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path: Path = _load("served_node").write_threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")
    return path


def _serve_nodes(folder: Path, peers: ModuleType, threshold_bundle: Path) -> Iterator[Callable[..., Any]]:
    running: list[Any] = []

    def make(destinations: str, extra: str = "", *, port: int | None = None, bundle: Path | None = None) -> Any:
        place = folder / f"node-{len(running)}"
        place.mkdir()
        node = _load("served_node").ServedNode(
            place, bundle or threshold_bundle, port or peers.free_port(), peers.free_port(), destinations, extra
        )
        running.append(node)
        node.start(peers=peers)
        return node

    yield make
    for node in running:
        node.kill()


@pytest.fixture
def make_served(tmp_path: Path, peers: ModuleType, threshold_bundle: Path) -> Iterator[Callable[..., Any]]:
    """Start `unetx-opt serve`: ``make_served(destinations=TOML, extra=TOML)``."""
    yield from _serve_nodes(tmp_path, peers, threshold_bundle)


@pytest.fixture(scope="module")
def make_shared(
    tmp_path_factory: pytest.TempPathFactory, peers: ModuleType, threshold_bundle: Path
) -> Iterator[Callable[..., Any]]:
    """The same for a node that the tests of one file share."""
    yield from _serve_nodes(tmp_path_factory.mktemp("shared"), peers, threshold_bundle)


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
