"""The checkpoints that ship: they fit the package, their cards name them, and they segment real lungs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from unetx_opt.cli.train_step import bind_step
from unetx_opt.models.checkpoint import load_model, read_checkpoint, reference_checkpoint
from unetx_opt.models.postprocess import read_step
from unetx_opt.models.variants import VARIANTS
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.scores import score_model, summarize_scores

torch = pytest.importorskip("torch", reason="checkpoints hold tensors: pip install 'unetx-opt[export]'")

_RECORD = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "reference-test-2026-11-23.json"
_MAX_BYTES = 60_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_shipped_checkpoint_fits_its_variant_and_its_card_names_it(variant: str) -> None:
    path = reference_checkpoint(variant)
    checkpoint = read_checkpoint(path, variant=variant)
    assert checkpoint.spec.width == 16
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert checkpoint.sha256 in card
    assert "NOT for clinical use" in card
    assert "CC BY-NC-SA 4.0" in card
    for citation in ("Jaeger", "Candemir", "Stirenko"):
        assert citation in card
    training = json.loads(checkpoint.metadata["training"])
    assert training["variant"] == ("unet" if variant == "crf" else variant)
    # The weights of crf are those of unet: its card says so in place of a training of its own.
    source = (
        "--weights unet.safetensors" if training["variant"] != variant else f"--epochs {training['epochs']} --size"
    )
    assert source in card


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_shipped_checkpoint_segments_unseen_lungs(lungs: Path, variant: str) -> None:
    if VARIANTS[variant].postprocess is not None:
        pytest.importorskip("numba", reason="its masks need the CRF: pip install 'unetx-opt[crf]'")
    dataset = FolderDataset.open(lungs, "test")
    # Every eighth image: both collections, normal and tuberculous.
    handful = dataclasses.replace(dataset, names=dataset.names[::8])
    checkpoint = read_checkpoint(reference_checkpoint(variant))
    data = json.loads(checkpoint.metadata["data"])
    assert data["train_sha256"] == FolderDataset.open(lungs, "train").digest()
    refiner = bind_step(read_step(checkpoint), 256)
    scores = summarize_scores(score_model(load_model(checkpoint), handful, 256, refiner))
    assert scores["n"] == 9
    assert scores["dice"]["mean"] >= 0.95


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_figures_of_a_card_are_those_of_the_record_of_its_own_weights(variant: str) -> None:
    row = json.loads(_RECORD.read_text(encoding="utf-8"))["variants"][variant]
    path = reference_checkpoint(variant)
    assert read_checkpoint(path).sha256 == row["model"]["sha256"]
    table = _row_of(path.with_suffix(".md"), "| test | 256 x 256 |")
    figures = row["metrics"] | {"iou": row["lungs_iou"]}
    shown = [f"{figures[key]['mean']:.4f} +/- {figures[key]['std']:.4f}" for key in ("dice", "iou", "accuracy")]
    lowest = f"{min(image['dice'] for image in row['per_image'].values()):.4f}"
    assert [text for text in (*shown, lowest, str(row["n"])) if f"| {text} |" not in table] == []
    miou = f"{figures['miou']['mean']:.4f} +/- {figures['miou']['std']:.4f}"
    assert miou in path.with_suffix(".md").read_text(encoding="utf-8")
    assert figures["dice"]["mean"] >= 0.955
    assert figures["miou"]["mean"] >= 0.92


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "unet"])
def test_card_and_readme_show_the_recorded_difference_of_each_variant(variant: str) -> None:
    row = json.loads(_RECORD.read_text(encoding="utf-8"))["variants"][variant]
    digits = 6 if variant == "crf" else 4
    for figure, title in (("dice", "Dice"), ("miou", "mIoU"), ("accuracy", "pixel accuracy")):
        found = row["against_unet"][figure]
        mean, low, high = (f"{value:+.{digits}f}" for value in (found["mean"], *found["ci95"]))
        p_value = "< 0.0001" if found["p"] < 1e-4 else f"{found['p']:.4f}"
        line = _row_of(reference_checkpoint(variant).with_suffix(".md"), f"| {title} |")
        assert line == f"| {title} | {mean} | {low} to {high} | {p_value} |"
    line = _row_of(_RECORD.parents[2] / "README.md", f"| `{variant}` |")
    found = row["against_unet"]["dice"]
    low, high = found["ci95"]
    assert f"| {row['metrics']['dice']['mean']:.4f} | {found['mean']:+.4f} ({low:+.4f} to {high:+.4f}) |" in line


def test_the_weights_of_all_variants_stay_small() -> None:
    assert sum(reference_checkpoint(variant).stat().st_size for variant in VARIANTS) <= _MAX_BYTES


def _row_of(page: Path, start: str) -> str:
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(start)]
    assert len(lines) == 1, f"{page.name} has {len(lines)} lines that begin with {start!r}"
    return lines[0]
