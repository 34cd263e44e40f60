"""A small folder of synthetic radiographs, which tests of training share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def ellipse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of 48 x 40 pixels with two dark ellipses: ten to train, four to validate, two to test."""
    root = tmp_path_factory.mktemp("ellipses")
    rows, columns = np.mgrid[0:48, 0:40]
    lines = ["file,patient,split"]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(16):
        random = np.random.default_rng(index)
        mask = np.zeros((48, 40), dtype=bool)
        for column in (12, 28):
            centre = random.uniform(-2, 2, 2)
            mask |= ((rows - 24 - centre[0]) / 14) ** 2 + ((columns - column - centre[1]) / 6) ** 2 < 1
        grey = np.where(mask, 60, 170) + random.normal(0, 8, mask.shape)
        name = f"{index:02d}.png"
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(root / "masks" / name)
        lines.append(f"{name},p{index},{'train' if index < 10 else 'validation' if index < 14 else 'test'}")
    (root / "splits.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread of PyTorch: models of a few channels only wait for more."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
