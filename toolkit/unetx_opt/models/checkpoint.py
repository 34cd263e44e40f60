"""Checkpoint files: safetensors with the spec in the header, and users' PyTorch state dicts, never unpickled.

A checkpoint written here is one safetensors file whose header metadata holds the format version, the variant, the
model spec and what the training left (all strings). Everything is checked against the header before a tensor is
loaded, so that a hostile file costs at most its own size in memory.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import CheckpointError, SpecError
from unetx_opt.files import write_file
from unetx_opt.models.fit import COUNTER, check_finite, check_fit
from unetx_opt.models.state_dict import infer_spec, read_state_dict
from unetx_opt.models.variants import get_variant
from unetx_opt.optional import require
from unetx_opt.specs import MAX_SIDE_PX, ModelSpec, model_spec_from_json, model_spec_to_json

if TYPE_CHECKING:
    import torch

    from unetx_opt.models.unet import UNet

__all__ = [
    "Checkpoint",
    "OtherVariantError",
    "load_model",
    "read_checkpoint",
    "reference_checkpoint",
    "write_checkpoint",
]

FORMAT_VERSION: Final = "1"
MAX_FILE_BYTES: Final = 8 * 2**30
MAX_HEADER_BYTES: Final = 4 * 2**20
# The magic number of torch.save before its files were zip archives.
_OLD_PICKLE: Final = b"\x80\x02\x8a\x0a"
_PURPOSE: Final = "reading a checkpoint"
_RESERVED: Final = ("unetx_format", "unetx_variant", "unetx_spec")


class OtherVariantError(CheckpointError):
    """The file names another variant than the one that was asked for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights and the spec that they fit.

    Attributes
    ----------
    variant : str
        A key of the table of variants.
    spec : ModelSpec
        Rebuilds the module.
    tensors : mapping of str to torch.Tensor
        float32, exactly the parameters and statistics of the module.
    sha256 : str
        Of the file's bytes, hexadecimal.
    metadata : mapping of str to str
        What the training left: data, seeds, figures.
    source : str
        The file's name, without its folder.
    """

    variant: str
    spec: ModelSpec
    tensors: Mapping[str, torch.Tensor]
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def training(self) -> Mapping[str, Any]:
        """Settings of the training, where the metadata has them; of foreign files, so of no certain types."""
        try:
            # NaN and infinities have no place in the documents that quote these.
            settings = json.loads(self.metadata.get("training", "{}"), parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return {}
        return settings if isinstance(settings, dict) else {}

    @property
    def trained_size_px(self) -> int | None:
        """Height and width of the training images, where the metadata says it."""
        size_px = self.training.get("size_px")
        return size_px if type(size_px) is int and 16 <= size_px <= MAX_SIDE_PX else None


def reference_checkpoint(variant: str) -> Path:
    """Path of the checkpoint that ships with the package.

    Raises
    ------
    CheckpointError
        None ships for this variant.
    """
    get_variant(variant)
    folder = Path(__file__).parent / "reference"
    path = folder / f"{variant}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise CheckpointError(
            f"no reference checkpoint ships for variant {variant} (shipped: {shipped}): "
            "train one with unetx-opt train and pass it with --checkpoint"
        )
    return path


def write_checkpoint(path: Path, model: UNet, variant: str, metadata: Mapping[str, str] | None = None) -> str:
    """Write a model's weights and spec as one safetensors file, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
        Destination; replaced if it exists.
    model : UNet
        Its weights are written as float32.
    variant : str
        A key of the table of variants.
    metadata : mapping of str to str, optional
        Kept in the header as it is.

    Returns
    -------
    str
        SHA-256 of the file, hexadecimal.
    """
    get_variant(variant)
    header = dict(metadata or {})
    if reserved := sorted(set(header) & set(_RESERVED)):
        raise CheckpointError(f"checkpoint metadata uses reserved keys {reserved}: choose others")
    header |= {
        "unetx_format": FORMAT_VERSION,
        "unetx_variant": variant,
        "unetx_spec": json.dumps(model_spec_to_json(model.spec), sort_keys=True),
    }
    tensors = {
        name: value.detach().cpu().float().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith(COUNTER)
    }
    data = _order_header(require("safetensors.torch", purpose="writing a checkpoint").save(tensors, metadata=header))
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_checkpoint(path: Path, *, variant: str | None = None) -> Checkpoint:
    """Read a checkpoint of this toolkit, or a user's state dict.

    Parameters
    ----------
    path : pathlib.Path
        A ``.safetensors`` file, or a ``.pt``/``.pth`` file with a state dict (bare, or under "state_dict" or
        "model", with or without a "module." prefix).
    variant : str, optional
        What the weights are meant for. Needed for a file that does not say it; an error where it contradicts a
        file that does.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, oversized, hostile, holds non-finite weights, or its tensors do not fit
        the model; the message lists the keys that do not fit.
    """
    size = _file_size(path)
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path.name} has {size} bytes, expected at most {MAX_FILE_BYTES}: not a U-Net checkpoint"
        )
    if zipfile.is_zipfile(path):
        return _read_torch_file(path, variant)
    return _read_safetensors(path, size, variant)


def load_model(checkpoint: Checkpoint) -> UNet:
    """Build the module of a checkpoint, in evaluation mode on the CPU."""
    from unetx_opt.models.unet import build_model

    model = build_model(checkpoint.spec)
    model.load_state_dict({**_counters(model), **checkpoint.tensors}, strict=True)
    return model.eval()


def _order_header(data: bytes) -> bytes:
    """Sort the metadata, which the library writes in a random order: the same weights are the same bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode("ascii")
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the tensors behind it
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + length :]


def _counters(model: UNet) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.endswith(COUNTER)}


def _file_size(path: Path) -> int:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file: pass a .safetensors or .pt checkpoint")
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path, size: int, variant: str | None) -> Checkpoint:
    checked = _read_header(path, size)
    header = dict(checked)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path.name}: the header metadata is not a map of strings: the file is damaged")
    shapes = {name: _entry_shape(path.name, name, entry) for name, entry in header.items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    if "unetx_format" in metadata:
        named, spec = _read_metadata(path.name, metadata)
        if variant is not None and variant != named:
            raise OtherVariantError(
                f"{path.name} holds variant {named}, asked for {variant}: choose the other one or another checkpoint"
            )
        variant = named
    else:
        variant, spec = infer_spec(path.name, shapes, variant)
    check_fit(path.name, variant, spec, shapes)
    # The header says that it is worth reading; what was checked must still be what is loaded.
    data = path.read_bytes()
    if len(data) != size or _parse_header(path.name, data, size) != checked:
        raise CheckpointError(f"{path.name} changed while it was read: try again")
    try:
        tensors = require("safetensors.torch", purpose=_PURPOSE).load(data)
    except Exception as error:  # the library raises its own class, ValueError and RuntimeError for damaged files
        raise CheckpointError(f"{path.name} is damaged: {error}") from error
    kept = {name: tensors[name].float() for name in shapes}
    check_finite(path.name, kept)
    extra = {key: value for key, value in metadata.items() if key not in _RESERVED}
    return Checkpoint(variant, spec, kept, hashlib.sha256(data).hexdigest(), extra, path.name)


def _read_header(path: Path, size: int) -> dict[str, Any]:
    with path.open("rb") as file:
        start = file.read(8)
        return _parse_header(
            path.name, start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES)), size
        )


def _parse_header(name: str, data: bytes, size: int) -> dict[str, Any]:
    if size < 10:
        raise CheckpointError(f"{name} has {size} bytes: truncated, or not a checkpoint (.safetensors or .pt)")
    if data.startswith(_OLD_PICKLE):
        raise CheckpointError(
            f"{name} is a pickle as PyTorch wrote it before version 1.6, which is not read because it can run code: "
            "load it where you trust it, and save model.state_dict() with a current PyTorch"
        )
    length = int.from_bytes(data[:8], "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{name}: its header claims {length} bytes of {size}: truncated, or not a .safetensors or .pt file"
        )
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_refuse_repetition)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header is not JSON: not a checkpoint (.safetensors or .pt)") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name}: its header is not a JSON object: not a safetensors file")
    return header


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _entry_shape(name: str, key: str, entry: object) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise CheckpointError(f"{name}: tensor {key[:80]!r} has no valid shape: the file is damaged")
    return tuple(shape)


def _read_metadata(name: str, metadata: Mapping[str, str]) -> tuple[str, ModelSpec]:
    if metadata["unetx_format"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has checkpoint format {metadata['unetx_format']!r}, this version reads {FORMAT_VERSION!r}: "
            "update unetx-opt"
        )
    try:
        variant = get_variant(metadata["unetx_variant"]).name
        return variant, model_spec_from_json(json.loads(metadata["unetx_spec"]))
    except (KeyError, ValueError, RecursionError, SpecError) as error:
        raise CheckpointError(f"{name}: its spec cannot be read ({error}): the file is damaged") from error


def _read_torch_file(path: Path, variant: str | None) -> Checkpoint:
    data = path.read_bytes()
    tensors = read_state_dict(path.name, data)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    variant, spec = infer_spec(path.name, shapes, variant)
    check_fit(path.name, variant, spec, shapes)
    check_finite(path.name, tensors)
    digest = hashlib.sha256(data).hexdigest()
    return Checkpoint(variant, spec, tensors, digest, {}, path.name)
