"""A model that is small and quick, and good enough at phantoms for a gate to mean something."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY_SIZE_PX = 64


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attention model of width 4 and depth 3, trained for seconds on phantoms of 64 x 64 px."""
    import numpy as np
    import torch

    from unetx_opt.imaging.phantom import chest_phantom
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec
    from unetx_opt.specs import InputContract

    contract = InputContract(height=TINY_SIZE_PX, width=TINY_SIZE_PX)
    pairs = [chest_phantom(seed, size_px=TINY_SIZE_PX) for seed in range(32)]
    images = torch.from_numpy(np.stack([prepare_image(pixels, contract)[0] for pixels, _ in pairs]))
    masks = torch.from_numpy(np.stack([mask for _, mask in pairs]).astype(np.float32))[:, None]
    torch.manual_seed(0)
    model = build_model(variant_spec("attention", width=4, depth=3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        batch = torch.randperm(len(images))[:8]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images[batch]), masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    write_checkpoint(path, model.eval(), "attention")
    return path
