"""The CRF as a graph of standard operators, against the separate step."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, refine

pytestmark = pytest.mark.skipif(BACKENDS["grid"].why_not() is not None, reason=str(BACKENDS["grid"].why_not()))
WAYS = {
    "moments, ScatterElements": 1e-4,
    "moments, ScatterND": 1e-4,
    "low rank": 0.1,
    "nearest, 8 px": 1.0,
    "nearest, 20 px": 2.5,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_graph_computes_what_the_step_does(name: str) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from unetx_bench.crf_graphs import FORMULATIONS, crf_model
    from unetx_kernels.dense_crf.reference import Energies

    assert set(WAYS) == set(FORMULATIONS)
    random = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    bright = np.hypot(x - 60, y - 50) < 35
    image = np.clip(np.where(bright, 170, 60) + random.normal(scale=8, size=bright.shape), 0, 255).astype(np.uint8)
    logit = (np.where(bright, 1.0, -1.0) + random.normal(size=bright.shape)).astype(np.float32)
    parameters = CrfParameters(iterations=3)
    energies = Energies(**{field: getattr(parameters, field) for field in Energies.__dataclass_fields__})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # ScatterND loses additions with more
    model = crf_model(image.shape, FORMULATIONS[name], energies, 3).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"logit": logit, "grey": image.astype(np.float32)})
    step = refine(logit[np.newaxis], image, parameters)
    assert np.abs(found - step.logits_khw[0]).max() < WAYS[name]
    assert ((found > 0) == (step.labels_hw == 1)).mean() > 0.999
