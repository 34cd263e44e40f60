"""What `unetx-opt train` reads and uses: options of the data set, and of what helps a run and changes no weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from unetx_opt.cli.output import note
from unetx_opt.errors import UnetxError
from unetx_opt.optional import find

if TYPE_CHECKING:
    from unetx_opt.training.datasets import FolderDataset
    from unetx_opt.training.nih import NihDataset
    from unetx_opt.training.options import Resources, TrainingOptions

__all__ = ["DataSettings", "data_options", "make_resources", "open_split", "resource_options", "take_settings"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DATA_OPTIONS: Final = (
    click.option(
        "--labels", type=click.Choice(["organs", "lungs"]), help="ChestX-ray14: classes.  [default: organs]"
    ),
    click.option("--partial", is_flag=True, help="ChestX-ray14: leave out images without a file or a mask."),
    click.option(
        "--minimum-dice",
        type=click.FloatRange(0, 1),
        default=0.7,
        show_default=True,
        help="ChestX-ray14: leave out masks that CheXmask itself estimates worse.",
    ),
    click.option(
        "--masks",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="ChestX-ray14: the CheXmask table, where the folder holds none or several.",
    ),
)
_RESOURCE_OPTIONS: Final = (
    click.option(
        "--workers",
        type=click.IntRange(0, 256),
        help="Processes that prepare images.  [default: 0 on a CPU, up to 8 beside a GPU]",
    ),
    click.option(
        "--cache",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep prepared images, for other runs too; 0.7 MB each at --size 256.  "
        "[default: with the state, removed at the end]",
    ),
    click.option(
        "--log",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Metrics as CSV and for TensorBoard.  [default: OUTPUT.log]",
    ),
)


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the images are, and how ChestX-ray14 is read; the fields are those of `NihOptions`."""

    folder: Path
    labels: str | None
    partial: bool
    minimum_dice: float
    masks: Path | None


def data_options(command: _Command) -> _Command:
    """Add the options whose values `DataSettings` holds."""
    return _add(_DATA_OPTIONS, command)


def resource_options(command: _Command) -> _Command:
    """Add the options whose values `make_resources` takes."""
    return _add(_RESOURCE_OPTIONS, command)


def take_settings(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take some of a command's settings away, for one stage."""
    return {name: settings.pop(name) for name in names}


def open_split(data: DataSettings, split: str) -> FolderDataset | NihDataset:
    """Open one split of a data folder of either kind.

    Raises
    ------
    click.UsageError
        Labels are chosen for a folder that has one class.
    DataError
        As `unetx_opt.training.nih.open_dataset`.
    """
    from unetx_opt.training.nih import NihDataset, NihOptions, open_dataset

    options = NihOptions(data.labels or "organs", data.minimum_dice, data.partial, data.masks)
    dataset = open_dataset(data.folder, split, options)
    if data.labels is not None and not isinstance(dataset, NihDataset):
        raise click.UsageError("--labels is for ChestX-ray14: the masks of a folder have one class.")
    return dataset


def make_resources(options: TrainingOptions, given: dict[str, Any], log: Path, *, keeps_log: bool) -> Resources:
    """Fill in what was not given.

    Parameters
    ----------
    options : TrainingOptions
        Its device decides the number of workers.
    given : dict
        workers, cache and log; None where not given.
    log : pathlib.Path
        Where the log goes where that was not given.
    keeps_log : bool
        A log that is there must not be replaced: the run is a new one.

    Raises
    ------
    UnetxError
        There is the log of an earlier run.
    """
    from unetx_opt.training.metrics_log import has_rows
    from unetx_opt.training.options import Resources, choose_workers

    folder = given["log"] or log
    if keeps_log and has_rows(folder):
        raise UnetxError(
            f"{folder} holds the log of an earlier run: choose another --log, or pass --overwrite to replace it"
        )
    if not find("tensorboard"):
        note("tensorboard is not installed: the metrics are logged as CSV alone")
    workers = choose_workers(options.device) if given["workers"] is None else given["workers"]
    return Resources(workers, given["cache"], folder)


def _add(options: tuple[Callable[[_Command], _Command], ...], command: _Command) -> _Command:
    # As decorators do: the last one is applied first, so that --help lists them in order.
    for option in reversed(options):
        command = option(command)
    return command
