"""Checkpoints: round trips, users' state dicts, and files that are wrong, truncated, oversized or hostile."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetx_opt.errors import CheckpointError
from unetx_opt.models import checkpoint as checkpoint_module
from unetx_opt.models.checkpoint import load_model, read_checkpoint, reference_checkpoint, write_checkpoint
from unetx_opt.models.unet import UNet, build_model
from unetx_opt.models.variants import variant_spec

VARIANTS = ("unet", "attention", "dilated")


def make_model(variant: str = "unet", **overrides: object) -> UNet:
    torch.manual_seed(0)
    return build_model(variant_spec(variant, width=2, depth=3, **overrides)).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "unet.safetensors"
    write_checkpoint(path, make_model(), "unet", {"seed": "3"})
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_written_checkpoint_rebuilds_the_same_model(variant: str, tmp_path: Path) -> None:
    model = make_model(variant)
    path = tmp_path / "c.safetensors"
    digest = write_checkpoint(path, model, variant, {"seed": "3"})
    read = read_checkpoint(path)
    assert (read.variant, read.spec, read.sha256, read.metadata) == (variant, model.spec, digest, {"seed": "3"})
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(read)(image), model(image))


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    metadata = {f"key {index}": "value" for index in range(12)}
    written = set()
    for attempt in range(4):
        write_checkpoint(tmp_path / f"{attempt}.safetensors", make_model(), "unet", metadata)
        written.add((tmp_path / f"{attempt}.safetensors").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("training", "size_px"),
    [('{"size_px": 256}', 256), ('{"size_px": "256"}', None), ('{"size_px": 9}', None), ("[1]", None), ("{", None)],
)
def test_the_size_of_the_training_images_is_read_from_the_metadata(
    training: str, size_px: int | None, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "c.safetensors", make_model(), "unet", {"training": training})
    assert read_checkpoint(tmp_path / "c.safetensors").trained_size_px == size_px


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_users_state_dict_is_read_and_its_spec_inferred(variant: str, wrap: str | None, tmp_path: Path) -> None:
    model = make_model(variant, num_classes=3, in_channels=2, upsampling="bilinear")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "c.pt")
    read = read_checkpoint(tmp_path / "c.pt", variant=variant)
    assert read.spec == model.spec
    image = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(read)(image), model(image))


def test_the_additive_gate_is_inferred_from_a_state_dict(tmp_path: Path) -> None:
    model = make_model("attention", gate="additive", gate_levels=(0, 2))
    torch.save(model.state_dict(), tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", variant="attention").spec == model.spec


def test_a_state_dict_with_other_keys_says_which_do_not_fit(tmp_path: Path) -> None:
    state = make_model().state_dict()
    state["extra.weight"] = state.pop("decoder.1.block.conv1.weight")
    state["head.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "c.pt", variant="unet")
    message = str(caught.value)
    assert "1 missing: decoder.1.block.conv1.weight" in message
    assert "1 unknown: extra.weight" in message
    assert "head.bias (5,) (expected (1,))" in message
    assert "\n" not in message


def test_the_wrong_variant_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds variant unet, asked for attention"):
        read_checkpoint(written, variant="attention")
    torch.save(make_model("attention").state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"does not fit variant unet.*decoder\.\d\.gate"):
        read_checkpoint(tmp_path / "c.pt", variant="unet")
    with pytest.raises(CheckpointError, match="pass --variant"):
        read_checkpoint(tmp_path / "c.pt")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 20_000))
def test_a_truncated_checkpoint_is_a_clear_error(cut: int, written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        read_checkpoint(path, variant="unet")


def test_a_longer_file_than_its_header_says_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def _with_header(written: Path, path: Path, change: dict[str, object], metadata: dict[str, str]) -> None:
    data = written.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= metadata
    header |= change
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        ({"head.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, {}),
        ({"head.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, {}),
        ({"head.bias": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, {}),
        ({"head.bias": "x"}, {}),
        ({"__metadata__": {"unetx_format": 1}}, {}),
        ({}, {"unetx_format": "999"}),
        ({}, {"unetx_variant": "resnet"}),
        ({}, {"unetx_spec": "{}"}),
        ({}, {"unetx_spec": "[" * 100_000}),
        ({}, {"unetx_spec": "not json"}),
    ],
    ids=[
        "huge shape",
        "huge offset",
        "negative",
        "not an entry",
        "metadata",
        "format",
        "variant",
        "spec",
        "deep",
        "no",
    ],
)
def test_a_hostile_header_is_a_clear_error(
    change: dict[str, object], metadata: dict[str, str], written: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.safetensors"
    _with_header(written, path, change, metadata)
    with pytest.raises(CheckpointError, match=r"hostile\.safetensors"):
        read_checkpoint(path)


def test_a_spec_of_a_giant_model_costs_no_memory(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    length = int.from_bytes(data[:8], "little")
    spec = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["unetx_spec"]) | {"width": 256, "depth": 6}
    path = tmp_path / "giant.safetensors"
    _with_header(written, path, {}, {"unetx_spec": json.dumps(spec)})
    with pytest.raises(CheckpointError, match="does not fit variant unet of width 256"):
        read_checkpoint(path)


class _Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("/nonexistent/exploit", "w"))  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": _Exploit()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not a plain state dict"):
        read_checkpoint(tmp_path / "c.pt", variant="unet")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Exploit()))
    with pytest.raises(CheckpointError, match="not a"):
        read_checkpoint(tmp_path / "raw.pt", variant="unet")


def test_a_file_of_an_old_pytorch_says_how_to_save_it_again(tmp_path: Path) -> None:
    torch.save(make_model().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.pt is a pickle .* save model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "old.pt", variant="unet")


def test_a_compressed_torch_file_is_refused_before_it_inflates(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(CheckpointError, match="compressed records"):
        read_checkpoint(tmp_path / "bomb.pt", variant="unet")


def test_a_whole_model_object_is_refused(tmp_path: Path) -> None:
    torch.save(make_model(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "c.pt", variant="unet")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt", variant="unet")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, dtype=torch.float16).expand(2**36),
        torch.zeros(1, 2, 1, 1).to_sparse(),
        torch.zeros(1, 2, 1, 1, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_that_the_file_does_not_hold_whole_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save(make_model().state_dict() | {"head.weight": tensor}, tmp_path / "c.pt")
    assert (tmp_path / "c.pt").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        read_checkpoint(tmp_path / "c.pt", variant="unet")


def test_a_file_over_the_limit_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="expected at most 1000"):
        read_checkpoint(written)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.head.bias.fill_(value)
    write_checkpoint(tmp_path / "c.safetensors", model, "unet")
    with pytest.raises(CheckpointError, match=r"head\.bias holds NaN or Inf"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_half_precision_and_plain_safetensors_files_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = make_model()
    save_file({key: value.half() for key, value in model.state_dict().items()}, tmp_path / "c.safetensors")
    read = read_checkpoint(tmp_path / "c.safetensors", variant="unet")
    assert all(tensor.dtype == torch.float32 for tensor in read.tensors.values())
    assert read.spec == model.spec


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=r"is not a file"):
            read_checkpoint(path)
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(CheckpointError, match=r"\.safetensors or \.pt"):
        read_checkpoint(tmp_path / "noise.bin")


def test_a_variant_without_a_reference_checkpoint_says_so_until_one_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.models import checkpoint as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "checkpoint.py"))
    with pytest.raises(CheckpointError, match=r"no reference checkpoint ships for variant crf \(shipped: none\)"):
        reference_checkpoint("crf")
    (tmp_path / "reference").mkdir()
    shipped = tmp_path / "reference" / "crf.safetensors"
    shipped.touch()
    assert reference_checkpoint("crf") == shipped
