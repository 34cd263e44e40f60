"""What a run measured, epoch by epoch: ``metrics.csv`` for tables, and event files for TensorBoard where it is there.

A row is written before the state of its epoch. A run that was killed in between goes on before that row, so opening
the log drops it: every epoch is in the log once, whoever ran it and however often.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file
from unetx_opt.lifetime import Closing
from unetx_opt.optional import find, require

__all__ = ["EpochFigures", "MetricsLog", "has_rows"]

_FILE: Final = "metrics.csv"


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """One row.

    Attributes
    ----------
    epoch : int
        From 1.
    loss : float
        Mean over the steps.
    learning_rate : float
        Of the last step.
    validation_dice : float
        Mean over the validation images, on the network's grid.
    seconds : float
        Of the whole epoch, validation included.
    images_per_s : float
        Views that were trained on per second, validation left out.
    """

    epoch: int
    loss: float
    learning_rate: float
    validation_dice: float
    seconds: float
    images_per_s: float


class MetricsLog(Closing):
    """The log of one run in a folder of its own.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it does not exist.
    done : int
        Epochs that the run's state holds; 0 begins a new log. Later rows are dropped.

    Raises
    ------
    UnetxError
        The folder cannot be made, or a file in it is no log.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._path = folder / _FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._rows = [row for row in _read_rows(self._path) if int(row[0]) <= done]
        except (OSError, ValueError, csv.Error) as error:
            raise UnetxError(f"{self._path} is no metrics log ({error}): choose another --log") from error
        self._write_rows()
        self._events: Any = None
        if find("tensorboard"):
            writer = require("torch.utils.tensorboard", purpose="writing a metrics log").SummaryWriter
            # What earlier processes wrote from this step on is void: TensorBoard does not show it.
            self._events = writer(str(folder), purge_step=done + 1)

    def add(self, figures: EpochFigures) -> None:
        """Write the row of an epoch; it is on the disk when this returns."""
        values = dataclasses.asdict(figures)
        self._rows.append([str(value) for value in values.values()])
        self._write_rows()
        if self._events is not None:
            for name, value in values.items():
                if name != "epoch":
                    self._events.add_scalar(name, value, figures.epoch)
            self._events.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(EpochFigures))
        writer.writerows(self._rows)
        write_file(self._path, text.getvalue().encode())


def has_rows(folder: Path) -> bool:
    """Whether a folder holds a log with at least one epoch."""
    try:
        return bool(_read_rows(folder / _FILE))
    except (OSError, ValueError, csv.Error):
        return False


def _read_rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    expected = [field.name for field in dataclasses.fields(EpochFigures)]
    if header != expected or any(len(row) != len(expected) for row in rows):
        raise ValueError(f"its columns are not {', '.join(expected)}")
    return rows
