"""`unetx-opt evaluate`: how well a checkpoint or a bundle segments a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from unetx_opt.cli.evaluation_request import EvaluationRequest, check_usage
from unetx_opt.cli.output import echo_json, json_text, note, progress
from unetx_opt.cli.trust import public_key_option, read_trusted_keys
from unetx_opt.errors import DataError, EngineError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unetx_opt.metrics.comparison import Evaluation, Subject
    from unetx_opt.metrics.summary import ImageScores
    from unetx_opt.training.datasets import FolderDataset
    from unetx_opt.training.nih import NihDataset

__all__ = ["evaluate"]

_DEFAULT_SIZE_PX: Final = 512


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
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(16, 8192),
    help="Input of a checkpoint's network in pixels.  [default: as trained]",
)
@click.option("--target", metavar="NAME", help="Use the bundle's engine of this target and no other.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one inference.")
@public_key_option
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
@click.option(
    "--against",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Subtract this evaluation, image by image (repeatable).",
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Save the JSON document.")
@click.option("--contact-sheet", metavar="FILE", type=click.Path(path_type=Path), help="Draw the worst images (PNG).")
@click.option(
    "--worst", type=click.IntRange(1, 100), default=12, show_default=True, help="Images to list and to draw."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def evaluate(**given: Any) -> None:
    """Compare the masks of a checkpoint or a bundle with those of a data set.

    Figures are means over images, with a 95 % bootstrap interval. Images in which a class is in one mask alone have
    no finite distance; they are counted, and left out of the mean distance. Millimetres are given where the data
    set knows the spacing of its pixels. --save-masks keeps every mask as NAME.png, 0 and 255 for a single class,
    else label numbers.

    --against takes what an earlier run printed with --json or saved with -o: differences of the same images, with
    95 % intervals, p-values of a sign-flip test, and p-values adjusted for several files (Holm).

    A contact sheet and saved masks show patients: treat them as the data.
    """
    from unetx_opt.cli.evaluation_tables import print_evaluation
    from unetx_opt.files import write_file

    request = EvaluationRequest(**given)
    check_usage(request)
    document = _evaluate(request)
    if request.output is not None:
        write_file(request.output, f"{json_text(document)}\n".encode())
    if request.as_json:
        echo_json(document)
        return
    print_evaluation(document, request.worst)


def _evaluate(request: EvaluationRequest) -> dict[str, Any]:
    from unetx_opt.cli.evaluation_sheet import draw_worst
    from unetx_opt.cli.evaluation_tables import describe_model
    from unetx_opt.metrics.comparison import check_comparable, read_evaluation
    from unetx_opt.metrics.summary import rank_failures, summarize

    others = {str(path): read_evaluation(path) for path in request.against}
    with _open_predictor(request) as predictor:
        dataset = _open_dataset(request, len(predictor.label_names))
        subject = _describe_subject(dataset, predictor.label_names)
        for other in others.values():
            check_comparable(subject, other.subject)
        scores = _score_all(predictor, dataset, request)
        ranked = rank_failures(scores)
        if request.contact_sheet is not None:
            subtitle = f"{request.data.resolve().name}, split {request.split}: {describe_model(predictor.facts)}"
            draw_worst(request.contact_sheet, predictor.segment, dataset, ranked[: request.worst], subtitle)
    document = {
        "data": request.data.resolve().name,
        "split": request.split,
        "n": len(scores),
        "data_sha256": subject.data_sha256,
        **summarize(scores),
        "model": dict(predictor.facts),
        "worst_first": [image.name for image in ranked],
        "per_image": [image.to_json() for image in scores],
    }
    return {**document, **_compare(document, others)}


def _compare(document: Mapping[str, Any], others: Mapping[str, Evaluation]) -> dict[str, Any]:
    from unetx_opt.metrics.comparison import compare_evaluations, describe_method, parse_evaluation

    if not others:
        return {}
    this = parse_evaluation(document, "this evaluation")
    return {"differences_method": describe_method(), "differences": compare_evaluations(this, others)}


def _open_predictor(request: EvaluationRequest) -> AbstractContextManager[_Predictor]:
    if request.bundle is not None:
        return _open_bundle(request.bundle, request)
    assert request.checkpoint is not None  # noqa: S101  (checked with the usage)
    return _open_checkpoint(request.checkpoint, request.size_px, request.threads)


@contextmanager
def _open_bundle(path: Path, request: EvaluationRequest) -> Iterator[_Predictor]:
    from unetx_opt.runtime import open_bundle

    trusted = read_trusted_keys(request.public_keys)
    with open_bundle(path, request.target, request.threads, trusted=trusted) as segmenter:
        note(f"engine: {segmenter.target}, computes {segmenter.compute_dtype}")
        facts = {
            "bundle": path,
            "target": segmenter.target,
            "compute_dtype": segmenter.compute_dtype,
            "input_px": [segmenter.contract.height, segmenter.contract.width],
            "postprocess": None if segmenter.refiner is None else segmenter.refiner.name,
        }
        yield _Predictor(segmenter.label_names, facts, lambda image: segmenter.segment(image).labels)


@contextmanager
def _open_checkpoint(path: Path, size_px: int | None, threads: int | None) -> Iterator[_Predictor]:
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.imaging.refinement import decide_labels, make_refiner
    from unetx_opt.models.checkpoint import load_model, read_checkpoint
    from unetx_opt.models.postprocess import read_step
    from unetx_opt.specs import InputContract

    torch = require("torch", purpose="evaluating a checkpoint")
    checkpoint = read_checkpoint(path)
    step = read_step(checkpoint)
    side = size_px or checkpoint.trained_size_px or _DEFAULT_SIZE_PX
    contract = InputContract(height=side, width=side, channels=checkpoint.spec.in_channels)
    refiner = None if step is None else make_refiner(step.name, step.parameters, contract)
    model = load_model(checkpoint)

    def segment(image: NDArray[Any]) -> NDArray[np.uint8]:
        image_chw, geometry = prepare_image(image, contract)
        with torch.inference_mode():
            logits = model(torch.tensor(image_chw)[None])[0].float()
        if not bool(torch.isfinite(logits).all()):
            raise EngineError(f"{path} gives NaN or Inf for an image: there is no mask to evaluate")
        return decide_labels(logits.numpy(), image_chw, geometry, refiner)

    facts = {
        "checkpoint": path,
        "sha256": checkpoint.sha256,
        "variant": checkpoint.variant,
        "input_px": [side, side],
        "postprocess": None if step is None else step.name,
        "training": dict(checkpoint.training),
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


def _open_dataset(request: EvaluationRequest, label_count: int) -> FolderDataset | NihDataset:
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


def _describe_subject(dataset: FolderDataset | NihDataset, label_names: Sequence[str]) -> Subject:
    from unetx_opt.metrics.comparison import Subject

    return Subject("this data set", frozenset(dataset.names), tuple(label_names[1:]), dataset.digest())


def _score_all(
    predictor: _Predictor, dataset: FolderDataset | NihDataset, request: EvaluationRequest
) -> tuple[ImageScores, ...]:
    from unetx_opt.imaging.files import write_mask_png
    from unetx_opt.metrics.summary import score_mask
    from unetx_opt.training.pixel_spacing import read_pixel_spacing

    names = predictor.label_names
    spacing_of = read_pixel_spacing(dataset)
    scores = []
    with progress() as display:
        bar = display.add_task("evaluating", total=len(dataset))
        for index, name in enumerate(dataset.names):
            found = predictor.segment(dataset.image(index))
            if request.save_masks is not None:
                path = request.save_masks / Path(name).with_suffix(".png")
                write_mask_png(path, found, num_classes=1 if len(names) == 2 else len(names))
            truth = dataset.mask(index)
            scores.append(score_mask(name, found, truth, names, spacing_of(name, (truth.shape[0], truth.shape[1]))))
            display.advance(bar)
    return tuple(scores)
