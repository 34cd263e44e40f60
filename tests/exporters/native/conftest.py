"""A small real bundle, variations of it, and the C library compiled as users do and with sanitizers."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.native.sources import source_folder

HERE = Path(__file__).parent
SIZE_PX = 64
STRICT = ("-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Job:
    """One image as a host would hand it over."""

    stored: np.ndarray
    bits_stored: int = 0
    photometric: int = 2
    gap: int = 0
    spacing_mm: tuple[float, float] | None = None

    @property
    def pixels(self) -> np.ndarray:
        """What Python segments: integers, larger is brighter, mirrored within the stored bits' range."""
        bits = self.bits_stored or 8 * self.stored.itemsize
        is_signed = self.stored.dtype.kind == "i"
        low = -(2 ** (bits - 1)) if is_signed else 0
        clipped = np.clip(self.stored.astype(np.int32), low, low + 2**bits - 1)
        return low + low + 2**bits - 1 - clipped if self.photometric == 1 else clipped


def tool(name: str) -> str:
    """Return a compiler's path; skip where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, which is not installed")
    return found


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments], check=True, capture_output=True, text=True, **options
    )


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """The shared library inside the installed wheel."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("the installed onnxruntime brings no libonnxruntime.so")
    return found[0]


@pytest.fixture(scope="session")
def native_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unetx_exporters.options import BuildOptions
    from unetx_exporters.pipeline import build_bundle
    from unetx_opt.specs import Precision

    output = tmp_path_factory.mktemp("native") / "bundle"
    options = BuildOptions(
        "attention",
        Precision.FP32,
        output,
        targets=("onnxruntime-cpu",),
        checkpoint=tiny_checkpoint,
        size_px=SIZE_PX,
        gate="off",
        native=True,
    )
    return build_bundle(options).bundle


def sensitive_engine(num_classes: int, channels: int, height: int, width: int) -> bytes:
    """An engine whose logits change their sign with the last bits of its input: it forgives no rounding."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    weights = (2.0**22 * rng.uniform(0.5, 1, (num_classes, channels, 1, 1))).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["large"]), helper.make_node("Sin", ["large"], ["logits"])],
        "sensitive",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, num_classes, height, width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture
def altered_bundle(native_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the bundle, lets its manifest be changed, and makes the hashes right again."""

    def alter(change: Callable[[dict[str, Any]], object] | None = None, engine: bytes | None = None) -> Path:
        number = len(list(tmp_path.glob("altered*")))
        directory = Path(shutil.copytree(native_bundle, tmp_path / f"altered{number}"))
        manifest = json.loads((directory / "manifest.json").read_bytes())
        if engine is not None:
            name = manifest["engines"][0]["files"][0]
            (directory / name).write_bytes(engine)
            manifest["files"][name] = {"sha256": hashlib.sha256(engine).hexdigest(), "size": len(engine)}
        if change is not None:
            change(manifest)
        write_manifest(directory, json.dumps(manifest).encode())
        return directory

    return alter


def write_manifest(directory: Path, data: bytes) -> None:
    (directory / "manifest.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (directory / "manifest.sha256").write_bytes(f"{digest}  manifest.json\n".encode())


@pytest.fixture(scope="session")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libunetx.so and the C example, compiled as strictly as the compiler can."""
    folder, sources, gcc = tmp_path_factory.mktemp("native-build"), source_folder(), tool("gcc")
    flags = ("-std=c11", *STRICT, "-O2")
    shared = ("-fPIC", "-shared", "-fvisibility=hidden")
    run(gcc, *flags, *shared, sources / "unetx.c", "-o", folder / "libunetx.so", "-ldl", "-lm")
    link = ("-L", folder, "-lunetx", f"-Wl,-rpath,{folder}")
    run(gcc, *flags, "-I", sources, sources / "examples/segment.c", "-o", folder / "segment", *link)
    return folder


@pytest.fixture(scope="session", params=["plain", "sanitized"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's own host program with the library compiled into it."""
    path, sources = tmp_path_factory.mktemp("driver") / "driver", source_folder()
    extra = SANITIZED if request.param == "sanitized" else ("-O2",)
    files = (sources / "unetx.c", HERE / "driver.c")
    run(tool("gcc"), "-std=gnu11", *STRICT, *extra, "-I", sources, *files, "-o", path, "-ldl", "-lm", "-pthread")
    return path


@pytest.fixture
def native_masks(driver: Path, onnxruntime_library: Path, tmp_path: Path) -> Callable[..., list[np.ndarray]]:
    """Return a function that segments jobs of a bundle in one process of the driver."""
    return functools.partial(segment_jobs, driver, onnxruntime_library, tmp_path)


def segment_jobs(
    driver: Path, library: Path, folder: Path, bundle: Path, jobs: Sequence[Job], threads: int | None = None
) -> list[np.ndarray]:
    """Segment with the driver; what lies between the rows of its masks must stay as it was."""
    lines, shapes = [], []
    for index, job in enumerate(jobs):
        source, target = folder / f"{index}.in", folder / f"{index}.out"
        height, width = job.stored.shape
        row = width * job.stored.itemsize
        padded = np.full((height, row + job.gap), 0x5A, np.uint8)
        padded[:, :row] = np.ascontiguousarray(job.stored).view(np.uint8).reshape(height, row)
        source.write_bytes(padded.tobytes()[: (row + job.gap) * (height - 1) + row])
        bits, is_signed = 8 * job.stored.itemsize, int(job.stored.dtype.kind == "i")
        spacing = job.spacing_mm or (0, 0)
        values = (height, width, bits, job.bits_stored, is_signed, job.photometric, row + job.gap)
        lines.append(" ".join(map(str, (*values, width + job.gap, *map(repr, spacing), source, target))))
        shapes.append((target, height, width, job.gap))
    arguments = [driver, bundle, library, *([] if threads is None else [str(threads)])]
    output = run(*arguments, input="\n".join(lines) + "\n").stdout
    assert output.split() == ["0"] * len(jobs), output
    return [_mask(*shape) for shape in shapes]


def _mask(path: Path, height: int, width: int, gap: int) -> np.ndarray:
    data = np.frombuffer(path.read_bytes() + b"\xaa" * gap, np.uint8).reshape(height, width + gap)
    assert (data[:, width:] == 0xAA).all()
    return data[:, :width]
