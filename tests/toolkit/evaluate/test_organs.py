"""Three organs on radiographs of other proportions than their copies: every figure, in pixels and in millimetres,
against scikit-learn, brute force and MONAI on the masks that the command saves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main
from unetx_opt.imaging.phantom import chest_phantom

torch = pytest.importorskip("torch")

SIDE = 64
LABELS = ("background", "left lung", "right lung", "heart")
# Width and height of the original radiographs, and the spacing of their columns and rows, by image.
ORIGINALS = ((2500, 2048, 0.168, 0.168), (2992, 2991, 0.143, 0.143), (1500, 3000, 0.2, 0.1), (2000, 1000, 0.0, 0.0))
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def runs_of(mask: Any) -> str:
    """1-based, row-major run lengths, as CheXmask writes them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]])))
    return " ".join(f"{start + 1} {stop - start}" for start, stop in edges.reshape(-1, 2))


def organs(index: int) -> Any:
    """Ellipses for two lungs and a heart; the last image has no heart."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for label, (row, column, tall, wide) in enumerate(((30, 45, 20, 10), (30, 19, 22, 11), (42, 36, 9, 11)), start=1):
        inside = ((rows - row - index) / tall) ** 2 + ((columns - column + index) / wide) ** 2 <= 1
        labels[inside] = label
    if index == len(ORIGINALS) - 1:
        labels[labels == 3] = 0
    return labels


@pytest.fixture(scope="module")
def chest_xray14(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chest_xray14")
    (root / "images").mkdir()
    entries, masks = [HEADER], ["Image Index,Dice RCA (Mean),Left Lung,Right Lung,Heart,Height,Width"]
    names = []
    for index, (width, height, column_mm, row_mm) in enumerate(ORIGINALS):
        names.append(f"{index + 1:08d}_000.png")
        entries.append(f"{names[-1]},No Finding,0,{index + 1},50,F,PA,{width},{height},{column_mm},{row_mm}")
        runs = (runs_of(organs(index) == label) for label in (1, 2, 3))
        masks.append(f"{names[-1]},0.9,{','.join(runs)},{SIDE},{SIDE}")
        Image.fromarray(chest_phantom(index, size_px=SIDE)[0]).save(root / "images" / names[-1])
    (root / "Data_Entry_2017.csv").write_text("\n".join(entries) + "\n")
    (root / "masks.csv").write_text("\n".join(masks) + "\n")
    (root / "test_list.txt").write_text("\n".join(names))
    (root / "train_val_list.txt").write_text("")
    return root


@pytest.fixture(scope="module")
def four_labels(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("four") / "four.safetensors", num_classes=4)


@pytest.fixture(scope="module")
def evaluated(
    chest_xray14: Path, four_labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[Any]]:
    """The document, and the masks that were saved, in the order of its rows."""
    out = tmp_path_factory.mktemp("evaluated")
    arguments = ["--checkpoint", four_labels, "--data", chest_xray14, "--save-masks", out, "-o", out / "x.json"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    document = json.loads((out / "x.json").read_text())
    return document, [np.array(Image.open(out / row["name"])) for row in document["per_image"]]


def spacing_of(index: int) -> tuple[float, float] | None:
    width, height, column_mm, row_mm = ORIGINALS[index]
    return (height * row_mm / SIDE, width * column_mm / SIDE) if column_mm else None


def boundary_of(mask: Any) -> Any:
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))


def brute_distances(found: Any, truth: Any, spacing: tuple[float, float]) -> tuple[float | None, float | None]:
    if found.any() != truth.any():
        return None, None
    if not truth.any():
        return 0.0, 0.0
    ends, others = (boundary_of(mask) * spacing for mask in (found, truth))
    distances = np.sqrt(((ends[:, None] - others[None]) ** 2).sum(axis=2))
    forth, back = distances.min(axis=1), distances.min(axis=0)
    return max(np.percentile(forth, 95), np.percentile(back, 95)), np.concatenate([forth, back]).mean()


def test_every_figure_of_every_class_equals_an_independent_computation(
    evaluated: tuple[dict[str, Any], list[Any]],
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    document, masks = evaluated
    assert document["n"] == len(ORIGINALS)
    for index, (row, found) in enumerate(zip(document["per_image"], masks, strict=True)):
        truth = organs(index)
        flat = truth.ravel(), found.ravel()
        options = {"labels": range(4), "average": None, "zero_division": 1.0}
        assert row["accuracy"] == pytest.approx(metrics.accuracy_score(*flat), abs=1e-6)
        recalls = [np.mean(found[truth == label] == label) for label in np.unique(truth)]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
        assert row["miou"] == pytest.approx(metrics.jaccard_score(*flat, **options).mean(), abs=1e-6)
        dice, iou = metrics.f1_score(*flat, **options), metrics.jaccard_score(*flat, **options)
        assert row["dice"] == pytest.approx(dice[1:].mean(), abs=1e-6)
        for label in (1, 2, 3):
            score = row["classes"][LABELS[label]]
            one = flat[0] == label, flat[1] == label
            assert score["dice"] == pytest.approx(dice[label], abs=1e-6)
            assert score["iou"] == pytest.approx(iou[label], abs=1e-6)
            assert score["accuracy"] == pytest.approx(metrics.accuracy_score(*one), abs=1e-6)
            if one[0].any():
                assert score["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(*one), abs=1e-6)


@pytest.mark.parametrize("unit", ["px", "mm"])
def test_distances_of_every_class_equal_brute_force_in_pixels_and_millimetres(
    evaluated: tuple[dict[str, Any], list[Any]], unit: str
) -> None:
    document, masks = evaluated
    for index, (row, found) in enumerate(zip(document["per_image"], masks, strict=True)):
        truth, spacing = organs(index), spacing_of(index) if unit == "mm" else (1.0, 1.0)
        expected = []
        for label in (1, 2, 3):
            here = brute_distances(found == label, truth == label, spacing) if spacing else (None, None)
            score = row["classes"][LABELS[label]]
            assert (score[f"hd95_{unit}"], score[f"assd_{unit}"]) == pytest.approx(here, abs=1e-6)
            expected.append(here)
        for place, figure in enumerate((f"hd95_{unit}", f"assd_{unit}")):
            values = [pair[place] for pair in expected]
            mean = None if None in values else np.mean(values)
            assert row[figure] == pytest.approx(mean, abs=1e-6)
    # The image of unknown spacing has no millimetres; the one without a heart has no finite mean distance either.
    assert document["per_image"][3]["spacing_mm"] is None
    assert document["per_image"][2]["spacing_mm"] == pytest.approx([3000 * 0.1 / SIDE, 1500 * 0.2 / SIDE])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own, about itself
def test_distances_in_millimetres_equal_monai(evaluated: tuple[dict[str, Any], list[Any]]) -> None:
    monai = pytest.importorskip("monai.metrics")
    document, masks = evaluated
    assert spacing_of(0) != (spacing_of(0) or (0, 0))[::-1], "proportions must differ for this test to see them"
    for index in (0, 1, 2):
        found, truth = (
            torch.tensor(np.stack([mask == label for label in (1, 2, 3)]))[None].float()
            for mask in (masks[index], organs(index))
        )
        options = {"include_background": True, "spacing": list(spacing_of(index) or ())}
        hd95 = monai.compute_hausdorff_distance(found, truth, percentile=95, **options)[0]
        assd = monai.compute_average_surface_distance(found, truth, symmetric=True, **options)[0]
        scores = [document["per_image"][index]["classes"][LABELS[label]] for label in (1, 2, 3)]
        # MONAI measures in float32, and these distances reach some 300 mm.
        assert [score["hd95_mm"] for score in scores] == pytest.approx(hd95.tolist(), rel=1e-6)
        assert [score["assd_mm"] for score in scores] == pytest.approx(assd.tolist(), rel=1e-6)


def test_summaries_rest_on_the_images_that_have_a_figure(evaluated: tuple[dict[str, Any], list[Any]]) -> None:
    document, _ = evaluated
    tables = [(document["metrics"], lambda row: row)]
    tables += [(document["classes"][label], lambda row, label=label: row["classes"][label]) for label in LABELS[1:]]
    for table, pick in tables:
        for figure, summary in table.items():
            values = [v for v in (pick(row)[figure] for row in document["per_image"]) if v is not None]
            assert summary["n"] == len(values)
            assert summary["mean"] == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
            assert summary["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert document["metrics"]["hd95_px"]["n"] == document["metrics"]["hd95_mm"]["n"] == 3


def test_a_class_that_a_mask_lacks_is_counted(evaluated: tuple[dict[str, Any], list[Any]]) -> None:
    document, masks = evaluated
    for label, counts in document["missing"].items():
        index = LABELS.index(label)
        pairs = [(bool((organs(i) == index).any()), bool((mask == index).any())) for i, mask in enumerate(masks)]
        assert counts == {
            "truth_only": pairs.count((True, False)),
            "found_only": pairs.count((False, True)),
            "neither": pairs.count((False, False)),
        }
        flags = [
            (row["classes"][label]["in_truth"], row["classes"][label]["in_found"]) for row in document["per_image"]
        ]
        assert flags == pairs
    assert document["missing"]["heart"]["found_only"] == 1


def test_the_tables_name_classes_units_and_what_is_missing(
    chest_xray14: Path, four_labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--checkpoint", str(four_labels), "--data", str(chest_xray14)]) == 0
    captured = capsys.readouterr()
    for words in ("By class", "left lung", "heart", "Hausdorff 95 % (mm)", "images where it was made up"):
        assert words in captured.out
    assert "heart: in the model's mask and not in the data set's in 1 images" in captured.err
    assert "00000004_000.png" in captured.err
    assert "1 images have no known pixel spacing" in captured.err


def test_differences_by_class_are_printed_and_few_images_are_said(
    chest_xray14: Path, four_labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--checkpoint", str(four_labels), "--data", str(chest_xray14)]
    for name in ("a.json", "b.json"):
        assert main([*arguments, "-o", str(tmp_path / name)]) == 0
    capsys.readouterr()
    against = [word for name in ("a.json", "b.json") for word in ("--against", str(tmp_path / name))]
    assert main([*arguments, *against]) == 0
    captured = capsys.readouterr()
    for words in ("The same by class", "heart: Dice", "left lung: Hausdorff 95 % (mm)", "p (Holm)"):
        assert words in captured.out
    assert "with 4 images the intervals are too narrow, and no p can be below 0.12" in captured.err
    assert "left out: hd95_px 1, assd_px 1, hd95_mm 1, assd_mm 1" in captured.err
