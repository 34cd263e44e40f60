"""The contact sheet of an evaluation's worst images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetx_opt.cli.evaluation_tables import describe_worst
from unetx_opt.imaging.contact_sheet import SheetText, Tile, write_contact_sheet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unetx_opt.metrics.summary import ImageScores
    from unetx_opt.training.datasets import FolderDataset
    from unetx_opt.training.nih import NihDataset

__all__ = ["draw_worst"]


def draw_worst(
    path: Path,
    segment: Callable[[NDArray[Any]], NDArray[np.uint8]],
    dataset: FolderDataset | NihDataset,
    worst: Sequence[ImageScores],
    subtitle: str,
) -> None:
    """Draw the images that failed most.

    They are segmented once more: to keep every mask until it is known which are the worst takes memory for all.

    Parameters
    ----------
    path : pathlib.Path
        PNG to write; replaced in one step.
    segment : callable
        (H, W) grey values -> (H, W) labels, as they were evaluated.
    dataset : FolderDataset or NihDataset
        Where the images are.
    worst : sequence of ImageScores
        In the order of the sheet.
    subtitle : str
        Which data and which model.
    """
    indices = {name: index for index, name in enumerate(dataset.names)}

    def tiles() -> Iterator[Tile]:
        for image in worst:
            pixels, truth = dataset.image(indices[image.name]), dataset.mask(indices[image.name])
            caption = describe_worst(image.to_json())
            yield Tile(pixels, truth, segment(pixels), image.name, caption, image.spacing_mm)

    text = SheetText(
        title=f"Worst {len(worst)} of {len(dataset)} images by Dice",
        subtitle=subtitle,
        footer="Shows images of patients: treat this file as the data. Not for diagnosis.",
    )
    write_contact_sheet(path, tiles(), text)
