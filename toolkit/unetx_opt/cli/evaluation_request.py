"""What `unetx-opt evaluate` is asked for, and what of it contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

__all__ = ["EvaluationRequest", "check_usage"]


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """The command's options, named as there."""

    checkpoint: Path | None
    bundle: Path | None
    data: Path
    split: str
    size_px: int | None
    target: str | None
    threads: int | None
    public_keys: tuple[Path, ...]
    partial: bool
    minimum_dice: float
    masks: Path | None
    save_masks: Path | None
    against: tuple[Path, ...]
    output: Path | None
    contact_sheet: Path | None
    worst: int
    as_json: bool


def check_usage(request: EvaluationRequest) -> None:
    """Check options against one another, before anything is opened.

    Raises
    ------
    click.UsageError
        Two options contradict, or an output would replace something that is evaluated.
    """
    if (request.checkpoint is None) == (request.bundle is None):
        raise click.UsageError("Pass either --checkpoint or --bundle.")
    if request.bundle is not None and request.size_px is not None:
        raise click.UsageError("--size is for a checkpoint: a bundle's engines have their size.")
    if request.checkpoint is not None and request.target is not None:
        raise click.UsageError("--target is for a bundle.")
    if len({path.resolve() for path in request.against}) < len(request.against):
        raise click.UsageError("--against names a file twice.")
    _check_outputs(request)


def _check_outputs(request: EvaluationRequest) -> None:
    outputs = {
        "--save-masks": request.save_masks,
        "--output": request.output,
        "--contact-sheet": request.contact_sheet,
    }
    inputs = {
        path.resolve()
        for path in (request.checkpoint, request.bundle, request.masks, *request.against)
        if path is not None
    }
    for option, path in outputs.items():
        # An output never replaces what is evaluated: saved masks have the names of the data set's.
        if path is not None and _is_inside(path, request.data):
            raise click.UsageError(f"{option} is inside --data: choose a place elsewhere.")
        if path is not None and path.resolve() in inputs:
            raise click.UsageError(f"{option} would replace an input: choose another name.")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
