"""The C library for Windows: cross-compiled, and run under Wine with ONNX Runtime's own DLL where both are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetx_exporters.native.sources import source_folder
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.runtime import open_bundle

from .conftest import STRICT, run, tool

SOURCES = source_folder()
WINE_PLACES = ("/usr/lib/wine", "/usr/bin", "/usr/local/bin")


@pytest.fixture(scope="module")
def windows_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with unetx.dll and segment.exe."""
    folder, gcc = tmp_path_factory.mktemp("windows"), tool("x86_64-w64-mingw32-gcc")
    flags, stub = ("-std=c11", *STRICT, "-O2", "-I", SOURCES), folder / "unetx.lib"
    made = ("-shared", "-static-libgcc", SOURCES / "unetx.c", "-o", folder / "unetx.dll", f"-Wl,--out-implib,{stub}")
    run(gcc, *flags, *made)
    run(gcc, *flags, "-static-libgcc", SOURCES / "examples/segment.c", stub, "-o", folder / "segment.exe")
    return folder


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Wine's 64-bit loader and an environment with a prefix of its own, without a screen."""
    found = shutil.which("wine64", path=os.pathsep.join((*WINE_PLACES, os.environ.get("PATH", ""))))
    if found is None:
        pytest.skip("needs wine64, which is not installed")
    prefix = tmp_path_factory.mktemp("wine")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"WINEPREFIX": str(prefix), "WINEARCH": "win64", "WINEDEBUG": "-all", "HOME": str(prefix)}
    yield found, environment
    server = shutil.which("wineserver", path=os.pathsep.join((*WINE_PLACES, os.environ.get("PATH", ""))))
    if server is not None:
        subprocess.run([server, "-k"], env=environment, check=False, timeout=60)


def windows_path(path: Path) -> str:
    return "Z:" + str(path.resolve()).replace("/", "\\")


def test_the_dll_exports_the_interface_and_needs_nothing_beyond_windows(windows_build: Path) -> None:
    symbols = run(tool("x86_64-w64-mingw32-objdump"), "-p", windows_build / "unetx.dll").stdout
    exported = symbols.partition("[Ordinal/Name Pointer] Table")[2]
    for name in ("abi_version", "close", "label_name", "labels", "last_message", "open", "segment"):
        assert f"unetx_{name}" in exported
    needed = {line.split()[-1].lower() for line in symbols.splitlines() if "DLL Name:" in line}
    assert needed == {"kernel32.dll", "msvcrt.dll"}


@pytest.mark.skipif(
    "UNETX_ONNXRUNTIME_WINDOWS" not in os.environ,
    reason="needs the unpacked Windows wheel of ONNX Runtime: name its folder in UNETX_ONNXRUNTIME_WINDOWS",
)
def test_under_wine_masks_of_20_images_are_those_of_python(
    windows_build: Path, wine: tuple[str, dict[str, str]], native_bundle: Path, tmp_path: Path
) -> None:
    program, environment = wine
    library = Path(os.environ["UNETX_ONNXRUNTIME_WINDOWS"]) / "onnxruntime/capi/onnxruntime.dll"
    sizes = [(seed, 70 + seed % 7, seed % 5) for seed in range(20)]
    deep = [chest_phantom(seed, size_px=size)[0][:, cut:] for seed, size, cut in sizes]
    films = [(film // 16).astype(np.uint8) for film in deep]
    pairs: list[str] = []
    for index, film in enumerate(films):
        source, target = tmp_path / f"{index}.pgm", tmp_path / f"{index}.mask.pgm"
        source.write_bytes(b"P5\n%d %d\n255\n" % film.shape[::-1] + film.tobytes())
        pairs += [windows_path(source), windows_path(target)]
    command = [program, windows_build / "segment.exe", windows_path(native_bundle), windows_path(library), *pairs]
    run(*command, env=environment, timeout=200)
    with open_bundle(native_bundle, "onnxruntime-cpu") as segmenter:
        expected = [segmenter.segment(film).labels for film in films]
    assert sum(0 < mask.mean() < 1 for mask in expected) >= 15
    for index, labels in enumerate(expected):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{index}.mask.pgm")), labels), f"image {index}"
