"""What the C library refuses: altered bytes, hostile manifests, steps that it lacks, wrong calls."""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import HERE, SANITIZED, STRICT, run, source_folder, tool, write_manifest


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver with sanitizers: it ends with 1 and a message where a bundle is refused."""
    path = tmp_path_factory.mktemp("opener") / "driver"
    files = (source_folder() / "unetx.c", HERE / "driver.c")
    flags = ("-std=gnu11", *STRICT, *SANITIZED, "-I", source_folder())
    run(tool("gcc"), *flags, *files, "-o", path, "-ldl", "-lm", "-pthread")
    return path


def refusal(opener: Path, bundle: Path, library: Path | str = "/nowhere/libonnxruntime.so") -> str:
    """Open a bundle; the message where it is refused. An ONNX Runtime that is not there refuses every good one."""
    command = [opener, bundle, str(library)]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, input="", timeout=60, errors="replace"
    )
    assert ended.returncode == 1, ended.stderr
    assert not ended.stderr
    assert ended.stdout.startswith("open: ")
    return ended.stdout.removeprefix("open: ").strip()


def test_a_good_bundle_is_refused_for_its_runtime_alone(opener: Path, native_bundle: Path, tmp_path: Path) -> None:
    assert "ONNX Runtime cannot be loaded" in refusal(opener, native_bundle)
    assert "not absolute" in refusal(opener, native_bundle, "libonnxruntime.so")
    (tmp_path / "empty.so").write_bytes(b"")
    assert "ONNX Runtime cannot be loaded" in refusal(opener, native_bundle, tmp_path / "empty.so")


def test_altered_cut_and_missing_files_are_refused(opener: Path, altered_bundle: Callable[..., Path]) -> None:
    good = altered_bundle()
    name = json.loads((good / "manifest.json").read_bytes())["engines"][0]["files"][0]
    for part in ("manifest.json", "manifest.sha256", name):
        bundle = altered_bundle()
        data = (bundle / part).read_bytes()
        middle = len(data) // 2
        (bundle / part).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        assert "altered" in refusal(opener, bundle)
        (bundle / part).write_bytes(data[:-1])
        assert "altered" in refusal(opener, bundle)
        (bundle / part).unlink()
        assert "No such file" in refusal(opener, bundle)
        (bundle / part).symlink_to(good / part)
        assert "link" in refusal(opener, bundle)
        (bundle / part).unlink()
        os.mkfifo(bundle / part)
        assert "not an ordinary file" in refusal(opener, bundle)


def _set(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = path_and_value

    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path:
            place = place[key]
        place[last] = value

    return change


def _rename_engine(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        old = manifest["engines"][0]["files"][0]
        manifest["engines"][0]["files"] = [name]
        manifest["files"][name] = manifest["files"].pop(old)

    return change


BAD_NAMES = ("../engine.onnx", "/etc/passwd", "a//b", "a/./b", "con.onnx", "a/LPT1", "a\\b", "C:x", "end.", "x" * 201)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(pytest.param(_rename_engine(name), "safe relative name", id=f"name-{name[:12]}") for name in BAD_NAMES),
        pytest.param(_rename_engine("missing.onnx"), "No such file", id="missing-engine"),
        pytest.param(_set("schema_version", 2), "schema version", id="version-2"),
        pytest.param(_set("schema_version", True), "schema version", id="version-true"),
        pytest.param(_set("surprise", 1), "surprise", id="unknown-field"),
        pytest.param(lambda m: m.pop("notes"), "fields", id="missing-field"),
        pytest.param(
            _set("postprocess", {"name": "dense_crf", "grid": "input", "parameters": {}}), "dense_crf", id="step"
        ),
        pytest.param(_set("postprocess", False), "postprocess", id="step-false"),
        pytest.param(_set("input", "height", 10**9), "input", id="huge-input"),
        pytest.param(_set("input", "height", 64.0), "input", id="fractional-height"),
        pytest.param(_set("input", "extra", 1), "input", id="unknown-input-field"),
        pytest.param(_set("input", "upper_percentile", 101), "percentile", id="percentile"),
        pytest.param(_set("input", "window", [0, 1]), "window", id="window-unasked"),
        pytest.param(_set("input", "value_range", [1, 0]), "input", id="range-reversed"),
        pytest.param(_set("labels", []), "labels", id="no-labels"),
        pytest.param(_set("labels", 1, "name", "x" * 500), "labels", id="long-label"),
        pytest.param(_set("labels", 1, "index", 0), "labels", id="label-twice"),
        pytest.param(_set("engines", 0, "target", "openvino-cpu"), "no onnxruntime-cpu engine", id="other-target"),
        pytest.param(_set("engines", 0, "gate", {"passed": False}), "gate", id="gate-failed"),
        pytest.param(_set("engines", 0, "files", []), "engines.files", id="no-engine-file"),
        pytest.param(_set("files", {}), "files", id="no-files"),
    ],
)
def test_a_hostile_manifest_is_refused_with_its_reason(
    change: Callable[[dict[str, Any]], object], reason: str, opener: Path, altered_bundle: Callable[..., Path]
) -> None:
    assert reason in refusal(opener, altered_bundle(change))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[" + b"[]," * 200_000 + b"[]]", id="many"),
        pytest.param(b'{"a":1,"b":2,"a":3}', id="key-twice"),
        pytest.param(b'{"a":1,"\\u0061":3}', id="key-twice-escaped"),
        pytest.param(b'{"a":NaN}', id="nan"),
        pytest.param(b'{"a":1e999}', id="infinite"),
        pytest.param(b'{"a":01}', id="leading-zero"),
        pytest.param(b'{"a":1.}', id="no-fraction"),
        pytest.param(b'{"a":-}', id="no-digits"),
        pytest.param(b'{"a":"\xff"}', id="no-utf8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="utf8-surrogate"),
        pytest.param(b'{"a":"\xe2\x82', id="cut-utf8"),
        pytest.param(b'{"a":"\\ud800"}', id="lone-surrogate"),
        pytest.param(b'{"a":"\\u0000"}', id="escaped-zero"),
        pytest.param(b'{"a":"\x00"}', id="zero"),
        pytest.param(b'{"a":"\\', id="cut-escape"),
        pytest.param(b'{"a":"\\u12', id="cut-code"),
        pytest.param(b'{"a"', id="cut-key"),
        pytest.param(b'{"a":1,}', id="comma"),
        pytest.param(b'{"a":1}{}', id="two-objects"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte-order-mark"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'{"a":tru}', id="word"),
        pytest.param(b'{"a":' + b"1" * 5000 + b"}", id="long-number"),
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes, opener: Path, altered_bundle: Callable[..., Path]) -> None:
    bundle = altered_bundle()
    write_manifest(bundle, text)
    assert refusal(opener, bundle).startswith("manifest.json")


def test_a_manifest_beyond_8_mib_is_not_read(opener: Path, altered_bundle: Callable[..., Path]) -> None:
    bundle = altered_bundle()
    write_manifest(bundle, b" " * (8 * 1024**2 + 1))
    assert "expected at most 8388608" in refusal(opener, bundle)


def test_mutated_manifests_never_crash(opener: Path, altered_bundle: Callable[..., Path]) -> None:
    bundle, rng = altered_bundle(), random.Random(5)
    good = (bundle / "manifest.json").read_bytes()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice((1, 3, 10))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 50))] = bytes([rng.choice(b'{}[]",:\\0159eE-.\x00\xc3u')])
        write_manifest(bundle, bytes(data))
        assert refusal(opener, bundle)


class Image(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("struct_size", "height", "width", "bits_allocated", "bits_stored")),
        *((name, ctypes.c_uint32) for name in ("is_signed", "photometric", "reserved")),
        ("pixels", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("pixels_size", "row_stride")),
        *((name, ctypes.c_double) for name in ("row_spacing_mm", "column_spacing_mm")),
    )


class Mask(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("struct_size", "reserved")),
        ("labels", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("labels_size", "row_stride")),
    )


@pytest.fixture(scope="module")
def library(native_build: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(native_build / "libunetx.so"))
    loaded.unetx_last_message.restype = ctypes.c_char_p
    return loaded


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"struct_size": 8}, 1, b"struct_size"),
        ({"reserved": 1}, 1, b"reserved"),
        ({"pixels": None}, 1, b"NULL"),
        ({"pixels_size": 64 * 64 - 1}, 1, b"do not fit"),
        ({"row_stride": 63}, 1, b"do not fit"),
        ({"row_stride": 2**63}, 1, b"do not fit"),
        ({"height": 15}, 2, b"15 x 64"),
        ({"width": 2**31}, 2, b"16384"),
        ({"bits_allocated": 12}, 2, b"8 or 16 bits"),
        ({"bits_stored": 9}, 2, b"9 of 8 bits"),
        ({"is_signed": 2}, 2, b"is_signed 2"),
        ({"photometric": 0}, 2, b"photometric"),
        ({"row_spacing_mm": -1.0, "column_spacing_mm": 1.0}, 2, b"spacing"),
        ({"row_spacing_mm": 0.2}, 2, b"spacing"),
        ({"row_spacing_mm": float("nan"), "column_spacing_mm": 1.0}, 2, b"spacing"),
        ({"row_spacing_mm": 17.0, "column_spacing_mm": 1.0}, 2, b"ratio"),
        ({"labels_size": 64 * 64 - 1}, 1, b"do not fit"),
        ({"labels": None}, 1, b"NULL"),
        ({"mask_stride": 10}, 1, b"do not fit"),
    ],
    ids=str,
)
def test_a_wrong_call_is_refused_and_leaves_the_mask_alone(
    changes: dict[str, Any],
    status: int,
    reason: bytes,
    library: ctypes.CDLL,
    native_bundle: Path,
    onnxruntime_library: Path,
) -> None:
    handle = ctypes.c_void_p()
    paths = (os.fsencode(native_bundle), os.fsencode(onnxruntime_library))
    assert library.unetx_open(*paths, 1, ctypes.byref(handle)) == 0, library.unetx_last_message()
    pixels, labels = np.arange(64 * 64, dtype=np.uint8), np.full(64 * 64, 0xAA, np.uint8)
    image = Image(ctypes.sizeof(Image), 64, 64, 8, 0, 0, 2, 0, pixels.ctypes.data, pixels.size, 64, 0, 0)
    mask = Mask(ctypes.sizeof(Mask), 0, labels.ctypes.data, labels.size, 64)
    for name, value in changes.items():
        place = mask if name in ("labels", "labels_size", "mask_stride") else image
        setattr(place, name.replace("mask_", "row_"), value)
    arguments = (handle, ctypes.byref(image), ctypes.byref(mask), None)
    assert library.unetx_segment(*arguments) == status
    assert reason in library.unetx_last_message()
    assert (labels == 0xAA).all()
    library.unetx_close(handle)


def test_labels_are_copied_into_the_hosts_buffer(
    library: ctypes.CDLL, native_bundle: Path, onnxruntime_library: Path
) -> None:
    handle, count, name = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.create_string_buffer(401)
    paths = (os.fsencode(native_bundle), os.fsencode(onnxruntime_library))
    assert library.unetx_open(*paths, 1, ctypes.byref(handle)) == 0
    assert library.unetx_labels(handle, ctypes.byref(count)) == 0
    names = []
    for index in range(count.value):
        assert library.unetx_label_name(handle, index, name, ctypes.c_uint64(401)) == 0
        names.append(name.value)
    assert names == [b"background", b"lungs"]
    assert library.unetx_label_name(handle, 1, name, ctypes.c_uint64(5)) == 1
    assert b"6 bytes" in library.unetx_last_message()
    assert library.unetx_label_name(handle, 2, name, ctypes.c_uint64(401)) == 1
    library.unetx_close(handle)
    library.unetx_close(None)
