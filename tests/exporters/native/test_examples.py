"""The examples as users compile them: C, C++ and C#; CMake; Windows, as far as a cross-compiler shows it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetx_exporters.native.sources import NATIVE_FOLDER, SOURCE_NAMES, copy_native, source_folder
from unetx_opt.bundle.open import open_verified
from unetx_opt.errors import ExportError
from unetx_opt.files import relative_name
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.runtime import open_bundle

from .conftest import run, tool

SOURCES = source_folder()


def write_pgm(path: Path, pixels: np.ndarray, top: int) -> None:
    height, width = pixels.shape
    data = pixels.astype(">u2" if top > 255 else "u1").tobytes()
    path.write_bytes(b"P5\n%d %d\n%d\n" % (width, height, top) + data)


def phantoms() -> list[tuple[np.ndarray, int]]:
    """20 films, every second one with 8 bits, from 64 x 64 to 112 x 109 px."""
    deep = [chest_phantom(seed, size_px=64 + 5 * (seed % 10))[0][:, seed % 4 :] for seed in range(3000, 3020)]
    return [(film, 4095) if i % 2 else ((film // 16).astype(np.uint8), 255) for i, film in enumerate(deep)]


def radiographs(folder: Path) -> list[tuple[np.ndarray, int]]:
    """20 real films of 8 bits, of odd sides."""
    paths = sorted((folder / "images").glob("*.png"))[::29][:20]
    films = [np.asarray(Image.open(path).convert("L")) for path in paths]
    return [(np.ascontiguousarray(film[index:, 2 * index :]), 255) for index, film in enumerate(films)]


@pytest.fixture(params=["phantoms", "radiographs"])
def films(request: pytest.FixtureRequest) -> list[tuple[np.ndarray, int]]:
    """20 images with their largest value; the real ones where they are."""
    found = phantoms() if request.param == "phantoms" else radiographs(request.getfixturevalue("lungs"))
    assert len(found) == 20
    return found


def assert_raw_example_agrees(
    command: list[str | Path], bundle: Path, library: Path, folder: Path, films: list[tuple[np.ndarray, int]]
) -> None:
    shallow = [pixels if top == 255 else (pixels // 16).astype(np.uint8) for pixels, top in films]
    with open_bundle(bundle, "onnxruntime-cpu") as segmenter:
        for index, pixels in enumerate(shallow):
            source, target = folder / f"{index}.in", folder / f"{index}.out"
            source.write_bytes(pixels.tobytes())
            height, width = pixels.shape
            environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
            run(*command, bundle, library, str(width), str(height), source, target, env=environment)
            labels = np.frombuffer(target.read_bytes(), np.uint8).reshape(height, width)
            assert np.array_equal(labels, segmenter.segment(pixels).labels)


def test_the_c_example_agrees_with_python_on_20_images(
    native_build: Path,
    native_bundle: Path,
    onnxruntime_library: Path,
    tmp_path: Path,
    films: list[tuple[np.ndarray, int]],
) -> None:
    pairs: list[Path] = []
    for index, (pixels, top) in enumerate(films):
        pairs += [tmp_path / f"{index}.pgm", tmp_path / f"{index}.mask.pgm"]
        write_pgm(pairs[-2], pixels, top)
    output = run(native_build / "segment", native_bundle, onnxruntime_library, *pairs).stdout
    assert "1 lungs" in output
    with open_bundle(native_bundle, "onnxruntime-cpu") as segmenter:
        expected = [segmenter.segment(pixels).labels for pixels, _ in films]
    assert sum(0 < mask.mean() < 1 for mask in expected) >= 15
    for path, labels in zip(pairs[1::2], expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), labels)


def test_the_lines_of_the_readme_compile_the_c_example_and_run_it(
    native_bundle: Path, onnxruntime_library: Path, tmp_path: Path
) -> None:
    tool("cc")
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text("utf-8")
    (compile_line,) = [line for line in readme.splitlines() if line.startswith("cc -std=c11")]
    (call,) = [line for line in readme.splitlines() if line.startswith("./segment BUNDLE")]
    pixels, top = phantoms()[1]
    write_pgm(tmp_path / "chest.pgm", pixels, top)
    for line in (compile_line, call):
        real = line.replace("/path/to/libonnxruntime.so", str(onnxruntime_library))
        run(*real.replace("BUNDLE", str(native_bundle)).split(), cwd=tmp_path)
    with open_bundle(native_bundle, "onnxruntime-cpu") as segmenter:
        expected = segmenter.segment(pixels).labels
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.pgm")), expected)


def test_the_cpp_example_agrees_with_python_on_20_images(
    native_build: Path,
    native_bundle: Path,
    onnxruntime_library: Path,
    tmp_path: Path,
    films: list[tuple[np.ndarray, int]],
) -> None:
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", SOURCES)
    link = ("-L", native_build, "-lunetx", f"-Wl,-rpath,{native_build}")
    run(tool("g++"), *flags, SOURCES / "examples/segment.cpp", "-o", tmp_path / "segment", *link)
    assert_raw_example_agrees([tmp_path / "segment"], native_bundle, onnxruntime_library, tmp_path, films)


def test_the_c_sharp_example_agrees_with_python_on_20_images(
    native_build: Path,
    native_bundle: Path,
    onnxruntime_library: Path,
    tmp_path: Path,
    films: list[tuple[np.ndarray, int]],
) -> None:
    mono, program = tool("mono"), tmp_path / "Segment.exe"
    run(tool("mcs"), "-warnaserror", f"-out:{program}", SOURCES / "examples/Segment.cs")
    (tmp_path / "libunetx.so").write_bytes((native_build / "libunetx.so").read_bytes())
    assert_raw_example_agrees([mono, program], native_bundle, onnxruntime_library, tmp_path, films)


def test_a_bundle_built_with_native_lists_the_files_in_its_manifest(native_bundle: Path) -> None:
    with open_verified(native_bundle) as bundle:
        for name in SOURCE_NAMES:
            assert bundle.read(f"{NATIVE_FOLDER}/{name}") == (SOURCES / name).read_bytes()


def test_cmake_builds_and_installs_what_a_bundle_holds(
    native_bundle: Path, onnxruntime_library: Path, tmp_path: Path
) -> None:
    cmake = tool("cmake")
    names = copy_native(tmp_path / "bundle")
    assert names == tuple(f"{NATIVE_FOLDER}/{name}" for name in SOURCE_NAMES)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    options = ("-DUNETX_EXAMPLES=ON", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib")
    run(cmake, "-S", tmp_path / "bundle" / NATIVE_FOLDER, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options)
    run(cmake, "--build", build)
    run(cmake, "--install", build)
    assert {"include/unetx.h", "lib/libunetx.so", "lib/cmake/unetx/unetx-config.cmake"} <= {
        str(path.relative_to(prefix)) for path in prefix.rglob("*")
    }
    assert_raw_example_agrees([build / "segment_cpp"], native_bundle, onnxruntime_library, tmp_path, phantoms()[:3])


def test_a_bundle_gets_the_sources_once(tmp_path: Path) -> None:
    for name in copy_native(tmp_path):
        assert relative_name(name) is not None
        relative = Path(name).relative_to(NATIVE_FOLDER)
        assert (tmp_path / name).read_bytes() == (SOURCES / relative).read_bytes()
    with pytest.raises(ExportError, match="already exists"):
        copy_native(tmp_path)
