"""One radiograph in, one mask on its own grid out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from unetx_opt.errors import EngineError
from unetx_opt.lifetime import Closing
from unetx_opt.runtime.sessions.base import Session
from unetx_opt.specs import EngineRecord, InputContract

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unetx_opt.imaging.refinement import Refiner

__all__ = ["Segmentation", "Segmenter"]


@dataclass(frozen=True)
class Segmentation:
    """What an engine says about one image.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 (H, W) on the grid of the image: indices into `label_names`.
    label_names : tuple of str
        Names of the values of `labels`; index 0 is the background.
    logits_khw : numpy.ndarray
        float32 (K, H, W) on the grid of the image, after the step where there is one; K is 1 for a binary mask.
    spacing_mm : tuple of float or None
        Distance between the centres of two rows and of two columns, as given with the image.
    timings_ms : mapping of str to float
        "prepare", "infer", "restore" and "total" of this call, and "refine" where a step follows the engine.
    target : str
        Target of the engine that ran.
    compute_dtype : str
        Type of its arithmetic, by ONNX name.
    """

    labels: NDArray[np.uint8]
    label_names: tuple[str, ...]
    logits_khw: NDArray[np.float32] = field(repr=False)
    spacing_mm: tuple[float, float] | None
    timings_ms: Mapping[str, float]
    target: str
    compute_dtype: str

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 (K, H, W) in [0, 1], computed when first asked for and not counted in `timings_ms`."""
        from unetx_opt.imaging.postprocess import probabilities

        return probabilities(self.logits_khw)

    @cached_property
    def areas_px(self) -> Mapping[str, int]:
        """Label name -> pixels, without the background."""
        import numpy as np

        counts = np.bincount(self.labels.ravel(), minlength=len(self.label_names))
        names = enumerate(self.label_names)
        return MappingProxyType({name: int(counts[index]) for index, name in names if index > 0})

    @cached_property
    def areas_mm2(self) -> Mapping[str, float] | None:
        """Label name -> area in the plane of the pixel spacing in mm2; None where the spacing is unknown."""
        if self.spacing_mm is None:
            return None
        pixel_mm2 = self.spacing_mm[0] * self.spacing_mm[1]
        return MappingProxyType({name: pixels * pixel_mm2 for name, pixels in self.areas_px.items()})


class Segmenter(Closing):
    """A loaded engine with its input contract: a context manager.

    `segment` may be called from several threads at once: it keeps nothing between calls, and the session runs
    or queues what arrives together. `close` may be called twice, and waits for no one: a call that has reached
    the engine ends normally, a later one is an `EngineError`.

    Parameters
    ----------
    session : Session
        The engine; the segmenter closes it.
    record : EngineRecord
        What the bundle says about that engine.
    contract : InputContract
        How images are brought to it.
    label_names : tuple of str
        Names of the mask's values, the background first.
    passed_over : mapping of str to str, optional
        Engines of the bundle that were not taken, with their reasons.
    refiner : Refiner, optional
        Step between the engine's logits and the mask.
    """

    def __init__(
        self,
        session: Session,
        record: EngineRecord,
        contract: InputContract,
        label_names: tuple[str, ...],
        passed_over: Mapping[str, str] | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        self.record = record
        self.contract = contract
        self.label_names = label_names
        self.passed_over: Mapping[str, str] = MappingProxyType(dict(passed_over or {}))
        self.refiner = refiner
        #: SHA-256 (hex) of the bundle's manifest, which names what made a mask; empty without a bundle.
        self.manifest_sha256 = ""
        self._session: Session | None = session
        self._target = session.target
        self._compute_dtype = session.compute_dtype

    @property
    def target(self) -> str:
        """Target of the loaded engine."""
        return self._target

    @property
    def compute_dtype(self) -> str:
        """Type that the loaded engine computes in, by ONNX name."""
        return self._compute_dtype

    def segment(
        self,
        image: NDArray[Any],
        spacing_mm: tuple[float, float] | None = None,
        *,
        pixel_aspect: float | None = None,
    ) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image : numpy.ndarray
            (H, W), integer or float grey values, larger is brighter.
        spacing_mm : tuple of float, optional
            Distance between the centres of two rows and of two columns; without it there are no areas in mm2.
        pixel_aspect : float, optional
            Height of a pixel over its width, for an image whose spacing is unknown and whose aspect is not.

        Returns
        -------
        Segmentation
            On the grid of the image.

        Raises
        ------
        ImageError
            The array is not an image that can be segmented.
        EngineError
            The segmenter is closed, the engine fails, or its logits are not finite.
        SpecError
            The step after the engine does not fit its logits.
        """
        from unetx_opt.imaging.postprocess import label_mask, restore_logits
        from unetx_opt.imaging.preprocess import prepare_image

        started = time.perf_counter()
        relative = (pixel_aspect, 1.0) if spacing_mm is None and pixel_aspect is not None else spacing_mm
        image_chw, geometry = prepare_image(image, self.contract, relative)
        prepared = time.perf_counter()
        logits_nchw = self._open_session().infer(image_chw[None])
        inferred = refined = time.perf_counter()
        times = {"prepare": prepared - started, "infer": inferred - prepared}
        logits_chw = self._check_logits(logits_nchw)
        if self.refiner is not None:
            logits_chw = self.refiner.refine(logits_chw, image_chw, geometry)
            refined = time.perf_counter()
            times["refine"] = refined - inferred
        logits_khw = restore_logits(logits_chw, geometry)
        labels = label_mask(logits_khw)
        ended = time.perf_counter()
        times |= {"restore": ended - refined, "total": ended - started}
        return Segmentation(
            labels=labels,
            label_names=self.label_names,
            logits_khw=logits_khw,
            spacing_mm=spacing_mm,
            timings_ms=MappingProxyType({name: seconds * 1e3 for name, seconds in times.items()}),
            target=self._target,
            compute_dtype=self._compute_dtype,
        )

    def warm_up(self) -> float:
        """Run the engine, and the step if there is one, once on an empty image; return how long that took in ms.

        The first inference of most engines also allocates memory or compiles for the shape.
        """
        import numpy as np

        contract = self.contract
        image_chw = np.full((contract.channels, contract.height, contract.width), contract.padding_value, np.float32)
        started = time.perf_counter()
        logits_nchw = self._open_session().infer(image_chw[None])
        if self.refiner is not None:
            from unetx_opt.imaging.preprocess import letterbox

            geometry = letterbox((contract.height, contract.width), contract)
            # What an engine makes of an empty image need not be finite.
            self.refiner.refine(np.zeros_like(logits_nchw[0]), image_chw, geometry)
        return (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Free the engine."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open_session(self) -> Session:
        session = self._session
        if session is None:
            raise EngineError(f"the segmenter of {self._target} is closed: open the bundle again")
        return session

    def _check_logits(self, logits_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        classes = len(self.label_names)
        channels = 1 if classes == 2 else classes
        if logits_nchw.ndim != 4 or logits_nchw.shape[:2] not in ((1, channels), (1, classes)):
            raise EngineError(
                f"{self._target} gave logits of shape {logits_nchw.shape}, expected (1, {channels}, "
                f"{self.contract.height}, {self.contract.width}): the engine does not fit the bundle's labels"
            )
        if not np.isfinite(logits_nchw).all():
            count = int(np.count_nonzero(~np.isfinite(logits_nchw)))
            raise EngineError(
                f"{self._target} gave {count} logits that are NaN or infinite: there is no mask for this image, "
                "use another --target or a wider precision"
            )
        logits_khw: NDArray[np.float32] = logits_nchw[0]
        return logits_khw
