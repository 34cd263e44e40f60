"""Small data sets and networks that `unetx-opt evaluate` runs on in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

SIDE = 64
COUNT = 6


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms of another size than the network's input, all in the test split."""
    root = tmp_path_factory.mktemp("phantoms")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    lines = ["file,patient,split"]
    for index in range(COUNT):
        image, mask = chest_phantom(index, size_px=96)
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        Image.fromarray(mask * np.uint8(255)).save(root / "masks" / f"{index}.png")
        lines.append(f"{index}.png,{index},test")
    (root / "splits.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """A function that writes an untrained network."""
    pytest.importorskip("torch")
    return _make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A function that runs the command with --json and returns the document."""

    def run(*arguments: Any) -> dict[str, Any]:
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


def _make_checkpoint(
    path: Path, *, variant: str = "unet", num_classes: int = 1, head_bias: float | None = None, seed: int = 3
) -> Path:
    """A network that was never trained, with as many pixels of each class: figures need errors of every kind."""
    import torch

    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec

    torch.manual_seed(seed)
    model = build_model(variant_spec("unet", width=4, depth=2, num_classes=num_classes))
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    prepared, _ = prepare_image(chest_phantom(0, size_px=96)[0], InputContract(height=SIDE, width=SIDE))
    image = torch.tensor(prepared)[None]
    with torch.no_grad():
        for _ in range(30):  # the running statistics of the normalisation come to fit the image
            model(image)
        model.eval()
        logits = model(image)[0].flatten(1)
        last.weight /= logits.std(dim=1)[:, None, None, None]
        last.bias -= last.bias
        last.bias -= model(image)[0].flatten(1).median(dim=1).values
        if head_bias is not None:
            last.bias.fill_(head_bias)
    write_checkpoint(path, model, variant, {"training": json.dumps({"size_px": SIDE})})
    return path
