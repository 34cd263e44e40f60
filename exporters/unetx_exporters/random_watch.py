"""Engines of a network with random weights: what trained weights hide, such as channels that stay zero, shows."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.evaluation import BuiltEngine
from unetx_exporters.graphs import GraphRequest, GraphSet, break_fusions, make_graphs, parity_inputs
from unetx_exporters.int8 import with_quantized
from unetx_exporters.quantize.images import calibration_set
from unetx_exporters.quantize.request import QuantizeRequest
from unetx_exporters.quantize.stage import Quantization
from unetx_exporters.sentinel import JunctionRow, SentinelInputs, watch_engine
from unetx_exporters.targets import TargetRow
from unetx_opt.optional import require
from unetx_opt.specs import ModelSpec, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.models.unet import UNet

__all__ = ["random_model", "watch_images", "watch_random"]

_SEED: Final = 0
_SETTLING_PASSES: Final = 3
_CALIBRATION_IMAGES: Final = 4

#: Builds engines of graphs under a directory.
Builder = Callable[[Sequence[TargetRow], GraphSet, Path], Sequence[BuiltEngine]]


def watch_random(
    spec: ModelSpec, request: GraphRequest, targets: Sequence[TargetRow], build: Builder, *, unfused: bool = False
) -> tuple[JunctionRow, ...]:
    """Build engines of a random network of the same shape for the targets that run here, and watch them.

    Parameters
    ----------
    spec : ModelSpec
        Shape of the network.
    request : GraphRequest
        Of the build; its directory is not written to.
    targets : sequence of TargetRow
        Those of CPUs are built.
    build : callable
        Builds engines.
    unfused : bool
        Break fusions at the junctions.
    """
    runnable = [row for row in targets if row.scheme == "cpu"]
    if not runnable:
        return ()
    with tempfile.TemporaryDirectory(prefix="unetx-watch-") as scratch:
        own = dataclasses.replace(request, directory=Path(scratch), images=None)
        images = watch_images(own)
        model = random_model(spec, images)
        graphs = make_graphs(model, own)
        if request.precision is Precision.INT8:
            graphs = _quantized(graphs, own)
        if unfused:
            break_fusions(graphs)
        engines = build(runnable, graphs, Path(scratch) / "bundle")
        inputs = SentinelInputs(model, "random", graphs.junctions, images, Path(scratch) / "bundle")
        return tuple(row for engine in engines for row in watch_engine(engine, inputs))


def watch_images(request: GraphRequest) -> tuple[NDArray[np.float32], ...]:
    """Take what graphs are compared on, one image at a time: noise, then radiographs or phantoms."""
    return tuple(np.ascontiguousarray(image[:1]) for image in parity_inputs(request))


def random_model(spec: ModelSpec, images: Sequence[NDArray[np.float32]]) -> UNet:
    """Make a network with random weights whose activations have the usual size at every depth.

    Parameters
    ----------
    spec : ModelSpec
        Its shape.
    images : sequence of numpy.ndarray
        (1, C, H, W) float32 on which the statistics of its normalisations settle; without them, what comes from
        the depth of the network would vanish beside what the skip connections bring.
    """
    from unetx_opt.models.unet import build_model

    torch = require("torch", purpose="making a random network")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        model = build_model(spec)
    batch = torch.from_numpy(np.concatenate(images))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(_SETTLING_PASSES):
            model.train()(batch)
    return model.eval()


def _quantized(graphs: GraphSet, request: GraphRequest) -> GraphSet:
    chosen = calibration_set(None, request.contract.height, _SEED)
    few = dataclasses.replace(
        chosen, indices=chosen.indices[:_CALIBRATION_IMAGES], sha256=chosen.sha256[:_CALIBRATION_IMAGES]
    )
    asked = QuantizeRequest(graphs.fp32, few, request.contract, ("cpu",), request.directory, measured=False)
    return with_quantized(graphs, Quantization(asked, lambda stage, done, total: None).graphs())
