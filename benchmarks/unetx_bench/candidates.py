"""Everything that one benchmark runs, opened: the engines of its bundles, their FP32 model, and the peers of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unetx_bench.bundles import (
    OpenedEngine,
    OpenedEngines,
    TimedImage,
    engine_contender,
    open_engines,
    span_contenders,
)
from unetx_bench.errors import MeasurementError
from unetx_bench.measurement import Contender
from unetx_bench.peers import PEERS, Infer, PeerModel, open_peer
from unetx_bench.request import BenchRequest, find_checkpoint
from unetx_bench.roofline import LayerWork, count_work
from unetx_exporters.evaluation import torch_reference
from unetx_opt.errors import UnetxError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest

__all__ = ["Opened", "OpenedBundle", "OpenedCandidate", "TimedCall", "make_contenders", "open_all", "prepare_timed"]


@dataclass(frozen=True, slots=True)
class OpenedCandidate:
    """An engine or a peer.

    Attributes
    ----------
    name : str
        Unique in the run.
    describes : str
        What it is.
    infer : callable
        Logits for float32 (1, C, H, W).
    engine : OpenedEngine or None
        None for a peer.
    """

    name: str
    describes: str
    infer: Infer
    engine: OpenedEngine | None


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """One bundle with everything that is compared with it.

    Attributes
    ----------
    path : pathlib.Path
        Where it is.
    opened : OpenedEngines
        Its engines.
    candidates : tuple of OpenedCandidate
        Its engines, and the peers of its checkpoint unless another bundle has the same.
    reference : callable or None
        The FP32 model of its checkpoint; None where the checkpoint was not found.
    layers : tuple of LayerWork
        Operations of its graph; empty likewise.
    """

    path: Path
    opened: OpenedEngines
    candidates: tuple[OpenedCandidate, ...]
    reference: Infer | None
    layers: tuple[LayerWork, ...]

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.opened.manifest


@dataclass(slots=True)
class Opened:
    """Everything that is open.

    Attributes
    ----------
    bundles : list of OpenedBundle
        In the order that they were given.
    not_measured : dict of str to str
        What does not run here, and why.
    """

    bundles: list[OpenedBundle] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimedCall:
    """A contender with what it stands for.

    Attributes
    ----------
    contender : Contender
        To be measured.
    candidate : str
        Name of the engine or peer.
    bundle : str
        Name of the bundle.
    span : str
        What lies inside the clock.
    batch : int
        Images in one call.
    """

    contender: Contender
    candidate: str
    bundle: str
    span: str
    batch: int


@contextlib.contextmanager
def open_all(request: BenchRequest, scratch: Path) -> Iterator[Opened]:
    """Open every bundle of a request and the peers of each checkpoint once.

    Parameters
    ----------
    request : BenchRequest
        What is asked for.
    scratch : pathlib.Path
        Folder for ONNX graphs.

    Raises
    ------
    UnetxError
        A bundle is damaged, two have one name, or nothing of any of them runs here.
    """
    found, with_peers = Opened(), set[tuple[str, int, int]]()
    with contextlib.ExitStack() as stack:
        for index, path in enumerate(request.bundles):
            opened = stack.enter_context(open_engines(path, threads=request.threads))
            if any(bundle.opened.name == opened.name for bundle in found.bundles):
                raise MeasurementError(f"two bundles are called {opened.name}: rename one of the folders")
            found.not_measured.update(opened.why_not)
            manifest = opened.manifest
            key = (manifest.checkpoint.sha256, manifest.input.height, manifest.input.width)
            peers = () if key in with_peers else request.peers
            model = _open_model(opened, request, scratch / f"{index}.onnx", found)
            candidates = [_engine_candidate(engine) for engine in opened.engines]
            if model is not None:
                with_peers.add(key)
                candidates += _open_peers(stack, opened.name, peers, model, found)
            reference = None if model is None else torch_reference(model.model)
            layers = () if model is None else count_work(model.graph_fp32)
            found.bundles.append(OpenedBundle(path, opened, tuple(candidates), reference, layers))
        if not any(bundle.candidates for bundle in found.bundles):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.not_measured.items())
            raise MeasurementError(f"nothing of these bundles runs on this machine: {reasons}")
        yield found


def _engine_candidate(engine: OpenedEngine) -> OpenedCandidate:
    record = engine.record
    describes = f"{record.target}, stored {record.storage_dtype}, computes {record.compute_dtype}"
    return OpenedCandidate(engine.name, describes, engine.session.infer, engine)


def _open_model(opened: OpenedEngines, request: BenchRequest, graph: Path, found: Opened) -> PeerModel | None:
    """Load the FP32 model of a bundle and trace it; None, with a note, where its checkpoint is not there."""
    try:
        checkpoint = find_checkpoint(opened.manifest, request.checkpoints)
        from unetx_exporters.onnx.trace import trace_onnx
        from unetx_opt.models.checkpoint import load_model

        model, contract = load_model(checkpoint), opened.manifest.input
        traced = trace_onnx(model, contract.height, contract.width)
    except UnetxError as error:
        found.not_measured[f"{opened.name}: peers, drift and limits"] = str(error)
        return None
    require("onnx", purpose="writing the graph that peers run").save(traced.model, graph)
    image = np.zeros((1, contract.channels, contract.height, contract.width), np.float32)
    return PeerModel(model, graph, image, request.threads)


def _open_peers(
    stack: contextlib.ExitStack, bundle: str, names: tuple[str, ...], model: PeerModel, found: Opened
) -> list[OpenedCandidate]:
    candidates = []
    for name in names:
        title = f"{bundle} {name}"
        try:
            infer = stack.enter_context(open_peer(name, model))
            infer(model.image_nchw)
        except MeasurementError as error:
            found.not_measured[title] = str(error)
        except Exception as error:  # a peer that fails is a result, and any package may raise anything
            found.not_measured[title] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        else:
            candidates.append(OpenedCandidate(title, PEERS[name].describes, infer, None))
    return candidates


def make_contenders(opened: Opened, request: BenchRequest, image: TimedImage) -> tuple[TimedCall, ...]:
    """Make the contenders of a run: every engine by every span, every peer by the span "engine"."""
    calls: list[TimedCall] = []
    for bundle in opened.bundles:
        image_nchw = prepare_timed(bundle.manifest, image)
        for candidate in bundle.candidates:
            if "engine" in request.spans:
                calls += _batched(bundle, candidate, image_nchw, request.batches)
            if candidate.engine is not None:
                spans = [span for span in request.spans if span != "engine"]
                made = span_contenders(candidate.engine, image, spans)
                calls += [TimedCall(made[span], candidate.name, bundle.opened.name, span, 1) for span in spans]
    return tuple(calls)


def _batched(
    bundle: OpenedBundle, candidate: OpenedCandidate, image_nchw: NDArray[np.float32], batches: tuple[int, ...]
) -> list[TimedCall]:
    calls = []
    for batch in batches:
        images = np.ascontiguousarray(np.repeat(image_nchw, batch, axis=0))
        name = f"{candidate.name} [engine]" if batch == 1 else f"{candidate.name} [engine, batch {batch}]"
        contender = engine_contender(name, candidate.infer, images)
        calls.append(TimedCall(contender, candidate.name, bundle.opened.name, "engine", batch))
    return calls


def prepare_timed(manifest: Manifest, image: TimedImage) -> NDArray[np.float32]:
    """Bring the timed image to a bundle's engines: float32 (1, C, H, W)."""
    from unetx_opt.imaging.files import read_image
    from unetx_opt.imaging.preprocess import prepare_image

    source = read_image(image.path)
    return prepare_image(source.pixels, manifest.input, source.spacing_mm)[0][np.newaxis]
