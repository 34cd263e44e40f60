"""Opening a bundle: no altered byte, no missing, foreign or exchanged file gets through."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.bundle.check import check_bundle
from unetx_opt.bundle.open import open_verified
from unetx_opt.errors import BundleError

ALL_NAMES = (
    "empty.txt",
    "engines/cpu/model.onnx",
    "engines/rtx/sm86.plan",
    "manifest.json",
    "manifest.sha256",
    "model-card.md",
    "sbom.cdx.json",
)


def refused(path: Path, expected: str = "") -> str:
    """The one line that opening fails with; the full check must find something too."""
    with pytest.raises(BundleError) as caught:
        open_verified(path)
    message = str(caught.value)
    assert "\n" not in message
    assert expected in message
    assert any(expected in problem for problem in check_bundle(path).problems)
    return message


def reseal(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write another manifest with its right checksum, as a hostile hand would."""
    data = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(data)
    (bundle / "manifest.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  manifest.json\n")


@pytest.fixture(params=["directory", "archive"])
def bundle_path(request: pytest.FixtureRequest, samples: Any) -> Path:
    return samples.root / ("bundle" if request.param == "directory" else "bundle.unetx")


def test_a_bundle_opens_with_all_that_was_written(bundle_path: Path, samples: Any) -> None:
    with open_verified(bundle_path) as bundle:
        assert bundle.names == tuple(name for name in ALL_NAMES if not name.startswith("manifest"))
        for name, data in samples.files.items():
            assert bundle.read(name) == data
        manifest_bytes = (samples.root / "bundle" / "manifest.json").read_bytes()
        assert bundle.manifest_sha256 == hashlib.sha256(manifest_bytes).hexdigest()
        assert bundle.kind == ("archive" if bundle_path.is_file() else "directory")
        assert bundle.path == bundle_path
    check = check_bundle(bundle_path)
    assert check.problems == ()
    assert check.files == len(ALL_NAMES)


def test_files_can_be_read_from_several_threads(bundle_path: Path, samples: Any) -> None:
    failures: list[object] = []

    def read(bundle: Any) -> None:
        for _ in range(30):
            for name, data in samples.files.items():
                if bundle.read(name) != data:
                    failures.append(name)

    with open_verified(bundle_path) as bundle:
        threads = [threading.Thread(target=read, args=(bundle,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_name_that_the_manifest_does_not_list_cannot_be_read(bundle_path: Path) -> None:
    with open_verified(bundle_path) as bundle, pytest.raises(BundleError, match="has no file"):
        bundle.read("../bundle/model-card.md")


@pytest.mark.parametrize("name", ALL_NAMES)
def test_one_flipped_bit_in_any_file_is_found(tmp_path: Path, samples: Any, name: str) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    original = (bundle / name).read_bytes()
    chooser = random.Random(name)
    positions = range(len(original))
    for position in positions if len(original) <= 100 else chooser.sample(positions, 40):
        altered = bytearray(original)
        altered[position] ^= 1 << chooser.randrange(8)
        (bundle / name).write_bytes(altered)
        refused(bundle, "manifest.json" if name.startswith("manifest") else f"{name} was altered")
    (bundle / name).write_bytes(original)
    open_verified(bundle).close()


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_missing_file_is_found(tmp_path: Path, samples: Any, name: str) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / name).unlink()
    with pytest.raises(BundleError):  # with its file gone, a directory is empty: that may be the first problem
        open_verified(bundle)
    assert any(f"{name} is missing" in problem for problem in check_bundle(bundle).problems)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_longer_and_a_shorter_file_are_found(tmp_path: Path, samples: Any, name: str) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    original = (bundle / name).read_bytes()
    for data in (original + b"\n", original[:-1]):
        if data != original:
            (bundle / name).write_bytes(data)
            refused(bundle, "manifest.json" if name.startswith("manifest") else "bytes, the manifest says")


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "engines/cpu/.DS_Store", "engines/more/x.onnx"])
def test_a_file_that_is_not_listed_is_found(tmp_path: Path, samples: Any, name: str) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"x")
    refused(bundle, f"{name} is not listed in the manifest")


def test_an_empty_directory_is_found(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / ".cache").mkdir()
    refused(bundle, "the directory .cache is empty")


def test_a_name_with_control_characters_is_reported_without_them(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    try:
        (bundle / "a\x1b[2Jb").write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    assert "\x1b" not in refused(bundle, "is not a name that a bundle can hold")


def test_a_link_is_refused_even_to_the_right_content(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    for name in ("model-card.md", "engines"):
        aside = tmp_path / "aside"
        (bundle / name).rename(aside)
        try:
            (bundle / name).symlink_to(aside)
        except OSError:
            pytest.skip("this user cannot make links")
        refused(bundle, f"{name} is a link")
        (bundle / name).unlink()
        aside.rename(bundle / name)
    (bundle / "loop").symlink_to(bundle)
    refused(bundle, "loop is a link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / "model-card.md").unlink()
    os.mkfifo(bundle / "model-card.md")
    refused(bundle, "model-card.md is neither a file nor a directory")


def test_a_file_exchanged_after_opening_is_never_returned(tmp_path: Path, samples: Any) -> None:
    path = samples.directory(tmp_path / "bundle")
    with open_verified(path) as bundle:
        original = (path / "model-card.md").read_bytes()
        for data in (b"x" * len(original), original + b"x", original[:-1]):
            (path / "model-card.md").write_bytes(data)
            with pytest.raises(BundleError, match="altered after the bundle was opened"):
                bundle.read("model-card.md")
        (path / "model-card.md").unlink()
        with pytest.raises(BundleError, match="cannot be read"):
            bundle.read("model-card.md")


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse to follow a link")
def test_a_file_that_becomes_a_link_or_a_pipe_after_opening_is_not_read(tmp_path: Path, samples: Any) -> None:
    path = samples.directory(tmp_path / "bundle")
    with open_verified(path) as bundle:
        card = path / "model-card.md"
        card.rename(tmp_path / "card")
        card.symlink_to(tmp_path / "card")
        with pytest.raises(BundleError, match=r"model-card\.md cannot be read"):
            bundle.read("model-card.md")
        card.unlink()
        os.mkfifo(card)
        with pytest.raises(BundleError, match="not an ordinary file any more"):
            bundle.read("model-card.md")


def test_an_archive_exchanged_after_opening_is_never_returned(tmp_path: Path, samples: Any) -> None:
    path = tmp_path / "bundle.unetx"
    path.write_bytes(samples.archive)
    with open_verified(path) as bundle:
        path.write_bytes(b"\0" * len(samples.archive))
        with pytest.raises(BundleError, match="altered after the bundle was opened"):
            bundle.read("model-card.md")


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "engines\\x", "con", "a/../b"])
def test_a_hostile_manifest_cannot_name_files_outside(tmp_path: Path, samples: Any, name: str) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (tmp_path / "outside.txt").write_bytes(b"secret")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    reseal(bundle, manifest)
    refused(bundle, "not a safe relative file name")


def test_another_schema_version_says_what_to_do(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    reseal(bundle, {**manifest, "schema_version": 2})
    refused(bundle, "schema version '2', this program knows version 1: update unetx-opt")


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(2**33)
    refused(bundle, "manifest.json has 8589934592 bytes, expected at most 8388608")


def test_what_is_no_bundle_says_what_was_expected(tmp_path: Path) -> None:
    assert "does not exist: expected a bundle" in refused(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "manifest.json is missing")
    (tmp_path / "text").write_bytes(b"hello" * 100)
    refused(tmp_path / "text", "it is no bundle")
    (tmp_path / "nil").write_bytes(b"")
    refused(tmp_path / "nil", "it is no bundle")


def test_a_directory_of_very_many_files_is_not_listed_to_its_end(
    tmp_path: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetx_opt.bundle.directory.MAX_ENTRIES", 4)
    refused(samples.directory(tmp_path / "bundle"), "more than 4 entries")


def test_all_problems_are_reported_together(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / "model-card.md").write_bytes(b"# A modem\n")
    (bundle / "empty.txt").unlink()
    (bundle / "surprise").write_bytes(b"")
    problems = check_bundle(bundle).problems
    assert [problem.split()[0] for problem in problems] == ["surprise", "empty.txt", "model-card.md"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission_is_named(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / "model-card.md").chmod(0)
    refused(bundle, "model-card.md cannot be read")


def test_a_large_file_is_checked_in_little_memory(tmp_path: Path, samples: Any) -> None:
    from unetx_opt.bundle.write import staged_bundle

    size = 48 * 1024**2
    for name, archive in (("large", False), ("large.unetx", True)):
        with staged_bundle(tmp_path / name, archive=archive) as directory:
            with (directory / "large.bin").open("wb") as file:
                file.truncate(size)
            samples.write_into(directory)
        tracemalloc.start()
        open_verified(tmp_path / name).close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * 1024**2
