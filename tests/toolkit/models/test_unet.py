"""The U-Net of every variant: shapes, padding, operations, junctions, receptive field."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unetx_opt.errors import SpecError
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import VARIANTS, get_variant, variant_spec
from unetx_opt.specs import Gate, ModelSpec, Upsampling


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize("classes", [1, 3])
def test_every_variant_gives_logits_of_the_input_size(variant: str, upsampling: Upsampling, classes: int) -> None:
    spec = variant_spec(variant, width=2, depth=3, upsampling=upsampling, num_classes=classes, in_channels=2)
    model = build_model(spec).eval()
    for height, width in [(32, 48), (33, 41), (8, 9)]:
        assert model(torch.rand(2, 2, height, width)).shape == (2, classes, height, width)


@pytest.mark.parametrize("gate", list(Gate))
@pytest.mark.parametrize("window", [3, 5, 7])
def test_both_gates_build_at_every_window(gate: Gate, window: int) -> None:
    model = build_model(variant_spec("attention", width=4, depth=2, gate=gate, gate_window=window)).eval()
    assert model(torch.rand(1, 1, 16, 16)).shape == (1, 1, 16, 16)


def test_attention_needs_at_least_15_percent_fewer_operations_than_unet_at_equal_width() -> None:
    def operations(variant: str) -> int:
        with torch.device("meta"):
            model = build_model(variant_spec(variant))
            image = torch.empty(1, 1, 512, 512)
        with FlopCounterMode(display=False) as counter:
            model(image)
        return int(counter.get_total_flops())

    assert operations("attention") <= 0.85 * operations("unet")


def test_focal_has_the_graph_of_unet() -> None:
    assert variant_spec("focal") == variant_spec("unet")
    assert get_variant("focal").loss != get_variant("unet").loss


def test_a_padded_image_gives_what_its_own_padding_gives() -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec(width=2, depth=2)).eval()
    image = torch.rand(1, 1, 13, 18)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 3), mode="replicate")
    with torch.no_grad():
        assert torch.equal(model(image), model(padded)[:, :, :13, :18])


@pytest.mark.parametrize("variant", ["unet", "attention", "dilated"])
def test_there_is_a_junction_per_skip_and_one_at_the_bottom(variant: str) -> None:
    spec = variant_spec(variant, width=4, depth=4)
    model = build_model(spec).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        logits, junctions = model.forward_with_junctions(image)
        assert torch.equal(logits, model(image))
    levels = list(reversed(range(spec.poolings)))
    assert list(junctions) == ["bottleneck", *(f"skip{level}" for level in levels)]
    for level in levels:
        expected = 2 * spec.channels(level) if spec.gate is None else spec.channels(level)
        assert junctions[f"skip{level}"].shape == (1, expected, 64 >> level, 64 >> level)


def test_dilation_keeps_resolution_and_widens_the_receptive_field() -> None:
    def field_px(variant: str) -> int:
        torch.manual_seed(0)
        model = build_model(variant_spec(variant, width=2, depth=4)).eval().double()
        with torch.no_grad():
            for parameter in model.parameters():  # nothing cancels and no ReLU is dead
                parameter.abs_()
        image = torch.rand(1, 1, 512, 512, dtype=torch.double, requires_grad=True)
        model(image)[0, 0, 256, 256].backward()
        assert image.grad is not None
        touched = image.grad[0, 0].abs().sum(0).nonzero()
        return int(touched.max() - touched.min()) + 1

    assert variant_spec("dilated").poolings == variant_spec("unet").poolings - 1
    assert field_px("dilated") > field_px("unet")


def test_a_wrong_input_shape_says_what_is_expected() -> None:
    model = build_model(ModelSpec(width=2, depth=1))
    with pytest.raises(SpecError, match=r"reads \(N, 1, H, W\), got \(1, 3, 8, 8\)"):
        model(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 0},
        {"width": 257},
        {"depth": 7},
        {"num_classes": 0},
        {"gate_window": 4},
        {"gate_levels": (0,)},
        {"gate": Gate.ADDITIVE, "gate_levels": (4,)},
        {"gate": Gate.ADDITIVE, "gate_levels": (1, 1)},
        {"dilations": (1, 2, 4)},
        {"dilations": (0, 1)},
    ],
    ids=str,
)
def test_a_spec_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=r"expected|but there is no gate|twice"):
        ModelSpec(**fields)  # type: ignore[arg-type]


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="unet, focal, attention, dilated, crf, combined"):
        get_variant("resnet")
