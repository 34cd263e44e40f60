"""One small bundle of real engines, and its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

SIZE_PX = 64


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net of width 4 with random weights, its last bias such that half of a phantom is foreground."""
    import torch

    from unetx_opt.imaging.phantom import chest_phantom
    from unetx_opt.imaging.preprocess import prepare_image
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import variant_spec
    from unetx_opt.specs import InputContract

    torch.manual_seed(0)
    model = build_model(variant_spec("unet", width=4, depth=2)).eval()
    image, _ = prepare_image(chest_phantom(1, size_px=SIZE_PX)[0], InputContract(height=SIZE_PX, width=SIZE_PX))
    with torch.no_grad():
        logits = model(torch.from_numpy(image)[None])
        bias = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")][-1]
        bias -= logits.median()
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, model, "unet")
    return path


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines for OpenVINO and ONNX Runtime on the CPU, 64 x 64 px, FP32."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    from unetx_exporters.options import BuildOptions
    from unetx_exporters.pipeline import build_bundle
    from unetx_opt.specs import Precision

    path = tmp_path_factory.mktemp("bundle") / "small"
    options = BuildOptions(
        variant="unet",
        precision=Precision.FP32,
        output=path,
        targets=("openvino-cpu", "onnxruntime-cpu"),
        checkpoint=small_checkpoint,
        size_px=SIZE_PX,
        gate="off",
    )
    build_bundle(options, lambda stage, done, total: None)
    return path
