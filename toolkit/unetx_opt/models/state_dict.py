"""Users' own state dicts (``.pt``): read without unpickling, their spec inferred from the shapes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unetx_opt.errors import CheckpointError, SpecError
from unetx_opt.models.fit import COUNTER
from unetx_opt.models.variants import get_variant, variant_spec
from unetx_opt.optional import require
from unetx_opt.specs import ModelSpec, Upsampling

if TYPE_CHECKING:
    import torch

__all__ = ["infer_spec", "read_state_dict"]

_PURPOSE = "reading a checkpoint"


def read_state_dict(name: str, data: bytes) -> dict[str, torch.Tensor]:
    """Read a state dict that ``torch.save`` wrote.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    data : bytes
        Its content: a state dict, bare or under "state_dict" or "model"; a "module." prefix is dropped.

    Returns
    -------
    dict of str to torch.Tensor
        float32, without the batch counters of batch normalisation.

    Raises
    ------
    CheckpointError
        The file is damaged, compressed, or holds anything but named real tensors.
    """
    _refuse_compressed(name, data)
    torch = require("torch", purpose=_PURPOSE)
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a refused global, a damaged zip and a bad storage each raise another class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{name} is not a plain state dict ({reason[:160]}): save model.state_dict() and pass that file"
        ) from error
    state = _unwrap(name, loaded)
    return {
        key.removeprefix("module."): value.detach().float().contiguous()
        for key, value in state.items()
        if not key.endswith(COUNTER)
    }


def _refuse_compressed(name: str, data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{name} is damaged: {error}") from error
    # torch.save stores its records; a compressed one could inflate to any size.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{name} has compressed records, which torch.save never writes: refused")


def _unwrap(name: str, loaded: object) -> dict[str, torch.Tensor]:
    torch = require("torch", purpose=_PURPOSE)
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(
            f"{name} holds a {type(loaded).__name__}, expected a state dict: save model.state_dict()"
        )
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.is_complex():
            raise CheckpointError(
                f"{name}: entry {str(key)[:80]!r} is not a real tensor under a name: save model.state_dict()"
            )
        if not _is_stored(value):
            raise CheckpointError(
                f"{name}: tensor {key[:80]!r} of shape {tuple(value.shape)} is not held whole by the file (sparse, "
                "quantized, expanded or without data): save model.state_dict() of a plain float model"
            )
    return loaded


def _is_stored(value: torch.Tensor) -> bool:
    """Whether the file holds every element: a few bytes can claim to be a tensor of any size by strides of 0."""
    torch = require("torch", purpose=_PURPOSE)
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return False
    return bool(value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def infer_spec(name: str, shapes: Mapping[str, tuple[int, ...]], variant: str | None) -> tuple[str, ModelSpec]:
    """Read width, depth, channels, classes and gate off the shapes; the rest comes from the variant.

    The window of a neighbourhood gate and dilation rates show in no shape: a state dict is taken to have those of
    its variant. A model with others is saved with `unetx_opt.models.checkpoint.write_checkpoint`, which keeps them.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    shapes : mapping of str to tuple of int
        Tensor name to shape.
    variant : str or None
        A key of the table of variants.

    Returns
    -------
    variant : str
    spec : ModelSpec

    Raises
    ------
    CheckpointError
        No variant is given, or the names are not those of a model of this toolkit.
    """
    if variant is None:
        raise CheckpointError(f"{name} does not say which variant it holds: pass --variant")
    first, head = shapes.get("encoder.0.conv1.weight"), shapes.get("head.weight")
    stages = {key.split(".")[1] for key in shapes if key.startswith("encoder.") and key.endswith("conv1.weight")}
    if first is None or head is None or len(first) != 4 or len(head) != 4:
        sample = ", ".join(sorted(shapes)[:3])
        raise CheckpointError(
            f"{name} does not have the layout of a {variant}: expected keys such as encoder.0.conv1.weight and "
            f"head.weight, got {sample}, ...: rename the keys of the state dict"
        )
    gates = [key.split(".") for key in shapes if ".gate." in key and key.endswith("weight")]
    overrides: dict[str, Any] = {"in_channels": first[1], "num_classes": head[0]}
    if get_variant(variant).gate is not None:
        overrides["gate"] = "additive" if any(parts[-2] == "psi" for parts in gates) else "neighbourhood"
        overrides["gate_levels"] = tuple(sorted({int(parts[1]) for parts in gates if parts[1].isdecimal()}))
    up = shapes.get("decoder.0.up.project.weight", ())
    if len(up) == 4 and up[2:] == (1, 1):
        overrides["upsampling"] = Upsampling.BILINEAR
    try:
        return variant, variant_spec(variant, width=first[0], depth=max(1, len(stages) - 1), **overrides)
    except SpecError as error:
        raise CheckpointError(f"{name} does not describe a {variant}: {error}") from error
