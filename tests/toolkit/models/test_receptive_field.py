"""The receptive field by its formula against what gradients reach."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.models.receptive_field import receptive_field_px
from unetx_opt.models.variants import VARIANTS, variant_spec
from unetx_opt.specs import Gate, ModelSpec, Upsampling

torch = pytest.importorskip("torch")

SPECS = {
    "two stages": ModelSpec(width=2, depth=1),
    "three stages": ModelSpec(width=2, depth=2),
    "bilinear": ModelSpec(width=2, depth=2, upsampling=Upsampling.BILINEAR),
    "added skips without a gate": ModelSpec(width=2, depth=2, gate=Gate.NEIGHBOURHOOD),
    "neighbourhood gate": ModelSpec(width=4, depth=2, gate=Gate.NEIGHBOURHOOD, gate_levels=(0, 1), gate_window=7),
    "neighbourhood gate that decides it": ModelSpec(
        width=4, depth=1, gate=Gate.NEIGHBOURHOOD, gate_levels=(0,), gate_window=7
    ),
    "additive gate": ModelSpec(width=2, depth=2, gate=Gate.ADDITIVE, gate_levels=(0, 1)),
    "dilated": ModelSpec(width=2, depth=2, dilations=(1, 2, 4, 8)),
    "one dilated stage": ModelSpec(width=2, depth=2, dilations=(2, 3)),
    "three dilated stages": ModelSpec(width=2, depth=3, dilations=(1, 2, 1, 2, 1, 3)),
}


def reached_px(spec: ModelSpec, side: int) -> int:
    """Side of what gradients reach, with pooling that reads all it could: the largest over logits."""
    from unetx_opt.models.unet import build_model

    torch.manual_seed(0)
    model = build_model(spec).double().eval()
    model.pool = torch.nn.AvgPool2d(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.05, 0.1)  # no path cancels another, and no ReLU is shut
    # Only rows are measured: a few columns are enough.
    image = torch.rand(1, spec.in_channels, side, 2 * spec.divisor, dtype=torch.float64, requires_grad=True)
    logits = model(image)
    middle = side // 2 // spec.divisor * spec.divisor
    sides = []
    for row in range(middle, middle + spec.divisor):
        (gradient,) = torch.autograd.grad(logits[0, 0, row, spec.divisor], image, retain_graph=True)
        rows = np.flatnonzero(gradient.abs().sum((0, 1, 3)).numpy())
        assert rows[0] > 0 and rows[-1] < side - 1, "the image is too small to show it"
        sides.append(int(rows[-1] - rows[0] + 1))
    return max(sides)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_formula_gives_what_gradients_reach(spec: ModelSpec) -> None:
    expected = receptive_field_px(spec)
    side = (expected // spec.divisor + 6) * spec.divisor
    assert reached_px(spec, side) == expected


def test_dilation_widens_the_field_at_a_higher_resolution() -> None:
    fields = {name: receptive_field_px(variant_spec(name)) for name in VARIANTS}
    assert fields["focal"] == fields["crf"] == fields["unet"]
    assert fields["dilated"] > fields["unet"]
    assert variant_spec("dilated").divisor < variant_spec("unet").divisor


def test_the_width_of_a_model_does_not_matter() -> None:
    assert receptive_field_px(variant_spec("dilated", width=1)) == receptive_field_px(
        variant_spec("dilated", width=64)
    )
