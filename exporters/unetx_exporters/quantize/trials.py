"""Plans run on images: a few that rank plans, and the gate itself, which decides about one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.gate import DriftMeasurement, DriftOptions, Engine, measure_drift
from unetx_exporters.gate_images import GateImages
from unetx_exporters.quantize.candidates import LayerGroup, Plan
from unetx_exporters.quantize.sensitivity import Loss, Verdict
from unetx_exporters.quantize.state import SearchState
from unetx_opt.metrics.gates import ImageDrift, decide_gate, explain_failure, get_gate
from unetx_opt.specs import InputContract

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["StoredReference", "TrialSetup", "Trials"]

#: Images that rank plans. They rank only: the gate decides on all of its images.
PROXY_COUNT: Final = 6
#: A gate is asked this many images at a time, those that suffered most before first.
_CHUNK: Final = 6
_PLAN: Final = "plan"


class StoredReference:
    """A reference engine that computes each image once and keeps its logits in files.

    Parameters
    ----------
    engine : callable
        See `unetx_exporters.gate.Engine`.
    directory : pathlib.Path
        An empty or missing directory; memory holds the logits of one image at a time.
    """

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits of an image (1, C, H, W)."""
        path = self._directory / f"{hashlib.sha256(image_nchw.tobytes()).hexdigest()}.npy"
        if not path.exists():
            logits = self._engine(image_nchw)
            np.save(path, logits)
            return logits
        stored: NDArray[np.float32] = np.load(path)
        return stored


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """What plans are run on.

    Attributes
    ----------
    groups : tuple of LayerGroup
        Whose types a plan gives.
    quantize : callable
        Takes layer name to type; gives the graph.
    open_graph : callable
        Takes a graph; gives a context manager of something that runs it.
    reference : callable
        The FP32 model, preferably a `StoredReference`.
    images : GateImages
        Of the gate.
    contract : InputContract
        How an image is brought to an engine.
    gate : str
        Its name.
    drift : DriftOptions
        Class names, and how logits become the masks that are compared.
    """

    groups: tuple[LayerGroup, ...]
    quantize: Callable[[Mapping[str, str]], onnx.ModelProto]
    open_graph: Callable[[onnx.ModelProto], Any]
    reference: Engine
    images: GateImages
    contract: InputContract
    gate: str
    drift: DriftOptions


class Trials:
    """A `Judge` that runs graphs.

    Parameters
    ----------
    setup : TrialSetup
        What plans are run on.
    state : SearchState
        Remembers what was measured.
    """

    def __init__(self, setup: TrialSetup, state: SearchState) -> None:
        self._setup = setup
        self._state = state
        self._order = list(range(len(setup.images)))

    @property
    def proxy_indices(self) -> tuple[int, ...]:
        """Images that rank plans: spread over the set, which may be sorted by where the images come from."""
        count = len(self._setup.images)
        return tuple(sorted({round(step) for step in np.linspace(0, count - 1, min(PROXY_COUNT, count))}))

    def proxy(self, plan: Plan) -> Loss:
        """Measure a plan on a few images, to rank it."""
        return Loss(**self._state.recall(f"proxy:{plan.key}", lambda: self._measure_proxy(plan)))

    def gate(self, plan: Plan, *, complete: bool = False) -> Verdict:
        """Decide the gate for a plan; `complete` looks at every image even of one that fails."""
        kind = "complete" if complete else "gate"
        return Verdict(**self._state.recall(f"{kind}:{plan.key}", lambda: self._measure_gate(plan, complete)))

    def graph(self, plan: Plan) -> onnx.ModelProto:
        """Make the graph of a plan."""
        return self._setup.quantize(plan.layer_types(self._setup.groups))

    def measure_together(self, plans: Mapping[str, Plan], rounds: int) -> DriftMeasurement:
        """Run several plans on the proxy images in turns, so that their times can be compared.

        Parameters
        ----------
        plans : mapping of str to Plan
            By name.
        rounds : int
            How often each image is gone through, after one round that warms up.
        """
        with contextlib.ExitStack() as stack:
            engines = {
                name: stack.enter_context(self._setup.open_graph(self.graph(plan))) for name, plan in plans.items()
            }
            _, *measured = (self._drift(engines, self.proxy_indices) for _ in range(rounds + 1))
        call_ms = {name: tuple(took for part in measured for took in part.call_ms[name]) for name in plans}
        return dataclasses.replace(measured[-1], call_ms=call_ms)

    def _measure_proxy(self, plan: Plan) -> dict[str, float]:
        with self._setup.open_graph(self.graph(plan)) as engine:
            drifts = self._drift({_PLAN: engine}, self.proxy_indices).drifts[_PLAN]
        return dataclasses.asdict(_loss(drifts))

    def _measure_gate(self, plan: Plan, complete: bool) -> dict[str, Any]:
        drifts: list[ImageDrift] = []
        images = self._setup.images
        with self._setup.open_graph(self.graph(plan)) as engine:
            for start in range(0, len(images), _CHUNK):
                chunk = self._order[start : start + _CHUNK]
                found = self._drift({_PLAN: engine}, chunk).drifts[_PLAN]
                drifts.extend(found)
                refuted = None if complete else self._refuted(found)
                if refuted is not None:
                    self._put_first(refuted, drifts)
                    seen = min(start + _CHUNK, len(images))
                    return dataclasses.asdict(Verdict(False, self._explain_one(refuted), seen))
        decision = decide_gate(self._setup.gate, drifts)
        if not decision.passed:
            self._put_first(max(drifts, key=lambda drift: drift.severity), drifts)
        explanation = "" if decision.passed else explain_failure(decision)
        return dataclasses.asdict(Verdict(decision.passed, explanation, len(images)))

    def _drift(self, engines: Mapping[str, Engine], indices: Sequence[int]) -> DriftMeasurement:
        setup = self._setup
        images = (setup.images.read(index) for index in indices)
        return measure_drift(setup.reference, engines, images, setup.contract, setup.drift)

    def _refuted(self, drifts: Sequence[ImageDrift]) -> ImageDrift | None:
        """Give the worst image, if it fails the gate whatever the others are."""
        limit = get_gate(self._setup.gate).worst_dice_difference
        failing = [drift for drift in drifts if drift.is_broken or drift.score_difference < limit]
        return max(failing, key=lambda drift: drift.severity, default=None)

    def _explain_one(self, drift: ImageDrift) -> str:
        return (
            f"image {drift.name}, {drift.class_name}: the Dice difference is {drift.score_difference:.4f}, "
            f"{drift.non_finite_logits} logits are NaN or infinite"
        )

    def _put_first(self, worst: ImageDrift, drifts: Sequence[ImageDrift]) -> None:
        """Move the worst image to the front: it is likely to refute the next plan as well."""
        names = list(dict.fromkeys(drift.name for drift in drifts))
        index = self._order[names.index(worst.name)]
        self._order.remove(index)
        self._order.insert(0, index)


def _loss(drifts: Sequence[ImageDrift]) -> Loss:
    return Loss(
        broken=sum(drift.is_broken for drift in drifts) / len(drifts),
        disagreement=float(np.mean([1.0 - drift.dice_engine_vs_reference for drift in drifts])),
        logits=math.fsum(drift.max_logit_difference for drift in drifts) / len(drifts),
    )
