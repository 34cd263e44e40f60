"""Where the parts of ChestX-ray14 lie in a folder, and which split each image is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from unetx_opt.errors import DataError
from unetx_opt.training.chest_xray14 import read_data_entries, read_file_list
from unetx_opt.training.chexmask import ORGANS, is_chexmask_table
from unetx_opt.training.datasets import split_of_name

__all__ = ["assign_splits", "entry_table", "find_images", "find_table"]

_ENTRY_NAMES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS: Final = {"train_val": "train_val_list.txt", "test": "test_list.txt"}


def entry_table(root: Path) -> Path | None:
    """Find the table of patients; None where the folder has none and so is no ChestX-ray14."""
    paths = (root / (name + ending) for name in _ENTRY_NAMES for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def assign_splits(root: Path) -> dict[str, str]:
    """Read which image is in which split.

    Returns
    -------
    dict
        Image name -> a key of `unetx_opt.training.datasets.SPLITS`.

    Raises
    ------
    DataError
        A table or one of the two lists is missing or malformed, or a patient is in both lists.
    """
    table = entry_table(root)
    if table is None:
        raise DataError(f"{root} has no {' or '.join(_ENTRY_NAMES)}: copy it from the ChestX-ray14 release")
    patients: dict[str, str] = {}
    for entry in read_data_entries(table):
        if entry.name in patients:
            raise DataError(f"{table}: {entry.name} is listed twice")
        patients[entry.name] = entry.patient
    lists = {part: root / name for part, name in _LISTS.items()}
    found = [part for part, path in lists.items() if path.is_file()]
    if not found:
        return {name: split_of_name(patient) for name, patient in patients.items()}
    if len(found) == 1:
        raise DataError(f"{root} has {_LISTS[found[0]]} alone: add the other list, or take both away")
    return dict(_assign_listed(lists, patients))


def _assign_listed(lists: Mapping[str, Path], patients: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    part_of_patient: dict[str, str] = {}
    listed: set[str] = set()
    for part, path in lists.items():
        for name in read_file_list(path):
            if name not in patients:
                raise DataError(f"{path}: {name} has no row in the Data_Entry table")
            if name in listed:
                raise DataError(f"{path}: {name} is listed twice")
            listed.add(name)
            patient = patients[name]
            if part_of_patient.setdefault(patient, part) != part:
                raise DataError(
                    f"{path}: patient {patient} ({name}) is in both lists: keep all images of a patient in one"
                )
            yield name, "test" if part == "test" else _split_without_test(patient)


def _split_without_test(patient: str) -> str:
    """Divide patients among the splits but test: a place that falls on test is drawn again."""
    draw, split = patient, split_of_name(patient)
    while split == "test":
        draw += "+"
        split = split_of_name(draw)
    return split


def find_table(root: Path) -> Path:
    """Find the one CheXmask table of a folder.

    Raises
    ------
    DataError
        There is none, or more than one.
    """
    found = sorted(path for path in root.glob("*.csv") if is_chexmask_table(path))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{root} must hold one CheXmask table (columns {', '.join(ORGANS)}), it has {names}: "
            "add one, or name the one to use"
        )
    return found[0]


def find_images(root: Path) -> dict[str, Path]:
    """List the images of a folder.

    Returns
    -------
    dict
        File name -> the folder that it is in.

    Raises
    ------
    DataError
        There is no folder of images, or a name is in two of them.
    """
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    if not folders:
        raise DataError(
            f"{root} has neither images/ nor images_001/images/: unpack the archives of the release there"
        )
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.iterdir():
            if found.setdefault(path.name, folder) != folder:
                raise DataError(f"{path.name} is in {found[path.name]} and in {folder}: keep one of them")
    return found
