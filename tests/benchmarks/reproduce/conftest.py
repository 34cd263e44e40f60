"""Hand-made figures, and tiny networks with a small folder of synthetic images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
_NAME = "tests_benchmarks_reproduce_hand_made"


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """The module of hand-made figures, loaded from beside the tests: they are no package."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, HERE / "hand_made.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


@pytest.fixture(scope="session")
def ellipses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of 48 x 40 pixels with two dark ellipses: ten to train, four to validate, six to test."""
    root = tmp_path_factory.mktemp("ellipses")
    rows, columns = np.mgrid[0:48, 0:40]
    lines = ["file,patient,split"]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(20):
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


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks of width 4 and depth 2: the baseline, its copy by another loss, and the one with a step."""
    torch = pytest.importorskip("torch", reason="checkpoints need torch: pip install 'unetx-opt[export]'")
    from unetx_opt.imaging.dense_crf import CrfParameters
    from unetx_opt.imaging.refinement import crf_step_parameters
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.postprocess import METADATA_KEY, StepRecord, step_metadata
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec

    folder = tmp_path_factory.mktemp("checkpoints")
    step = step_metadata(StepRecord("dense_crf", crf_step_parameters(CrfParameters(), 32)))
    for seed, name in enumerate(("unet", "focal", "crf")):
        torch.manual_seed(seed)
        metadata = {METADATA_KEY: step} if name == "crf" else {}
        write_checkpoint(
            folder / f"{name}.safetensors", build_model(variant_spec(name, width=4, depth=2)), name, metadata
        )
    return folder
