"""The training loop: AdamW, warm-up and cosine, a moving average of the weights, the best epoch by validation.

On a CPU a run is a function of its options, its data and its number of threads, also when it was killed and went on;
workers, cache and log have no part in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unetx_opt.errors import DataError, UnetxError
from unetx_opt.models.unet import UNet
from unetx_opt.models.variants import get_variant
from unetx_opt.optional import require
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.batches import Batch, BatchCutter, Draw, random_batches, whole_batches
from unetx_opt.training.cache import PreparedCache
from unetx_opt.training.labelled import LabelledImages, identify
from unetx_opt.training.losses import get_loss
from unetx_opt.training.metrics_log import EpochFigures, MetricsLog
from unetx_opt.training.options import Resources, TrainingOptions, autocast, learning_rate_at
from unetx_opt.training.prepared import PreparedImages
from unetx_opt.training.run import TrainingRun, restore_run, run_identity, save_run, start_run, update_average
from unetx_opt.training.state import EpochRecord, best_record, has_state, load_state, save_state

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
    digests : mapping of str to str
        "training_sha256" and "validation_sha256": the identity of the data when the run began.
    """

    model: UNet
    history: tuple[EpochRecord, ...]
    digests: Mapping[str, str]

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights these are."""
        return best_record(self.history)


def train_model(
    options: TrainingOptions,
    training: LabelledImages,
    validation: LabelledImages,
    state_folder: Path,
    watch: Callable[[StepReport], None] = lambda report: None,
    resources: Resources | None = None,
) -> TrainedModel:
    """Train a variant, or go on where an earlier run of the same options and data stopped.

    Parameters
    ----------
    options : TrainingOptions
        What to train.
    training, validation : LabelledImages
        Disjoint splits with the same labels.
    state_folder : pathlib.Path
        Where the state is kept after every epoch; a state that is there is gone on from.
    watch : callable
        Called after every step.
    resources : Resources, optional
        Workers, cache and log.

    Returns
    -------
    TrainedModel
        The best epoch by mean validation Dice. The state stays in `state_folder`.

    Raises
    ------
    CheckpointError
        The state belongs to another run, or is damaged.
    DataError
        The splits have other labels, or an image cannot be read or changed under the run.
    UnetxError
        The loss is not finite, there are fewer than two training images, or a worker died.
    """
    _check_data(training, validation)
    given = resources or Resources()
    cache = PreparedCache(given.cache or state_folder / "prepared")
    identities = {"training": identify(training), "validation": identify(validation)}
    sets = {
        part: PreparedImages(images, options.size_px, identities[part], cache)
        for part, images in (("training", training), ("validation", validation))
    }
    digests = {f"{part}_sha256": found.digest for part, found in identities.items()}
    identity = run_identity(options, training.label_names, digests)
    run = start_run(options, training.label_names)
    if has_state(state_folder):
        restore_run(run, load_state(state_folder), identity, state_folder)
    with ExitStack() as stack:
        cutter = stack.enter_context(BatchCutter(sets, given.workers))
        log = stack.enter_context(MetricsLog(given.log, len(run.history))) if given.log else None
        while len(run.history) < options.epochs and not run.is_exhausted:
            figures = _run_epoch(run, cutter, watch)
            if log is not None:
                log.add(figures)
            save_state(state_folder, save_run(run, identity))
    run.average.load_state_dict(run.best)
    return TrainedModel(run.average.to("cpu").eval(), run.history, digests)


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


def _check_data(training: LabelledImages, validation: LabelledImages) -> None:
    if len(training) < 2:
        raise UnetxError(f"{len(training)} training image, expected at least 2: add images to the train split")
    if training.label_names != validation.label_names:
        raise DataError(
            f"the training images have the labels {training.label_names}, those for validation "
            f"{validation.label_names}: they must agree"
        )


def _run_epoch(run: TrainingRun, cutter: BatchCutter, watch: Callable[[StepReport], None]) -> EpochFigures:
    """Train for one epoch, validate, and record it in the run's history."""
    start = time.perf_counter()
    loss, seen = _train_epoch(run, cutter, watch)
    trained_s = time.perf_counter() - start
    dice = validation_dice(run.average, whole_batches(cutter, "validation", run.options.batch_size), run.options)
    run.record(loss, dice)
    return EpochFigures(
        epoch=len(run.history),
        loss=loss,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        validation_dice=dice,
        seconds=time.perf_counter() - start,
        images_per_s=seen / trained_s,
    )


def _train_epoch(run: TrainingRun, cutter: BatchCutter, watch: Callable[[StepReport], None]) -> tuple[float, int]:
    """Mean loss of an epoch, and how many views it saw."""
    options, done, seen = run.options, len(run.history), 0
    steps = -(-len(cutter.sets["training"]) // options.batch_size)
    compute_loss = get_loss(get_variant(options.variant).loss).compute
    # Layers with randomness of their own draw the same numbers whether or not the process is a new one.
    torch.manual_seed(options.seed * 1_000_003 + done)
    run.model.train()
    losses: list[float] = []
    draw = Draw(options.seed, done, Augmentation())
    for step, batch in enumerate(random_batches(cutter, "training", options.batch_size, draw)):
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
        _descend(run, loss)
        update_average(run, done * steps + step)
        seen += len(image)
        watch(StepReport(done + 1, step + 1, steps, losses[-1], run.history))
    return math.fsum(losses) / len(losses), seen


def _descend(run: TrainingRun, loss: Tensor) -> None:
    """One step along the gradient; in float16 it is left out where the scaled gradient is not finite."""
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if run.options.clip_norm:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.options.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()


def _to_device(batch: Batch, options: TrainingOptions) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(batch.image_nchw).to(options.device).contiguous(memory_format=torch.channels_last)
    return image, torch.from_numpy(batch.labels_nhw).to(options.device)
