"""A run in memory: everything that changes while a model is trained, and its way to a saved state and back."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetx_opt.errors import CheckpointError
from unetx_opt.models.unet import UNet, build_model
from unetx_opt.models.variants import variant_spec
from unetx_opt.optional import require
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.labelled import class_count
from unetx_opt.training.options import TrainingOptions, gradient_scaler
from unetx_opt.training.state import EpochRecord, SavedState, best_record

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = require("torch", purpose="training a model")

__all__ = ["TrainingRun", "restore_run", "run_identity", "save_run", "start_run", "update_average"]


@dataclass(slots=True)
class TrainingRun:
    """Everything that changes while a model is trained.

    Attributes
    ----------
    options : TrainingOptions
        What is trained.
    model, average : UNet
        The weights that steps change, and their moving average, which is validated and kept.
    optimizer : torch.optim.AdamW
        With its moments.
    scaler : torch.amp.GradScaler
        Of the loss; it does nothing but in float16.
    history : tuple of EpochRecord
        Epochs done.
    best : dict of str to Tensor
        Average of the best epoch.
    """

    options: TrainingOptions
    model: UNet
    average: UNet
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    history: tuple[EpochRecord, ...] = ()
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_exhausted(self) -> bool:
        """Whether no epoch was better for as long as the options are patient."""
        if not self.history:
            return False
        return len(self.history) - best_record(self.history).epoch >= self.options.patience

    def record(self, loss: float, validation_dice: float) -> None:
        """Add an epoch; its weights are kept where it is the best one."""
        self.history = (*self.history, EpochRecord(len(self.history) + 1, loss, validation_dice))
        if best_record(self.history).epoch == len(self.history):
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}


def start_run(options: TrainingOptions, label_names: tuple[str, ...]) -> TrainingRun:
    """Build the model with the first weights of a seed, and its optimiser.

    Parameters
    ----------
    options : TrainingOptions
        What to train.
    label_names : tuple of str
        Labels of the data, the background first.
    """
    torch.manual_seed(options.seed)
    spec = variant_spec(options.variant, width=options.width, num_classes=class_count(label_names))
    model = build_model(spec).to(options.device)
    # On CPUs as on GPUs convolutions are fastest with the channels last.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    return TrainingRun(options, model, average, optimizer, gradient_scaler(options))


def update_average(run: TrainingRun, step: int) -> None:
    """Move the average towards the weights after a step, counted from 0 over the whole run."""
    # Early on the average follows closely, or it would remember the random start.
    decay = min(run.options.average_decay, (1.0 + step) / (10.0 + step)) if run.options.average_decay else 0.0
    with torch.no_grad():
        current = run.model.state_dict()
        for name, value in run.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1.0 - decay)
            else:
                value.copy_(current[name])


def run_identity(
    options: TrainingOptions, label_names: tuple[str, ...], digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return what a run must share with a saved state to go on from it, as JSON types.

    Parameters
    ----------
    options : TrainingOptions
        What is trained.
    label_names : tuple of str
        Of the data.
    digests : mapping of str to str
        Of the splits, under "training_sha256" and "validation_sha256".
    """
    identity: dict[str, Any] = {
        "options": options.to_json() | {"augmentation": dataclasses.asdict(Augmentation())},
        "labels": label_names,
        **digests,
    }
    # Equal to what a round trip through a file gives: tuples become lists.
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def save_run(run: TrainingRun, identity: Mapping[str, Any]) -> SavedState:
    """Collect what a killed run goes on from; names say where a tensor belongs."""
    tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in run.average.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for moment, value in run.optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{moment}"] = value
    for name, number in run.scaler.state_dict().items():
        tensors[f"scaler/{name}"] = torch.tensor(number, dtype=torch.float64)
    return SavedState(identity, run.history, tensors, run.best)


def restore_run(run: TrainingRun, saved: SavedState, identity: Mapping[str, Any], folder: Path) -> None:
    """Go back to a saved state.

    Raises
    ------
    CheckpointError
        The state belongs to other options or data, or does not fit the model.
    """
    if dict(saved.identity) != dict(identity):
        raise CheckpointError(
            f"{folder} belongs to a run with other settings ({_differences(saved.identity, identity)}): "
            "use the same ones, or remove the folder and train from the start"
        )
    try:
        run.model.load_state_dict(_part(saved.tensors, "model/"))
        run.average.load_state_dict(_part(saved.tensors, "average/"))
        for name, parameter in run.model.named_parameters():
            moments = _part(saved.tensors, f"optimizer/{name}/")
            run.optimizer.state[parameter] = {
                # The counter of steps is a scalar on the CPU; moments lie in memory as their parameter does.
                key: value if value.ndim == 0 else torch.empty_like(parameter).detach().copy_(value)
                for key, value in moments.items()
            }
        run.scaler.load_state_dict(_scaler_state(run, _part(saved.tensors, "scaler/")))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder} does not fit the model: remove it and train from the start") from error
    run.history, run.best = saved.history, dict(saved.best)


def _scaler_state(run: TrainingRun, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Numbers of the types that the scaler itself has: whole ones stay whole."""
    return {name: type(value)(tensors[name].item()) for name, value in run.scaler.state_dict().items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _differences(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    old, new = dict(saved.get("options", {})), dict(identity["options"])
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]
    changed += [
        key.removesuffix("_sha256") + (" images" if key.endswith("_sha256") else "")
        for key in identity
        if key != "options" and saved.get(key) != identity[key]
    ]
    return ", ".join(changed)
