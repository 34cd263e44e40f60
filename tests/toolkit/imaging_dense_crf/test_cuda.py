"""The CUDA backend's row; its arithmetic is compared on the host under sanitizers, and here where a GPU is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unetx_kernels.dense_crf import inference
from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.errors import KernelError
from unetx_opt.errors import EngineError, MissingPackageError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, backends, cuda, preferred_backend, refine
from unetx_opt.imaging.refinement import crf_step_parameters, make_refiner
from unetx_opt.specs import InputContract

LOGITS = np.random.default_rng(0).normal(size=(1, 30, 44)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (30, 44)).astype(np.uint8)

needs_both = pytest.mark.skipif(
    any(BACKENDS[name].why_not() for name in ("cuda", "grid")),
    reason=str(BACKENDS["cuda"].why_not() or BACKENDS["grid"].why_not()),
)


def test_the_gpu_is_preferred_where_it_can_be_used_and_the_processor_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "why_not_on_gpu", lambda: None)
    assert preferred_backend() == "cuda"
    monkeypatch.setattr(inference, "why_not_on_gpu", lambda: "no GPU")
    assert preferred_backend() == "grid"
    monkeypatch.setattr(backends, "find", lambda module: False)
    assert preferred_backend() == "grid"


def test_without_a_gpu_the_step_says_why_before_an_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "why_not_on_gpu", lambda: "no GPU")
    parameters = crf_step_parameters(CrfParameters(), 64)
    with pytest.raises(MissingPackageError, match="the step dense_crf cannot run: no GPU"):
        make_refiner("dense_crf", parameters, InputContract(height=64, width=64), "cuda")


def test_the_kernels_are_given_both_classes_and_every_energy_by_a_recording_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []

    def record(*given: Any) -> Any:
        told.append(given)
        return np.stack([np.full(IMAGE.shape, share, np.float32) for share in (0.25, 0.75)])

    monkeypatch.setattr(cuda, "infer_on_gpu", record)
    found = refine(LOGITS, IMAGE, CrfParameters(1.0, 2.0, 30.0, 4.0, 5.0, iterations=6), backend="cuda")
    ((logits, image, energies, iterations),) = told
    np.testing.assert_array_equal(logits, np.concatenate([np.zeros_like(LOGITS), LOGITS]))
    np.testing.assert_array_equal(image, IMAGE)
    assert (energies, iterations) == (Energies(1.0, 2.0, 30.0, 4.0, 5.0), 6)
    assert (found.labels_hw == 1).all()
    np.testing.assert_allclose(found.logits_khw, np.log(3), rtol=1e-6)


def test_no_update_needs_no_gpu() -> None:
    found = refine(LOGITS, IMAGE, CrfParameters(iterations=0), backend="cuda").probabilities_khw
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-LOGITS)), atol=1e-6)


def test_a_gpu_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise KernelError("a GPU fails: out of memory")

    monkeypatch.setattr(cuda, "infer_on_gpu", fail)
    with pytest.raises(EngineError, match="the CRF cannot run on the GPU: a GPU fails: out of memory"):
        refine(LOGITS, IMAGE, backend="cuda")


@needs_both
@pytest.mark.parametrize("classes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [(30, 44), (257, 512)], ids=str)
def test_the_gpu_and_the_processor_give_one_result(classes: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(classes)
    y, x = np.mgrid[: size[0], : size[1]] / size[1]
    image = np.clip(120 + 80 * np.sin(9 * x + 4 * y) + random.normal(size=size) * 6, 0, 255).astype(np.uint8)
    logits = random.normal(scale=1.5, size=(classes, *size)).astype(np.float32)
    found, again, expected = (
        refine(logits, image, backend=name).probabilities_khw for name in ("cuda", "cuda", "grid")
    )
    np.testing.assert_allclose(found, expected, atol=6e-5)  # sums in float32, in another order
    assert found.tobytes() == again.tobytes()
