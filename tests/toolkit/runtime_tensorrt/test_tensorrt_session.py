"""TensorRT sessions on a test double of the package and a fake CUDA driver: no GPU takes part.

The double's engine has the input (N, 1, 4, 4), a largest batch of 2, and computes logits = 2 image + 1.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.errors import EngineError, MissingPackageError
from unetx_opt.runtime.cuda_memory import CudaDriver
from unetx_opt.runtime.sessions import tensorrt
from unetx_opt.runtime.sessions.base import OpenRequest
from unetx_opt.runtime.sessions.tensorrt import open_tensorrt, version_numbers, why_not_tensorrt, why_not_tensorrt_rtx
from unetx_opt.runtime.sessions.tensorrt_engine import CACHE_VARIABLE, TensorRTSession
from unetx_opt.specs import EngineRecord, Host

TEN, ELEVEN, RTX = "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116"
VERSIONS = pytest.mark.parametrize("version", [TEN, ELEVEN, RTX])
PLAN = b"a plan of the test double"

MakeDouble = Callable[..., Any]


def record_for(version: str, **changes: Any) -> EngineRecord:
    module, _, number = version.partition("-")
    fields = {
        "target": module.replace("_", "-"),
        "files": ("engines/x/engine.plan",),
        "compute_dtype": "float16",
        "compute_capabilities": ("8.6", "8.9"),
        "tools": {module: number},
    }
    return EngineRecord(**{**fields, **changes})


def host_for(version: str, **changes: Any) -> Host:
    module, _, number = version.partition("-")
    fields = {
        "system": "Linux",
        "machine": "x86_64",
        "packages": {module: number},
        "compute_capability": "8.6",
        "gpu": "a GPU",
        "driver": "99.0",
    }
    return Host(**{**fields, **changes})


def open_double(double: Any, library: Any, version: str) -> TensorRTSession:
    return TensorRTSession(double, CudaDriver(library), record_for(version), PLAN)


def images(count: int) -> Any:
    return np.random.default_rng(count).random((count, 1, 4, 4), dtype=np.float32)


@VERSIONS
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_images_is_run_in_batches_with_a_test_double(
    make_double: MakeDouble, library: Any, version: str, count: int
) -> None:
    double, batch = make_double(version), images(count)
    with open_double(double, library, version) as session:
        assert (session.target, session.compute_dtype) == (version.partition("-")[0].replace("_", "-"), "float16")
        np.testing.assert_array_equal(session.infer(batch), 2 * batch + 1)
    sizes = [shape[0] for _, shape in double.called("IExecutionContext.set_input_shape")]
    assert sizes == [min(2, count - start) for start in range(0, count, 2)]
    assert library.is_clean


def test_results_stay_as_they_are_when_the_next_image_is_run_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    with open_double(make_double(ELEVEN), library, ELEVEN) as session:
        first = session.infer(images(1))
        kept = first.copy()
        session.infer(images(2))
        np.testing.assert_array_equal(first, kept)


@VERSIONS
def test_a_profiler_is_told_of_every_layer_from_then_on_with_a_test_double(
    make_double: MakeDouble, library: Any, version: str
) -> None:
    double = make_double(version, layer_ms={"stem": 0.5})
    told: list[tuple[str, float]] = []

    class Profiler(double.IProfiler):  # type: ignore[misc, name-defined]
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            told.append((layer_name, ms))

    with open_double(double, library, version) as session:
        session.infer(images(1))
        assert told == []
        session.report_layers_to(Profiler())
        np.testing.assert_array_equal(session.infer(images(3)), 2 * images(3) + 1)
    assert told == [("stem", 0.5)] * 2  # three images are two batches of the double
    assert library.is_clean


def test_images_that_are_not_contiguous_are_read_right_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    batch = images(2).transpose(0, 1, 3, 2)
    with open_double(make_double(RTX), library, RTX) as session:
        np.testing.assert_array_equal(session.infer(batch), 2 * batch + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 1, 4, 5), np.float32),
        np.zeros((1, 2, 4, 4), np.float32),
        np.zeros((1, 4, 4), np.float32),
        np.zeros((0, 1, 4, 4), np.float32),
        np.zeros((1, 1, 4, 4), np.float64),
    ],
    ids=["width", "channels", "axes", "empty", "type"],
)
def test_an_input_that_does_not_fit_is_refused_with_a_test_double(
    make_double: MakeDouble, library: Any, wrong: Any
) -> None:
    with (
        open_double(make_double(RTX), library, RTX) as session,
        pytest.raises(EngineError, match=r"expected float32 \(N, 1, 4, 4\)"),
    ):
        session.infer(wrong)


def test_a_closed_session_refuses_images_and_may_be_closed_again_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    session = open_double(make_double(RTX), library, RTX)
    session.close()
    session.close()
    assert library.is_clean
    with pytest.raises(EngineError, match="tensorrt-rtx is closed: open the engine again"):
        session.infer(images(1))


def test_threads_take_turns_with_a_test_double(make_double: MakeDouble, library: Any) -> None:
    wrong: list[int] = []
    with open_double(make_double(ELEVEN), library, ELEVEN) as session:

        def run(count: int) -> None:
            batch = images(count)
            for _ in range(20):
                if not np.array_equal(session.infer(batch), 2 * batch + 1):
                    wrong.append(count)

        threads = [threading.Thread(target=run, args=(count,)) for count in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert library.is_clean


@VERSIONS
def test_a_plan_that_the_package_refuses_is_an_error_with_its_reason_with_a_test_double(
    make_double: MakeDouble, library: Any, version: str
) -> None:
    with pytest.raises(EngineError, match=r"refuses the engine: no CUDA-capable device, or not my plan; rebuild"):
        TensorRTSession(make_double(version), CudaDriver(library), record_for(version), b"another plan")
    assert library.is_clean


def test_an_engine_with_tensors_of_another_type_is_refused_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    double = make_double(RTX, io_dtype="float16")
    with pytest.raises(EngineError, match=r"the engine's image is float16 .*, expected float32 \(N, C, H, W\)"):
        open_double(double, library, RTX)
    assert library.is_clean


def test_a_failed_run_is_an_error_and_the_session_can_be_closed_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    with (
        open_double(make_double(RTX, execution_fails=True), library, RTX) as session,
        pytest.raises(EngineError, match="tensorrt-rtx failed: it gave no reason"),
    ):
        session.infer(images(1))
    assert library.is_clean


def test_a_device_that_fails_while_it_computes_is_an_error_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    with open_double(make_double(RTX), library, RTX) as session:
        library.failures["cuStreamSynchronize"] = 719
        with pytest.raises(EngineError, match="failed in cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED"):
            session.infer(images(1))
    assert library.is_clean


def test_a_device_without_memory_is_an_error_and_leaves_nothing_with_a_test_double(
    make_double: MakeDouble, library: Any
) -> None:
    library.failures["cuMemAlloc_v2"] = 2
    with pytest.raises(EngineError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        open_double(make_double(RTX), library, RTX)
    assert library.is_clean


def test_compiled_kernels_are_kept_where_a_folder_is_named_with_a_test_double(
    make_double: MakeDouble, library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kernels"))
    kept = tmp_path / "kernels" / f"{hashlib.sha256(PLAN).hexdigest()}.kernels"
    first, second = make_double(RTX), make_double(RTX)
    open_double(first, library, RTX).close()
    assert kept.read_bytes() == b"kernels"
    assert first.called("IRuntimeCache.deserialize") == []
    open_double(second, library, RTX).close()
    assert second.called("IRuntimeCache.deserialize") == [(b"kernels",)]


def test_no_kernels_are_kept_unless_a_folder_is_named_with_a_test_double(
    make_double: MakeDouble, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    double = make_double(RTX)
    open_double(double, library, RTX).close()
    assert double.called("IRuntimeConfig.create_runtime_cache") == []


def test_a_folder_that_cannot_be_written_is_a_warning_with_a_test_double(
    make_double: MakeDouble,
    library: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with open_double(make_double(RTX), library, RTX) as session:
        session.infer(images(1))
    assert "compiled kernels cannot be kept" in caplog.text
    assert library.is_clean


def test_opening_reads_the_verified_bytes_with_a_test_double(
    make_double: MakeDouble, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "require", lambda module, purpose: make_double(RTX))
    monkeypatch.setattr(tensorrt, "load_driver", lambda: CudaDriver(library))
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        return PLAN

    with open_tensorrt(OpenRequest(record_for(RTX), read)) as session:
        assert session.infer(images(1)).shape == (1, 1, 4, 4)
    assert asked == ["engines/x/engine.plan"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "openvino-cpu"}, "openvino-cpu is no target of TensorRT, expected one of tensorrt, tensorrt-rtx"),
        ({"files": ("a", "b")}, "tensorrt-rtx has 2 files, expected one plan"),
    ],
)
def test_a_record_of_another_kind_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_tensorrt(OpenRequest(record_for(RTX, **changes), lambda name: PLAN))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r"unetx-opt\[tensorrt\]"):
        open_tensorrt(OpenRequest(record_for(TEN), lambda name: PLAN))


@VERSIONS
def test_nothing_stands_against_a_fitting_engine(version: str) -> None:
    why_not = why_not_tensorrt_rtx if version == RTX else why_not_tensorrt
    assert why_not(host_for(version)) is None
    assert why_not(host_for(version), record_for(version)) is None
    assert why_not(host_for(version, packages={version.partition("-")[0]: "unknown"}), record_for(version)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"packages": {}}, "the package tensorrt_rtx is not installed: run pip install 'unetx-opt[rtx]'"),
        ({"compute_capability": None}, "there is no CUDA device, or its driver cannot be used"),
        (
            {"driver": "12.8"},
            "the installed tensorrt_rtx needs a driver for CUDA 13, this one offers 12.8: update the NVIDIA driver",
        ),
        (
            {"compute_capability": "7.5"},
            "engine built for sm_86, sm_89, this GPU is sm_75: rebuild with --compute-capability 7.5",
        ),
        (
            {"compute_capability": "12.0"},
            "engine built for sm_86, sm_89, this GPU is sm_120: rebuild with --compute-capability 12.0",
        ),
        (
            {"packages": {"tensorrt_rtx": "1.8.0.1"}},
            "engine built by tensorrt_rtx 1.7.1.116, installed is 1.8.0.1, which cannot read it: "
            "run pip install tensorrt_rtx==1.7.1.116, or rebuild the bundle",
        ),
    ],
    ids=["package", "device", "driver", "older GPU", "newer GPU", "version"],
)
def test_what_stands_against_an_engine_is_said_with_the_next_step(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "_cuda_major", lambda module: 13)
    assert why_not_tensorrt_rtx(host_for(RTX, **changes), record_for(RTX)) == reason


def test_a_tensorrt_engine_stays_on_its_kind_of_system() -> None:
    record = record_for(ELEVEN, settings={"platform": "Linux-x86_64", "max_batch": "4"})
    assert why_not_tensorrt(host_for(ELEVEN), record) is None
    reason = why_not_tensorrt(host_for(ELEVEN, system="Windows", machine="AMD64"), record)
    assert reason is not None
    assert reason.startswith("engine built on Linux-x86_64, this is Windows-AMD64")
    assert why_not_tensorrt_rtx(host_for(RTX, system="Windows", machine="AMD64"), record_for(RTX)) is None


def test_the_cuda_version_of_the_installed_wheel_is_read_from_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def distribution(name: str) -> Any:
        if name != "tensorrt_cu12":
            raise importlib.metadata.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert tensorrt._cuda_major("tensorrt") == 12
    assert tensorrt._cuda_major("tensorrt_rtx") is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1.7.1.116", (1, 7, 1, 116)), ("10.16", (10, 16)), ("11.4.0.post1", (11, 4, 0)), ("unknown", ())],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(text) == numbers
