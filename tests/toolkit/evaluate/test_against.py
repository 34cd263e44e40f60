"""`evaluate --against` and `-o`: differences that are computed from the two documents, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.cli.main import main

pytest.importorskip("torch")

RunJson = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("other") / "other.safetensors", seed=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, checkpoint: Path) -> Path:
    """The evaluation that others are compared with."""
    path = tmp_path_factory.mktemp("saved") / "first.json"
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(phantoms), "-o", str(path)]) == 0
    return path


def test_the_saved_document_is_what_json_prints(
    phantoms: Path, checkpoint: Path, saved: Path, run_json: RunJson
) -> None:
    printed = run_json("--checkpoint", checkpoint, "--data", phantoms)
    assert json.loads(saved.read_text()) == printed
    assert len(printed["data_sha256"]) == 64
    dices = {row["name"]: row["dice"] for row in printed["per_image"]}
    assert [dices[name] for name in printed["worst_first"]] == sorted(dices.values())


def test_differences_are_those_of_the_two_documents(
    phantoms: Path, other_checkpoint: Path, checkpoint: Path, saved: Path, tmp_path: Path, run_json: RunJson
) -> None:
    stats = pytest.importorskip("scipy.stats")
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(run_json("--checkpoint", checkpoint, "--data", phantoms)))
    out = tmp_path / "second.json"
    options = ("--against", saved, "--against", copy, "-o", out)
    document = run_json("--checkpoint", other_checkpoint, "--data", phantoms, *options)
    assert json.loads(out.read_text()) == document
    assert list(document["differences"]) == [str(saved), str(copy)]
    first = {row["name"]: row for row in json.loads(saved.read_text())["per_image"]}
    for figure in document["metrics"]:
        row = document["differences"][str(saved)]["metrics"][figure]
        differences = np.array([image[figure] - first[image["name"]][figure] for image in document["per_image"]])
        assert differences.any()
        exact = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=-1, vectorized=True
        ).pvalue
        assert row["mean"] == pytest.approx(differences.mean(), abs=1e-12)
        assert row["p"] == pytest.approx(exact, abs=1e-12)
        assert row["p_holm"] == min(1.0, 2 * row["p"])
        assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
    assert document["differences"][str(saved)]["model"]["checkpoint"] == str(checkpoint)
    assert "sign-flip" in document["differences_method"]["p"]


def test_the_tables_say_what_differs_and_what_was_not_shown(
    phantoms: Path, checkpoint: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--data", str(phantoms), "--against", str(saved)]
    assert main(["evaluate", *arguments, "--worst", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"Difference, image by image, over 6 images: this - {saved}" in " ".join(printed.split())
    assert printed.count("none shown") == 6
    assert "+0.0000 to +0.0000" in printed
    assert "-0.0000" not in printed
    assert "Worst 2 of 6 images by Dice" in printed


def damaged(saved: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    document = json.loads(saved.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["per_image"].pop(2), "lacks 2.png"),
        (lambda document: document["per_image"][0].update(name="7.png"), "lacks 0.png"),
        (lambda document: document.update(data_sha256="0" * 64), "same names and other content"),
        (lambda document: document.pop("per_image"), "has no per_image rows"),
    ],
)
def test_an_evaluation_of_other_images_is_refused_before_anything_is_segmented(
    request: pytest.FixtureRequest,
    phantoms: Path,
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    saved, capsys = request.getfixturevalue("saved"), request.getfixturevalue("capsys")
    other, masks = damaged(saved, tmp_path / "other.json", change), tmp_path / "masks"
    arguments = ["--checkpoint", checkpoint, "--data", phantoms, "--against", other, "--save-masks", masks]
    assert main(["evaluate", *map(str, arguments), "--json"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not masks.exists()


def test_a_changed_mask_is_noticed(
    phantoms: Path, checkpoint: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / phantoms.name
    shutil.copytree(phantoms, copy)
    shutil.copyfile(copy / "masks" / "1.png", copy / "masks" / "0.png")
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(copy), "--against", str(saved)]) == 1
    assert "other content" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--contact-sheet", "--save-masks"])
def test_an_output_never_replaces_an_input(
    phantoms: Path, checkpoint: Path, saved: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(phantoms), "--against", str(saved)]
    before = saved.read_bytes()
    for path, message in (
        (phantoms / "images" / "x.png", "is inside --data"),
        (checkpoint, "would replace an input"),
        (saved, "would replace an input"),
    ):
        if option != "--save-masks" or path.suffix == "":
            assert main([*arguments, option, str(path)]) == 2
            assert message in capsys.readouterr().err
    assert saved.read_bytes() == before


def test_a_file_named_twice_is_refused(
    phantoms: Path, checkpoint: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--against", str(saved), "--against", str(saved.parent / "." / saved.name)]
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(phantoms), *twice]) == 2
    assert "names a file twice" in capsys.readouterr().err
