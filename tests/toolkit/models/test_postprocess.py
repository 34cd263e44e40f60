"""The step after the network in checkpoints: any parameters come back, and nothing else is taken for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.bundle.parts import Postprocess
from unetx_opt.errors import CheckpointError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters
from unetx_opt.imaging.refinement import crf_step_parameters, make_refiner
from unetx_opt.models.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetx_opt.models.postprocess import METADATA_KEY, StepRecord, read_step, read_weights, step_metadata
from unetx_opt.models.variants import VARIANTS, get_variant, variant_spec
from unetx_opt.specs import InputContract

torch = pytest.importorskip("torch")

widths, compats = st.floats(0.5, 10_000), st.floats(0, 1e4)
parameters = st.builds(
    crf_step_parameters,
    st.builds(CrfParameters, widths, compats, widths, widths, compats, st.integers(0, 100)),
    st.integers(16, 8192),
)
STEP = StepRecord("dense_crf", crf_step_parameters(CrfParameters(), 256), {"dice": 0.9})


def checkpoint_of(variant: str, **metadata: str) -> Checkpoint:
    return Checkpoint(variant, variant_spec(variant), {}, "0" * 64, metadata, "x.safetensors")


def write_tiny(path: Path, variant: str, step: StepRecord | None = None) -> Path:
    from unetx_opt.models.unet import build_model

    metadata = None if step is None else {METADATA_KEY: step_metadata(step)}
    write_checkpoint(path, build_model(variant_spec(variant, width=2, depth=2)), variant, metadata)
    return path


@given(values=parameters, fit=st.dictionaries(st.text(max_size=5), st.floats(0, 1) | st.booleans(), max_size=3))
def test_any_parameters_come_back_from_a_header_and_from_a_manifest_bit_for_bit(
    values: dict[str, float], fit: dict[str, float]
) -> None:
    record = StepRecord("dense_crf", values, fit)
    found = read_step(checkpoint_of("crf", postprocess=step_metadata(record)))
    assert found is not None
    assert (found.name, dict(found.parameters), dict(found.fit)) == ("dense_crf", values, fit)
    written = Postprocess(name=found.name, parameters=dict(found.parameters)).model_dump_json()
    read = Postprocess.model_validate_json(written)
    assert (read.grid, read.parameters) == ("input", values)
    if BACKENDS["grid"].why_not() is None:
        assert dict(make_refiner(read.name, read.parameters, InputContract()).parameters) == values


@pytest.mark.parametrize("variant", ["crf", "combined"])
def test_a_file_carries_its_step(tmp_path: Path, variant: str) -> None:
    path = write_tiny(tmp_path / "c.safetensors", variant, STEP)
    assert read_step(read_checkpoint(path, variant=variant)) == STEP


@pytest.mark.parametrize("variant", [row.name for row in VARIANTS.values() if row.postprocess is None])
def test_variants_that_end_with_the_network_have_no_step_whatever_their_header_says(variant: str) -> None:
    assert read_step(checkpoint_of(variant, postprocess="nonsense")) is None


@pytest.mark.parametrize("variant", ["crf", "combined"])
def test_a_file_without_its_step_says_how_to_get_one(variant: str) -> None:
    with pytest.raises(CheckpointError, match=rf"train --variant {variant} --weights x\.safetensors"):
        read_step(checkpoint_of(variant))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"name": "dense_crf"}',
        '{"name": 1, "parameters": {}}',
        '{"name": "dense_crf", "parameters": []}',
        '{"name": "dense_crf", "parameters": {"iterations": "5"}}',
        '{"name": "dense_crf", "parameters": {"iterations": true}}',
        '{"name": "dense_crf", "parameters": {"iterations": NaN}}',
        '{"name": "dense_crf", "parameters": {"iterations": 1e999}}',
        '{"name": "dense_crf", "parameters": {}, "fit": 1}',
        "[" * 100_000,
        json.dumps({"name": "dense_crf", "parameters": {str(k): 0.0 for k in range(200)}}),
    ],
    ids=lambda text: text[:60] or "empty",
)
def test_a_step_that_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.safetensors: its step .* cannot be read") as caught:
        read_step(checkpoint_of("crf", postprocess=text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_another_step_than_the_variants_is_refused() -> None:
    text = step_metadata(StepRecord("graph_cut", {}))
    with pytest.raises(CheckpointError, match="holds the step 'graph_cut', variant crf ends with dense_crf"):
        read_step(checkpoint_of("crf", postprocess=text))


@pytest.mark.parametrize(("variant", "source"), [("crf", "unet"), ("crf", "crf"), ("combined", "combined")])
def test_weights_are_taken_from_the_same_network(tmp_path: Path, variant: str, source: str) -> None:
    path = write_tiny(tmp_path / "w.safetensors", source)
    taken = read_weights(path, variant)
    assert (taken.variant, taken.sha256) == (source, read_checkpoint(path).sha256)


@pytest.mark.parametrize(("variant", "source"), [("crf", "focal"), ("crf", "attention"), ("combined", "dilated")])
def test_weights_of_another_network_or_loss_are_refused(tmp_path: Path, variant: str, source: str) -> None:
    path = write_tiny(tmp_path / "w.safetensors", source)
    with pytest.raises(CheckpointError, match=f"holds variant {source}, asked for {variant}"):
        read_weights(path, variant)


def test_a_state_dict_names_no_variant_and_is_taken_by_its_shapes(tmp_path: Path) -> None:
    from unetx_opt.models.unet import build_model

    torch.save(build_model(variant_spec("unet", width=2, depth=2)).state_dict(), tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt", "crf").spec == variant_spec("unet", width=2, depth=2)


def test_a_damaged_file_is_refused_as_it_is_without_a_step(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "w.safetensors", "unet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError) as direct:
        read_checkpoint(path)
    with pytest.raises(CheckpointError) as taken:
        read_weights(path, "crf")
    assert str(taken.value) == str(direct.value)


def test_crf_is_unet_and_combined_is_everything_else_before_the_step() -> None:
    assert variant_spec("crf") == variant_spec("unet")
    combined, attention, dilated = (variant_spec(name) for name in ("combined", "attention", "dilated"))
    assert (combined.gate, combined.dilations) == (attention.gate, dilated.dilations)
    assert get_variant("combined").loss == get_variant("focal").loss != get_variant("unet").loss
    assert get_variant("crf").loss == get_variant("unet").loss
