"""Options of a run: ranges, precisions, the course of the learning rate."""

from __future__ import annotations

from typing import Any

import pytest

from unetx_opt.errors import SpecError
from unetx_opt.training.options import (
    PRECISIONS,
    Resources,
    TrainingOptions,
    choose_precision,
    choose_workers,
    learning_rate_at,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size_px", 31),
        ("epochs", 0),
        ("patience", 0),
        ("batch_size", 1),
        ("seed", -1),
        ("average_decay", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("clip_norm", -1.0),
        ("clip_norm", float("nan")),
        ("precision", "fp8"),
        ("device", "tpu"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field.replace("_", ".")):
        TrainingOptions("unet", **{field: value})


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_hundredth() -> None:
    options = TrainingOptions("unet", epochs=10, learning_rate=1e-2)
    rates = [learning_rate_at(options, step, 20) for step in range(200)]
    assert rates[0] == pytest.approx(1e-2 / 21)
    assert max(rates) == rates[20] == pytest.approx(1e-2)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4, rel=0.05)


def test_the_precision_that_is_chosen_pays_on_this_device() -> None:
    pytest.importorskip("torch", reason="the choice asks torch about the CPU")
    assert choose_precision("cpu") in ("bf16", "fp32")


def test_half_precision_is_for_gpus_without_bfloat16() -> None:
    assert list(PRECISIONS) == ["bf16", "fp16", "fp32"]
    assert PRECISIONS["fp16"].why_not("cuda") is None
    assert "GPU" in str(PRECISIONS["fp16"].why_not("cpu"))


def test_a_cpu_that_trains_gets_no_workers_and_a_gpu_at_least_one() -> None:
    assert choose_workers("cpu") == 0
    assert 1 <= choose_workers("cuda") <= 8


@pytest.mark.parametrize("workers", [-1, 257])
def test_a_number_of_workers_out_of_range_is_named(workers: int) -> None:
    with pytest.raises(SpecError, match=f"workers is {workers}"):
        Resources(workers=workers)
