"""Options of a run: ranges, precisions, the course of the learning rate."""

from __future__ import annotations

from typing import Any

import pytest

from unetx_opt.errors import SpecError
from unetx_opt.training.options import TrainingOptions, choose_precision, learning_rate_at


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
