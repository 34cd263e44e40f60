"""`unetx-opt train`: a variant and a data folder in, one checkpoint out; a killed run goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt import __version__
from unetx_opt.cli.output import echo_json, note
from unetx_opt.cli.train_inputs import (
    DataSettings,
    data_options,
    make_resources,
    open_split,
    resource_options,
    take_settings,
)
from unetx_opt.cli.train_step import (
    bind_step,
    check_step,
    check_weights_usage,
    describe_field,
    fit_step,
    write_fitted,
)
from unetx_opt.errors import UnetxError
from unetx_opt.models.variants import VARIANTS
from unetx_opt.optional import require

if TYPE_CHECKING:
    from unetx_opt.training.datasets import FolderDataset
    from unetx_opt.training.loop import StepReport, TrainedModel
    from unetx_opt.training.nih import NihDataset
    from unetx_opt.training.options import Resources, TrainingOptions

__all__ = ["train"]


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained, on what, and with what help."""

    options: TrainingOptions
    training: FolderDataset | NihDataset
    validation: FolderDataset | NihDataset
    resources: Resources


@click.command(name="train")
@click.option("--variant", required=True, type=click.Choice(list(VARIANTS)), help="Graph and loss.")
@click.option(
    "--data",
    "data_folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with images/, masks/ and, if need be, splits.csv; or ChestX-ray14 with a CheXmask table.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Checkpoint (.safetensors).")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is already there.")
@click.option(
    "--epochs", type=click.IntRange(1), default=40, show_default=True, help="Passes over the data, at most."
)
@click.option("--patience", type=click.IntRange(1), default=10, show_default=True, help="Epochs without progress.")
@click.option("--width", type=click.IntRange(1, 256), default=16, show_default=True, help="First-stage channels.")
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(32, 2048),
    default=256,
    show_default=True,
    help="Side of a view in pixels.",
)
@click.option("--batch-size", type=click.IntRange(2), default=8, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True, help="At its peak.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order and views.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Arithmetic; the weights stay fp32. auto: bf16 where the device has it, else fp16 on a GPU.",
)
@click.option(
    "--clip-norm", type=click.FloatRange(0), default=0.0, show_default=True, help="Longest gradient; 0: any."
)
@data_options
@resource_options
@click.option(
    "--weights",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="crf and combined: take these weights instead of training any, and fit the CRF alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(*, data_folder: Path, output: Path, resume: bool, overwrite: bool, as_json: bool, **settings: Any) -> None:
    """Train a variant on a folder of images and masks.

    The weights of the epoch with the best validation Dice are written to the output. Until then the state of the
    run is kept in OUTPUT.state after every epoch; a run that was stopped goes on with --resume. Test images are
    not looked at. --workers, --cache and --log change no weight. The CRF of crf and combined is fitted on the
    validation images at the end.
    """
    data = DataSettings(data_folder, **take_settings(settings, "labels", "partial", "minimum_dice", "masks"))
    weights = settings.pop("weights")
    if weights is not None:
        check_weights_usage(settings["variant"], resume=resume)
    given = take_settings(settings, "workers", "cache", "log")
    options = _make_options(**settings)
    state_folder = output.with_name(output.name + ".state")
    _check_output(output, state_folder, resume=resume, overwrite=overwrite)
    check_step(options.variant)
    if weights is not None:
        validation = open_split(data, "validation")
        result = write_fitted(weights, options.variant, validation, output, options.size_px)
        _print_result(result, as_json=as_json)
        return
    training, validation = (open_split(data, split) for split in ("train", "validation"))
    log = output.with_name(output.name + ".log")
    resources = make_resources(options, given, log, keeps_log=not (resume or overwrite))
    note(
        f"training {options.variant} on {len(training)} images of {data_folder}, choosing by {len(validation)} "
        f"({options.precision}, {options.device}); {describe_field(options.variant)}"
    )
    task = _Task(options, training, validation, resources)
    result = _write_result(_run(task, state_folder), task, output)
    _print_result(result, as_json=as_json)


def _print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        echo_json(result)
        return
    best = result.get("training", {}).get("best_epoch")
    epoch = "" if best is None else f" (epoch {best})"
    click.echo(f"{result['checkpoint']}: validation Dice {result['validation']['dice']['mean']:.4f}{epoch}")


def _make_options(precision: str, **settings: Any) -> TrainingOptions:
    from unetx_opt.training.options import TrainingOptions, choose_device, choose_precision

    require("torch", purpose="training a model")
    device = choose_device()
    return TrainingOptions(
        **settings, device=device, precision=choose_precision(device) if precision == "auto" else precision
    )


def _check_output(output: Path, state_folder: Path, *, resume: bool, overwrite: bool) -> None:
    from unetx_opt.training.state import has_state

    if output.exists() and not overwrite:
        raise UnetxError(f"{output} already exists: choose another output, or pass --overwrite to replace it")
    if output.is_dir():
        raise UnetxError(f"{output} is a folder, expected a file name such as {output.name}.safetensors")
    if has_state(state_folder) and not resume:
        raise UnetxError(
            f"{state_folder} holds a run that was stopped: pass --resume to go on with it, or remove the folder"
        )
    if resume and not has_state(state_folder):
        note(f"{state_folder} holds no finished epoch: starting from the beginning")


def _run(task: _Task, state_folder: Path) -> TrainedModel:
    from unetx_opt.training.loop import train_model

    try:
        with _watching(task.options) as watch:
            return train_model(
                task.options, task.training, task.validation, state_folder, watch, resources=task.resources
            )
    except KeyboardInterrupt:
        note(f"finished epochs are kept in {state_folder}: run the same command with --resume to go on")
        raise


def _write_result(trained: TrainedModel, task: _Task, output: Path) -> dict[str, Any]:
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.postprocess import METADATA_KEY, step_metadata
    from unetx_opt.training.scores import score_model, summarize_scores
    from unetx_opt.training.state import remove_state

    torch = require("torch", purpose="training a model")
    options = task.options
    step = fit_step(options.variant, trained.model, task.validation, options.size_px)
    refiner = bind_step(step, options.size_px)
    scores = summarize_scores(score_model(trained.model, task.validation, options.size_px, refiner))
    facts: dict[str, Any] = {
        "training": options.to_json() | {"best_epoch": trained.best.epoch, "epochs_done": len(trained.history)},
        "data": {
            "name": task.training.root.resolve().name,
            "images": _count_images(task),
            "labels": list(task.training.label_names),
            "train_sha256": trained.digests["training_sha256"],
            "validation_sha256": trained.digests["validation_sha256"],
        },
        "validation": scores | {"size_px": options.size_px},
        "tools": {"unetx-opt": __version__, "torch": str(torch.__version__)},
    }
    if step is not None:
        facts[METADATA_KEY] = json.loads(step_metadata(step))
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
    sha256 = write_checkpoint(output, trained.model, options.variant, metadata)
    remove_state(output.with_name(output.name + ".state"))
    log = {"log": str(task.resources.log)}
    return {"checkpoint": str(output), "variant": options.variant, "sha256": sha256, **facts, **log}


def _count_images(task: _Task) -> dict[str, int]:
    """Images per split; of ChestX-ray14 those that were used, since the others depend on the filters."""
    from unetx_opt.training.datasets import FolderDataset, split_counts

    if isinstance(task.training, FolderDataset):
        return split_counts(task.training.root)
    return {"train": len(task.training), "validation": len(task.validation)}


@contextmanager
def _watching(options: TrainingOptions) -> Iterator[Callable[[StepReport], None]]:
    """Show a bar with the time left on a terminal; elsewhere a line per epoch, for logs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_terminal = sys.stderr.isatty()
    told = 0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("epoch 1", total=None)

        def watch(report: StepReport) -> None:
            nonlocal told
            if not is_terminal and len(report.history) > told:
                last = report.history[-1]
                note(f"epoch {last.epoch}: loss {last.loss:.4f}, validation Dice {last.validation_dice:.4f}")
            told = len(report.history)
            best = max((record.validation_dice for record in report.history), default=None)
            bar.update(
                task,
                description=f"epoch {report.epoch}" + ("" if best is None else f", best Dice {best:.4f}"),
                completed=(report.epoch - 1) * report.steps_per_epoch + report.step,
                total=options.epochs * report.steps_per_epoch,
            )

        yield watch
