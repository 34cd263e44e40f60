"""What the CRF refuses, and its tables."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.errors import ImageError, SpecError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, loops, refine

LOGITS = np.zeros((2, 6, 5), dtype=np.float32)
IMAGE = np.zeros((6, 5), dtype=np.uint8)


def _with(value: float) -> np.ndarray:
    logits = LOGITS.copy()
    logits[1, 2, 3] = value
    return logits


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (LOGITS[0], "shape"),
        (np.zeros((9, 6, 5), dtype=np.float32), "1 to 8 classes"),
        (LOGITS[:0], "shape"),
        (LOGITS[:, :0], "shape"),
        (LOGITS.astype(np.int32), "labels"),
        (_with(np.nan), "NaN"),
        (_with(np.inf), "infinity"),
        (np.full((1, 6, 5), 1e300), "infinity"),
    ],
    ids=["plane", "nine", "none", "empty", "integers", "nan", "infinity", "beyond float32"],
)
def test_malformed_logits_are_refused(logits: np.ndarray, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        refine(logits, IMAGE)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE.astype(np.float32), "8-bit"),
        (IMAGE.astype(np.uint16), "8-bit"),
        (np.zeros((6, 5, 3), dtype=np.uint8), "8-bit"),
        (IMAGE.T, "same size"),
    ],
    ids=["float", "16-bit", "colour", "size"],
)
def test_other_images_are_refused(image: np.ndarray, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        refine(LOGITS, image)


@pytest.mark.parametrize(
    "wrong",
    [
        {"smoothness_sxy": 0.0},
        {"bilateral_sxy": float("nan")},
        {"bilateral_srgb": -1.0},
        {"bilateral_compat": -0.1},
        {"smoothness_compat": float("inf")},
        {"iterations": 101},
        {"iterations": 2.5},
        {"iterations": True},
        {"smoothness_sxy": "3"},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        CrfParameters(**wrong)


def test_an_unknown_backend_lists_those_there_are() -> None:
    with pytest.raises(SpecError, match="grid, pydensecrf"):
        refine(LOGITS, IMAGE, backend="lattice")


def test_the_table_of_backends_is_read_only() -> None:
    assert {name: row.name for name, row in BACKENDS.items()} == {
        name: name for name in ("grid", "pydensecrf", "cuda")
    }
    with pytest.raises(TypeError):
        BACKENDS["other"] = BACKENDS["grid"]  # type: ignore[index]


def test_the_uncompiled_tanh_is_that_of_numpy() -> None:
    logits = np.linspace(-40, 40, 801, dtype=np.float32)[np.newaxis]
    found = np.empty_like(logits)
    loops.tanh_half(logits, found)
    np.testing.assert_allclose(found, np.tanh(logits.astype(np.float64) / 2), atol=5e-7)
