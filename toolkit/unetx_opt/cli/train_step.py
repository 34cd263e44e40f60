"""The last part of `unetx-opt train` for variants that end with a step: its parameters, fitted on validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt import __version__
from unetx_opt.cli.output import note, progress
from unetx_opt.errors import MissingPackageError
from unetx_opt.models.variants import VARIANTS, get_variant

if TYPE_CHECKING:
    from unetx_opt.imaging.refinement import Refiner
    from unetx_opt.models.postprocess import StepRecord
    from unetx_opt.models.unet import UNet
    from unetx_opt.training.labelled import LabelledImages

__all__ = ["bind_step", "check_step", "check_weights_usage", "describe_field", "fit_step", "write_fitted"]


def check_step(variant: str) -> None:
    """Check, before hours of training, that the step that a variant ends with can be fitted here.

    Raises
    ------
    MissingPackageError
        The step's package is not installed.
    """
    if get_variant(variant).postprocess is None:
        return
    from unetx_opt.imaging.dense_crf import BACKENDS
    from unetx_opt.imaging.refinement import DEFAULT_BACKEND

    if reason := BACKENDS[DEFAULT_BACKEND].why_not():
        raise MissingPackageError(f"{variant} cannot be trained to its end: {reason}")


def check_weights_usage(variant: str, *, resume: bool) -> None:
    """Refuse ``--weights`` where nothing is left to be fitted, or together with ``--resume``."""
    if get_variant(variant).postprocess is None:
        named = " and ".join(row.name for row in VARIANTS.values() if row.postprocess is not None)
        raise click.UsageError(f"--weights is for {named}: nothing of {variant} is fitted after its training.")
    if resume:
        raise click.UsageError("--weights trains nothing: there is no run to --resume.")


def describe_field(variant: str) -> str:
    """Say how far a pixel of the mask looks; the width of a model does not change it."""
    from unetx_opt.models.receptive_field import receptive_field_px
    from unetx_opt.models.variants import variant_spec

    side = receptive_field_px(variant_spec(variant))
    return f"receptive field {side} x {side} px"


def fit_step(variant: str, model: UNet, validation: LabelledImages, size_px: int) -> StepRecord | None:
    """Fit the step that a variant ends with; None where it has none.

    Parameters
    ----------
    variant : str
        A key of the table of variants.
    model : UNet
        In evaluation mode, on the CPU.
    validation : LabelledImages
        The only images that are looked at.
    size_px : int
        Height and width of the network's input.

    Raises
    ------
    MissingPackageError
        The step's package is not installed.
    """
    name = get_variant(variant).postprocess
    if name is None:
        return None
    from unetx_opt.models.postprocess import StepRecord
    from unetx_opt.training.crf_fit import CrfFitOptions, fit_crf_parameters

    options = CrfFitOptions(size_px=size_px)
    note(f"fitting the parameters of {name} on validation")
    with progress() as display:
        bar = display.add_task("fitting", total=options.most_candidates)

        def watch(tried: int, best: float) -> None:
            display.update(bar, completed=tried, description=f"fitting, best Dice {best:.5f}")

        fit = fit_crf_parameters(model, validation, options, watch)
    note(
        f"{name}: validation Dice {fit.dice:.5f} with it, {fit.dice_without:.5f} without, {fit.images} images, "
        f"{fit.candidates} candidates"
    )
    if not fit.helps:
        note(f"{name} does not improve the masks of this network for certain: the weakest of the best was taken")
    return StepRecord(name, fit.parameters, fit.to_json() | {"validation_sha256": validation.digest()})


def bind_step(step: StepRecord | None, size_px: int) -> Refiner | None:
    """Make a fitted step ready to run on images of the training contract."""
    if step is None:
        return None
    from unetx_opt.imaging.refinement import make_refiner
    from unetx_opt.training.options import training_contract

    return make_refiner(step.name, step.parameters, training_contract(size_px))


def write_fitted(
    weights: Path, variant: str, validation: LabelledImages, output: Path, size_px: int
) -> dict[str, Any]:
    """Take weights over, fit the step that the variant ends with, and write a checkpoint of both.

    Parameters
    ----------
    weights : pathlib.Path
        A checkpoint of the variant or of the one without the step, or a state dict.
    variant : str
        A key of the table of variants, with a step.
    validation : LabelledImages
        The only images that are looked at.
    output : pathlib.Path
        The checkpoint; replaced if it exists.
    size_px : int
        Height and width of the network's input where the weights do not say it.

    Returns
    -------
    dict
        What the command prints.
    """
    from unetx_opt.models.checkpoint import load_model, write_checkpoint
    from unetx_opt.models.postprocess import METADATA_KEY, read_weights, step_metadata
    from unetx_opt.training.scores import score_model, summarize_scores

    source = read_weights(weights, variant)
    side = source.trained_size_px or size_px
    model = load_model(source)
    step = fit_step(variant, model, validation, side)
    assert step is not None  # noqa: S101 - checked with the usage
    scores = summarize_scores(score_model(model, validation, side, bind_step(step, side)))
    facts: dict[str, Any] = {
        "validation": scores | {"size_px": side},
        "weights": {"source": source.source, "sha256": source.sha256, "variant": source.variant},
    }
    kept = {"training": json.dumps({"size_px": side}), "tools": json.dumps({"unetx-opt": __version__})}
    metadata = kept | dict(source.metadata) | {key: json.dumps(fact, sort_keys=True) for key, fact in facts.items()}
    sha256 = write_checkpoint(output, model, variant, metadata | {METADATA_KEY: step_metadata(step)})
    return {
        "checkpoint": str(output),
        "variant": variant,
        "sha256": sha256,
        **facts,
        METADATA_KEY: json.loads(step_metadata(step)),
    }
