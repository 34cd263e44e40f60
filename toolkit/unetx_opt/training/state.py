"""The state of a training run on disk: what a killed run goes on from, in safetensors and JSON, never pickled.

A state folder holds ``state.json``, ``epoch-NNNN.safetensors`` (weights, their moving average, the optimiser's
moments) and ``best-NNNN.safetensors``. Tensor files are written whole before ``state.json`` names them by their
epoch and SHA-256, and older ones are removed after it: whenever the process dies, ``state.json`` fits its files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import CheckpointError
from unetx_opt.files import write_file
from unetx_opt.optional import require

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EpochRecord", "SavedState", "has_state", "load_state", "remove_state", "save_state"]

_SCHEMA_VERSION: Final = 1
_FILE: Final = "state.json"
_PURPOSE: Final = "training a model"


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave.

    Attributes
    ----------
    epoch : int
        From 1.
    loss : float
        Mean over the steps.
    validation_dice : float
        Mean over the validation images, on the network's grid.
    """

    epoch: int
    loss: float
    validation_dice: float


@dataclass(frozen=True, slots=True)
class SavedState:
    """A run between two epochs.

    Attributes
    ----------
    identity : mapping
        Options and data of the run, as JSON types; a run with another identity cannot go on from it.
    history : tuple of EpochRecord
        Epochs done.
    tensors : mapping of str to Tensor
        Everything that changes from step to step.
    best : mapping of str to Tensor
        Weights of the best epoch.
    """

    identity: Mapping[str, Any]
    history: tuple[EpochRecord, ...]
    tensors: Mapping[str, Tensor]
    best: Mapping[str, Tensor]


def has_state(folder: Path) -> bool:
    """Whether a folder holds the state of a run."""
    return (folder / _FILE).is_file()


def save_state(folder: Path, state: SavedState) -> None:
    """Write a state; a process that dies on the way leaves the one before.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it does not exist.
    state : SavedState
        At least one epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, best = len(state.history), best_record(state.history).epoch
    files = {f"epoch-{done:04d}.safetensors": state.tensors, f"best-{best:04d}.safetensors": state.best}
    digests = {}
    for name, tensors in files.items():
        data = _to_bytes(tensors)
        digests[name] = hashlib.sha256(data).hexdigest()
        write_file(folder / name, data)
    document = {
        "schema_version": _SCHEMA_VERSION,
        "identity": state.identity,
        "history": [[record.epoch, record.loss, record.validation_dice] for record in state.history],
        "sha256": digests,
    }
    write_file(folder / _FILE, json.dumps(document, indent=1).encode())
    for path in folder.glob("*.safetensors"):
        if path.name not in files:
            path.unlink(missing_ok=True)


def load_state(folder: Path) -> SavedState:
    """Read a state.

    Raises
    ------
    CheckpointError
        A file is missing, altered, or of another version.
    """
    try:
        document = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if document["schema_version"] != _SCHEMA_VERSION:
            raise CheckpointError(
                f"{folder} has state version {document['schema_version']}, this version reads {_SCHEMA_VERSION}: "
                "remove the folder and train from the start"
            )
        history = tuple(EpochRecord(int(e), float(loss), float(dice)) for e, loss, dice in document["history"])
        # The names follow from the history: nothing that the file says is used as a path.
        names = (f"epoch-{len(history):04d}.safetensors", f"best-{best_record(history).epoch:04d}.safetensors")
        tensors, best = (_read_tensors(folder / name, document["sha256"][name]) for name in names)
        return SavedState(dict(document["identity"]), history, tensors, best)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no usable training state ({error}): remove the folder and train from the start"
        ) from error


def remove_state(folder: Path) -> None:
    """Remove a state; ``state.json`` goes first, so that a half-removed folder is no state."""
    (folder / _FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def best_record(history: tuple[EpochRecord, ...]) -> EpochRecord:
    """Return the epoch with the highest validation Dice, the earliest among equals."""
    if not history:
        raise ValueError("no epoch is done")
    return max(history, key=lambda record: (record.validation_dice, -record.epoch))


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = require("safetensors.torch", purpose=_PURPOSE).save(plain)
    return data


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} was altered: remove the folder and train from the start")
    tensors: dict[str, Tensor] = require("safetensors.torch", purpose=_PURPOSE).load(data)
    return tensors
