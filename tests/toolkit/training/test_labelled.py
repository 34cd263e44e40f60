"""What training asks of a data set: its identity in one pass, its classes, its labels in a mirror."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.errors import DataError
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.labelled import class_count, identify, mirrored_labels
from unetx_opt.training.nih import LABEL_SETS


def test_the_identity_of_a_folder_is_the_one_that_checkpoints_name(ellipse_folder: Path) -> None:
    """By the definition and no code of the package: names and SHA-256 of images and masks, line by line."""
    dataset = FolderDataset.open(ellipse_folder, "train")
    lines = [
        f"{folder}/{name} {hashlib.sha256((ellipse_folder / folder / name).read_bytes()).hexdigest()}\n"
        for name in dataset.names
        for folder in ("images", "masks")
    ]
    identity = identify(dataset)
    assert identity.digest == dataset.digest() == hashlib.sha256("".join(lines).encode()).hexdigest()
    pairs = ["".join(lines[index : index + 2]) for index in range(0, len(lines), 2)]
    assert identity.keys == tuple(hashlib.sha256(pair.encode()).digest() for pair in pairs)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"1")
    with pytest.raises(DataError, match=r"masks.a\.png cannot be read: No such file"):
        identify(FolderDataset(tmp_path, None, ("a.png",)))


def test_one_class_has_one_logit_and_several_have_one_each_with_the_background() -> None:
    assert [class_count(names) for names in LABEL_SETS.values()] == [1, 4]
    with pytest.raises(DataError, match="at least one class"):
        class_count(("background",))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("background", "lungs"), (0, 1)),
        (("background", "left lung", "right lung", "heart"), (0, 2, 1, 3)),
        (("background", "right lung", "heart", "left lung"), (0, 3, 2, 1)),
        (("background", "left clavicle", "left lung", "right lung", "right clavicle"), (0, 4, 3, 2, 1)),
        (("background", "left ventricle"), None),
        (("background", "rightmost", "leftover"), (0, 1, 2)),
    ],
)
def test_a_mirror_swaps_the_two_sides_of_an_organ_and_nothing_else(
    names: tuple[str, ...], expected: tuple[int, ...] | None
) -> None:
    assert mirrored_labels(names) == expected


@given(st.lists(st.sampled_from(["left lung", "right lung", "heart", "left rib", "right rib"]), unique=True))
def test_two_mirrors_are_none(names: list[str]) -> None:
    mirrored = mirrored_labels(("background", *names))
    if mirrored is not None:
        assert [mirrored[label] for label in mirrored] == list(range(len(names) + 1))
