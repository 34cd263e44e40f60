"""Engines that really run: ``pytest -rs tests/exporters/tensorrt/test_on_a_gpu.py`` on a machine with a CUDA device.

Each engine is built for the device that is there, opened as the runtime does it, and compared with ONNX Runtime on
the CPU on random images.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from unetx_exporters.request import BuildRequest
from unetx_exporters.tensorrt.attest import arithmetic_nodes
from unetx_exporters.tensorrt.build import build_tensorrt, build_tensorrt_rtx
from unetx_exporters.tensorrt.header import CAPABILITY_BITS
from unetx_opt.runtime.host import probe_host
from unetx_opt.runtime.sessions.base import OpenRequest, Session
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import EngineRecord, Host

SIZE_PX = 64
BUILDERS = {"tensorrt": build_tensorrt, "tensorrt-rtx": build_tensorrt_rtx}
#: Largest difference from ONNX Runtime, relative to the largest logit.
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2}
DTYPES = {"fp32": "float32", "fp16": "float16"}

both_precisions = pytest.mark.parametrize("precision", ["fp32", "fp16"])


@pytest.fixture(scope="module")
def host() -> Host:
    found = probe_host()
    if found.compute_capability is None:
        pytest.skip("needs a CUDA device and its driver; there is none here")
    return found


@pytest.fixture(params=["tensorrt-rtx", "tensorrt"])
def target(request: pytest.FixtureRequest, host: Host) -> str:
    name: str = request.param
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        pytest.skip(f"needs the package {name.replace('-', '_')}, which is not installed")
    if name == "tensorrt-rtx" and host.compute_capability not in CAPABILITY_BITS:
        pytest.skip(f"TensorRT-RTX builds for no GPU of compute capability {host.compute_capability}")
    return name


@pytest.fixture
def build_here(
    target: str, host: Host, make_request: Callable[..., BuildRequest], make_unet: Callable[..., Any]
) -> Callable[[str], tuple[BuildRequest, EngineRecord]]:
    """Return a function: precision -> request and engine for the device that is there."""

    def build(precision: str) -> tuple[BuildRequest, EngineRecord]:
        request = make_request(precision, graph=make_unet(width=8, depth=3, size=SIZE_PX, dtype=DTYPES[precision]))
        types = dict.fromkeys(arithmetic_nodes(request.graph), DTYPES[precision])
        assert host.compute_capability is not None
        request = dataclasses.replace(request, layer_types=types, compute_capabilities=(host.compute_capability,))
        (record,) = BUILDERS[target](request)
        return request, record

    return build


@contextmanager
def opened(request: BuildRequest, record: EngineRecord) -> Iterator[Session]:
    read = lambda name: (request.directory / name).read_bytes()  # noqa: E731
    with SESSIONS[record.target].open(OpenRequest(record, read)) as session:
        yield session


def expected_logits(request: BuildRequest, images: Any) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(request.graph.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


@both_precisions
def test_an_engine_gives_the_logits_of_onnx_runtime(
    build_here: Callable[..., Any], host: Host, precision: str
) -> None:
    request, record = build_here(precision)
    assert SESSIONS[record.target].why_not(host, record) is None
    rng = np.random.default_rng(3)
    with opened(request, record) as session:
        assert session.compute_dtype == DTYPES[precision]
        for count in (1, 4, 3, 6):  # the largest batch of the engine is 4
            images = rng.random((count, 1, SIZE_PX, SIZE_PX), dtype=np.float32)
            expected = expected_logits(request, images)
            error = np.abs(session.infer(images) - expected).max() / np.abs(expected).max()
            assert error < BOUNDS[precision], f"batch of {count}"


def test_an_image_gives_the_same_logits_alone_again_and_in_a_batch(build_here: Callable[..., Any]) -> None:
    request, record = build_here("fp16")
    images = np.random.default_rng(4).random((4, 1, SIZE_PX, SIZE_PX), dtype=np.float32)
    with opened(request, record) as session:
        first = session.infer(images[:1])
        np.testing.assert_array_equal(session.infer(images[:1]), first)
        error = np.abs(session.infer(images)[:1] - first).max() / np.abs(first).max()
    assert error < BOUNDS["fp16"]


def test_an_engine_can_be_opened_again_after_it_was_closed(build_here: Callable[..., Any]) -> None:
    request, record = build_here("fp32")
    images = np.random.default_rng(5).random((1, 1, SIZE_PX, SIZE_PX), dtype=np.float32)
    results = []
    for _ in range(3):
        with opened(request, record) as session:
            results.append(session.infer(images))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_two_engines_run_beside_one_another(build_here: Callable[..., Any]) -> None:
    request, record = build_here("fp32")
    images = np.random.default_rng(6).random((2, 1, SIZE_PX, SIZE_PX), dtype=np.float32)
    with opened(request, record) as one, opened(request, record) as two:
        np.testing.assert_array_equal(one.infer(images), two.infer(images))
