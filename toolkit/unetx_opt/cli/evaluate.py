"""`unetx-opt evaluate`: how well a checkpoint or a bundle segments a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from unetx_opt.cli.output import echo_json, note, progress
from unetx_opt.errors import DataError, EngineError, SpecError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from unetx_opt.metrics.summary import ImageScores
    from unetx_opt.training.datasets import FolderDataset
    from unetx_opt.training.nih import NihDataset

__all__ = ["evaluate"]

_DEFAULT_SIZE_PX: Final = 512
_WORST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class _Request:
    """The command's options."""

    checkpoint: Path | None
    bundle: Path | None
    data: Path
    split: str
    size_px: int | None
    target: str | None
    threads: int | None
    partial: bool
    minimum_dice: float
    masks: Path | None
    save_masks: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Predictor:
    """What makes masks, whether a network or an engine."""

    label_names: tuple[str, ...]
    facts: Mapping[str, Any]
    segment: Callable[[NDArray[Any]], NDArray[np.uint8]]


@click.command("evaluate")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights, run with PyTorch on the CPU.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle, run with the engine that fits best.")
@click.option(
    "--data",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with images/ and masks/, or ChestX-ray14 with a CheXmask table.",
)
@click.option("--split", default="test", show_default=True, help="Part of the data set.")
@click.option("--size", "size_px", type=int, help="Input of a checkpoint's network in pixels.  [default: as trained]")
@click.option("--target", metavar="NAME", help="Use the bundle's engine of this target and no other.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one inference.")
@click.option("--partial", is_flag=True, help="ChestX-ray14: leave out images without a file or a mask.")
@click.option(
    "--minimum-dice",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="ChestX-ray14: leave out masks that CheXmask itself estimates worse.",
)
@click.option(
    "--masks",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="ChestX-ray14: the CheXmask table, where the folder holds none or several.",
)
@click.option("--save-masks", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="Keep the masks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def evaluate(**given: Any) -> None:
    """Compare the masks of a checkpoint or a bundle with those of a data set.

    Figures are means over images, with a 95 % bootstrap interval. Images in which a class is in one mask alone have
    no finite distance; they are counted, and left out of the mean distance. --save-masks keeps every mask as
    NAME.png, 0 and 255 for a single class, else label numbers.
    """
    from unetx_opt.metrics.summary import summarize

    request = _Request(**given)
    _check_usage(request)
    with _open_predictor(request) as predictor:
        dataset = _open_dataset(request, len(predictor.label_names))
        scores = _score_all(predictor, dataset, request)
    summary = summarize(scores)
    header = {"data": request.data.resolve().name, "split": request.split, "n": len(scores)}
    if request.as_json:
        echo_json({**header, **summary, "model": predictor.facts, "per_image": [image.to_json() for image in scores]})
        return
    _print_tables(header, summary, scores)


def _check_usage(request: _Request) -> None:
    if (request.checkpoint is None) == (request.bundle is None):
        raise click.UsageError("Pass either --checkpoint or --bundle.")
    if request.bundle is not None and request.size_px is not None:
        raise click.UsageError("--size is for a checkpoint: a bundle's engines have their size.")
    if request.checkpoint is not None and request.target is not None:
        raise click.UsageError("--target is for a bundle.")
    if request.save_masks is not None and _is_inside(request.save_masks, request.data):
        # The names are those of the images: the masks that are compared with would be replaced.
        raise click.UsageError("--save-masks is inside --data: choose a folder elsewhere.")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _open_predictor(request: _Request) -> AbstractContextManager[_Predictor]:
    if request.bundle is not None:
        return _open_bundle(request.bundle, request.target, request.threads)
    assert request.checkpoint is not None  # noqa: S101  (checked with the usage)
    return _open_checkpoint(request.checkpoint, request.size_px, request.threads)


@contextmanager
def _open_bundle(path: Path, target: str | None, threads: int | None) -> Iterator[_Predictor]:
    from unetx_opt.runtime import open_bundle

    with open_bundle(path, target, threads) as segmenter:
        note(f"engine: {segmenter.target}, computes {segmenter.compute_dtype}")
        facts = {
            "bundle": path,
            "target": segmenter.target,
            "compute_dtype": segmenter.compute_dtype,
            "input_px": [segmenter.contract.height, segmenter.contract.width],
        }
        yield _Predictor(segmenter.label_names, facts, lambda image: segmenter.segment(image).labels)


@contextmanager
def _open_checkpoint(path: Path, size_px: int | None, threads: int | None) -> Iterator[_Predictor]:
    from unetx_opt.imaging.postprocess import label_mask, restore_logits
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.models.checkpoint import load_model, read_checkpoint
    from unetx_opt.models.variants import get_variant
    from unetx_opt.specs import InputContract

    torch = require("torch", purpose="evaluating a checkpoint")
    checkpoint = read_checkpoint(path)
    step = get_variant(checkpoint.variant).postprocess
    if step is not None:
        raise SpecError(f"variant {checkpoint.variant} ends with the step {step}, which evaluate does not run yet")
    side = size_px or checkpoint.trained_size_px or _DEFAULT_SIZE_PX
    contract = InputContract(height=side, width=side, channels=checkpoint.spec.in_channels)
    model = load_model(checkpoint)

    def segment(image: NDArray[Any]) -> NDArray[np.uint8]:
        image_chw, geometry = prepare_image(image, contract)
        with torch.inference_mode():
            logits = model(torch.tensor(image_chw)[None])[0].float()
        if not bool(torch.isfinite(logits).all()):
            raise EngineError(f"{path} gives NaN or Inf for an image: there is no mask to evaluate")
        return label_mask(restore_logits(logits.numpy(), geometry))

    facts = {
        "checkpoint": path,
        "sha256": checkpoint.sha256,
        "variant": checkpoint.variant,
        "input_px": [side, side],
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield _Predictor(_label_names(checkpoint.spec.num_classes), facts, segment)
    finally:
        torch.set_num_threads(before)


def _label_names(num_classes: int) -> tuple[str, ...]:
    """A checkpoint names no classes: those of the known label sets, else numbers."""
    from unetx_opt.training.nih import LABEL_SETS

    count = max(2, num_classes)
    known = {len(names): names for names in LABEL_SETS.values()}
    return known.get(count, ("background", *(f"class {index}" for index in range(1, count))))


def _open_dataset(request: _Request, label_count: int) -> FolderDataset | NihDataset:
    from unetx_opt.training.nih import LABEL_SETS, NihDataset, NihOptions, open_dataset

    labels = next((name for name, names in LABEL_SETS.items() if len(names) == label_count), "lungs")
    options = NihOptions(labels, request.minimum_dice, request.partial, request.masks)
    dataset = open_dataset(request.data, request.split, options)
    offered = len(dataset.label_names) if isinstance(dataset, NihDataset) else 2
    if offered != label_count:
        raise DataError(
            f"the masks of {request.data} have {offered} labels and those of the model {label_count} "
            "(background included): evaluate it on data with the same labels"
        )
    return dataset


def _score_all(
    predictor: _Predictor, dataset: FolderDataset | NihDataset, request: _Request
) -> tuple[ImageScores, ...]:
    from unetx_opt.imaging.files import write_mask_png
    from unetx_opt.metrics.summary import score_mask

    names = predictor.label_names
    scores = []
    with progress() as display:
        bar = display.add_task("evaluating", total=len(dataset))
        for index, name in enumerate(dataset.names):
            found = predictor.segment(dataset.image(index))
            if request.save_masks is not None:
                path = request.save_masks / Path(name).with_suffix(".png")
                write_mask_png(path, found, num_classes=1 if len(names) == 2 else len(names))
            scores.append(score_mask(name, found, dataset.mask(index), names))
            display.advance(bar)
    return tuple(scores)


def _print_tables(header: Mapping[str, Any], summary: Mapping[str, Any], scores: Sequence[ImageScores]) -> None:
    from rich.console import Console

    from unetx_opt.metrics.summary import METRICS

    console = Console()
    figures = {METRICS[metric]: row for metric, row in summary["metrics"].items()}
    console.print(_table(f"{header['data']}, split {header['split']}, {header['n']} images", figures))
    if len(summary["classes"]) > 1:
        for name, rows in summary["classes"].items():
            console.print(_table(name, rows))
    without = header["n"] - summary["metrics"]["hd95_px"]["n"]
    if without:
        note(f"{without} images have a class in one mask alone: they have no finite distance")
    for image in sorted(scores, key=lambda image: image.dice)[:_WORST_SHOWN]:
        console.print(f"worst by Dice: {image.name} {image.dice:.4f}", highlight=False, markup=False)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("figure", title=title, title_justify="left")
    for column in ("mean", "std", "95 % interval", "images"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        interval = "-" if row["ci95"] is None else " to ".join(_number(bound) for bound in row["ci95"])
        table.add_row(name, _number(row["mean"]), _number(row["std"]), interval, str(row["n"]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
