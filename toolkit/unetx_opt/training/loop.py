"""The training loop: AdamW, warm-up and cosine, a moving average of the weights, the best epoch by validation.

On a CPU a run is a function of its options, its data and its number of threads, also when it was killed and went on.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetx_opt.errors import CheckpointError, UnetxError
from unetx_opt.models.unet import UNet, build_model
from unetx_opt.models.variants import get_variant, variant_spec
from unetx_opt.optional import require
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.batches import Batch, PreparedImages, random_batches, whole_batches
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.losses import get_loss
from unetx_opt.training.options import TrainingOptions, autocast, learning_rate_at
from unetx_opt.training.state import EpochRecord, SavedState, best_record, has_state, load_state, save_state

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = require("torch", purpose="training a model")

__all__ = ["StepReport", "TrainedModel", "train_model", "validation_dice"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a run is, for whoever watches it.

    Attributes
    ----------
    epoch, step : int
        Epoch from 1, and steps done in it.
    steps_per_epoch : int
        Steps of a whole epoch.
    loss : float
        Of this step.
    history : tuple of EpochRecord
        Epochs done.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a run ends with.

    Attributes
    ----------
    model : UNet
        Weights of the best epoch, on the CPU, in evaluation mode.
    history : tuple of EpochRecord
        All epochs, whichever process ran them.
    """

    model: UNet
    history: tuple[EpochRecord, ...]

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights these are."""
        return best_record(self.history)


@dataclass(slots=True)
class _Run:
    """Everything that changes while a model is trained."""

    options: TrainingOptions
    model: UNet
    average: UNet
    optimizer: torch.optim.AdamW
    history: tuple[EpochRecord, ...] = ()
    best: dict[str, Tensor] = field(default_factory=dict)


def train_model(
    options: TrainingOptions,
    training: FolderDataset,
    validation: FolderDataset,
    state_folder: Path,
    watch: Callable[[StepReport], None] = lambda report: None,
) -> TrainedModel:
    """Train a variant, or go on where an earlier run of the same options and data stopped.

    Parameters
    ----------
    options : TrainingOptions
        What to train.
    training, validation : FolderDataset
        Disjoint splits.
    state_folder : pathlib.Path
        Where the state is kept after every epoch; a state that is there is gone on from.
    watch : callable
        Called after every step.

    Returns
    -------
    TrainedModel
        The best epoch by mean validation Dice. The state stays in `state_folder`.

    Raises
    ------
    CheckpointError
        The state belongs to another run, or is damaged.
    UnetxError
        The loss is not finite, or there are fewer than two training images.
    """
    if len(training) < 2:
        raise UnetxError(f"{len(training)} training image, expected at least 2: add images to the train split")
    identity = {
        "options": options.to_json() | {"augmentation": _plain(Augmentation())},
        "training_sha256": training.digest(),
        "validation_sha256": validation.digest(),
    }
    run = _start_run(options)
    if has_state(state_folder):
        _restore(run, load_state(state_folder), identity, state_folder)
    images = PreparedImages(training, options.size_px)
    checks = PreparedImages(validation, options.size_px)
    while len(run.history) < options.epochs and not _is_exhausted(run):
        loss = _train_epoch(run, images, watch)
        dice = validation_dice(run.average, whole_batches(checks, options.batch_size), options)
        run.history = (*run.history, EpochRecord(len(run.history) + 1, loss, dice))
        if best_record(run.history).epoch == len(run.history):
            run.best = {name: value.clone() for name, value in run.average.state_dict().items()}
        save_state(state_folder, SavedState(identity, run.history, _tensors(run), run.best))
    run.average.load_state_dict(run.best)
    return TrainedModel(run.average.to("cpu").eval(), run.history)


def validation_dice(model: UNet, batches: Iterable[Batch], options: TrainingOptions) -> float:
    """Mean over images and foreground classes of the Dice coefficient, on the network's grid.

    Two empty masks agree fully (1).
    """
    model.eval()
    scores: list[float] = []
    with torch.inference_mode(), autocast(options):
        for batch in batches:
            image, labels = _to_device(batch, options)
            logits = model(image)
            found = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
            for class_id in range(1, max(2, logits.shape[1])):
                a, b = (found == class_id).flatten(1), (labels == class_id).flatten(1)
                size = a.sum(1) + b.sum(1)
                scores += torch.where(size > 0, 2.0 * (a & b).sum(1) / size.clamp_min(1), 1.0).tolist()
    return math.fsum(scores) / len(scores)


def _start_run(options: TrainingOptions) -> _Run:
    torch.manual_seed(options.seed)
    model = build_model(variant_spec(options.variant, width=options.width)).to(options.device)
    # On CPUs as on GPUs convolutions are fastest with the channels last.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    return _Run(options, model, average, optimizer)


def _train_epoch(run: _Run, images: PreparedImages, watch: Callable[[StepReport], None]) -> float:
    options, done = run.options, len(run.history)
    batches = random_batches(images, options.batch_size, options.seed, done, Augmentation())
    steps = -(-len(images) // options.batch_size)
    compute_loss = get_loss(get_variant(options.variant).loss).compute
    # Layers with randomness of their own draw the same numbers whether or not the process is a new one.
    torch.manual_seed(options.seed * 1_000_003 + done)
    run.model.train()
    losses: list[float] = []
    for step, batch in enumerate(batches):
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate_at(options, done * steps + step, steps)
        image, labels = _to_device(batch, options)
        with autocast(options):
            logits = run.model(image)
        loss = compute_loss(logits, labels)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UnetxError(
                f"the loss is {losses[-1]} in step {step + 1} of epoch {done + 1}: "
                "lower the learning rate, or train with --precision fp32"
            )
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()
        _update_average(run, done * steps + step)
        watch(StepReport(done + 1, step + 1, steps, losses[-1], run.history))
    return math.fsum(losses) / len(losses)


def _update_average(run: _Run, step: int) -> None:
    # Early on the average follows closely, or it would remember the random start.
    decay = min(run.options.average_decay, (1.0 + step) / (10.0 + step)) if run.options.average_decay else 0.0
    with torch.no_grad():
        current = run.model.state_dict()
        for name, value in run.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1.0 - decay)
            else:
                value.copy_(current[name])


def _is_exhausted(run: _Run) -> bool:
    return bool(run.history) and len(run.history) - best_record(run.history).epoch >= run.options.patience


def _to_device(batch: Batch, options: TrainingOptions) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(batch.image_nchw).to(options.device).contiguous(memory_format=torch.channels_last)
    return image, torch.from_numpy(batch.labels_nhw).to(options.device)


def _tensors(run: _Run) -> dict[str, Tensor]:
    """Everything that changes from step to step, under names that say where it belongs."""
    tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in run.average.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for moment, value in run.optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{moment}"] = value
    return tensors


def _restore(run: _Run, saved: SavedState, identity: Mapping[str, Any], folder: Path) -> None:
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
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit the model: remove it and train from the start") from error
    run.history, run.best = saved.history, dict(saved.best)


def _plain(limits: Augmentation) -> dict[str, Any]:
    """JSON types, equal to what a round trip through a file gives."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(limits)))
    return plain


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _differences(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    old, new = dict(saved.get("options", {})), dict(identity["options"])
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]
    changed += [
        key.removesuffix("_sha256") + " images"
        for key in identity
        if key != "options" and saved.get(key) != identity[key]
    ]
    return ", ".join(changed)
