"""The checkpoints that ship: they fit the package, their cards name them, and they segment real lungs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from unetx_opt.models.checkpoint import load_model, read_checkpoint, reference_checkpoint
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.scores import score_model, summarize_scores

torch = pytest.importorskip("torch", reason="checkpoints hold tensors: pip install 'unetx-opt[export]'")

_SHIPPED = ("unet", "attention")


@pytest.mark.parametrize("variant", _SHIPPED)
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
    assert training["variant"] == variant
    assert f"--epochs {training['epochs']} --size {training['size_px']}" in card


@pytest.mark.parametrize("variant", _SHIPPED)
def test_a_shipped_checkpoint_segments_unseen_lungs(lungs: Path, variant: str) -> None:
    dataset = FolderDataset.open(lungs, "test")
    # Every eighth image: both collections, normal and tuberculous.
    handful = dataclasses.replace(dataset, names=dataset.names[::8])
    checkpoint = read_checkpoint(reference_checkpoint(variant))
    data = json.loads(checkpoint.metadata["data"])
    assert data["train_sha256"] == FolderDataset.open(lungs, "train").digest()
    scores = summarize_scores(score_model(load_model(checkpoint), handful, 256))
    assert scores["n"] == 9
    assert scores["dice"]["mean"] >= 0.95
