"""Writing a bundle: whole or not at all, the same bytes each time, nothing about the user in it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import unetx_opt
from unetx_opt.bundle.open import open_verified
from unetx_opt.bundle.write import build_time, command_line, host_summary, staged_bundle, write_bundle
from unetx_opt.errors import BundleError, UnetxError
from unetx_opt.specs import Host


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, samples: Any) -> None:
    for name in ("first", "second"):
        with staged_bundle(tmp_path / name) as directory:
            samples.write_into(directory)
    assert tree(tmp_path / "first") == tree(tmp_path / "second") == tree(samples.root / "bundle")


def test_what_is_returned_is_what_was_written(tmp_path: Path, samples: Any) -> None:
    with staged_bundle(tmp_path / "b") as directory:
        manifest = samples.write_into(directory)
    with open_verified(tmp_path / "b") as bundle:
        assert bundle.manifest == manifest
        assert set(manifest.files) == {*samples.files, "sbom.cdx.json"}


def test_the_checksum_is_one_that_sha256sum_reads(samples: Any) -> None:
    bundle = samples.root / "bundle"
    digest, name = (bundle / "manifest.sha256").read_text().split()
    assert name == "manifest.json"
    with open_verified(bundle) as opened:
        assert opened.manifest_sha256 == digest


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_a_failed_build_leaves_nothing(tmp_path: Path, samples: Any, archive: bool) -> None:
    with pytest.raises(KeyboardInterrupt), staged_bundle(tmp_path / "b", archive=archive) as directory:
        samples.write_into(directory)
        raise KeyboardInterrupt
    with pytest.raises(BundleError, match="was not completed"), staged_bundle(tmp_path / "b", archive=archive):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_an_existing_output_is_refused_before_any_work(tmp_path: Path, samples: Any, archive: bool) -> None:
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(UnetxError, match="already exists"), staged_bundle(tmp_path / "b", archive=archive):
        pytest.fail("work was done")
    assert (tmp_path / "b").read_bytes() == b"mine"
    with staged_bundle(tmp_path / "b", archive=archive, overwrite=True) as directory:
        samples.write_into(directory)
    open_verified(tmp_path / "b").close()
    assert len(list(tmp_path.iterdir())) == 1


def test_an_engine_file_that_was_not_written_is_an_error(tmp_path: Path, samples: Any) -> None:
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx is used but not listed in files"):
        write_bundle(tmp_path, samples.make_manifest())


def test_a_directory_that_already_is_a_bundle_is_refused(tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "b")
    with pytest.raises(BundleError, match=r"already holds manifest\.json"):
        write_bundle(bundle, samples.make_manifest())


def test_a_file_that_a_bundle_cannot_hold_is_refused(tmp_path: Path, samples: Any) -> None:
    (tmp_path / "a b").write_bytes(b"")
    with pytest.raises(BundleError, match="not a name that a bundle can hold"):
        write_bundle(tmp_path, samples.make_manifest())


def test_the_bill_of_materials_lists_model_files_and_tools(samples: Any) -> None:
    bundle = samples.root / "bundle"
    bill = json.loads((bundle / "sbom.cdx.json").read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["timestamp"] == "2026-11-05T12:00:00+00:00"
    by_type: dict[str, dict[str, Any]] = {}
    for component in bill["components"]:
        by_type.setdefault(component["type"], {})[component["name"]] = component
    (model,) = by_type["machine-learning-model"].values()
    assert model["hashes"] == [{"alg": "SHA-256", "content": manifest["checkpoint"]["sha256"]}]
    hashes = {name: component["hashes"][0]["content"] for name, component in by_type["file"].items()}
    assert hashes == {name: record["sha256"] for name, record in manifest["files"].items() if name != "sbom.cdx.json"}
    assert {"torch", "onnx", "onnxruntime", "tensorrt-rtx"} == set(by_type["library"])
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(set(references)) == len(references)


def test_other_content_has_another_serial_number(tmp_path: Path, samples: Any) -> None:
    samples.write_into(tmp_path, samples.make_manifest(notes=("Other.",)))
    serials = {
        json.loads((root / "sbom.cdx.json").read_bytes())["serialNumber"]
        for root in (tmp_path, samples.root / "bundle")
    }
    assert len(serials) == 2


def test_the_time_of_a_build_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert build_time() == "1970-01-01T00:00:00Z"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert build_time() > "2026"
    for bad in ("", "yesterday", "9" * 30, "-" + "9" * 18):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
        with pytest.raises(BundleError, match="SOURCE_DATE_EPOCH"):
            build_time()


def test_a_command_line_keeps_file_names_only() -> None:
    given = (
        "build",
        "--checkpoint",
        "/home/ann/m.safetensors",
        "--data=C:\\Users\\ann\\lungs",
        "-o/tmp/ann/x",
        "/",
        "x/",
    )
    assert command_line(given) == ("build", "--checkpoint", "m.safetensors", "--data=lungs", "x", "", "x")


def test_the_host_is_described_without_naming_it() -> None:
    host = Host(system="Linux", machine="x86_64", gpu="NVIDIA H200", compute_capability="9.0", driver="13.0")
    assert host_summary(host) == {
        "system": "Linux",
        "machine": "x86_64",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "cuda_driver": "13.0",
    }
    assert host_summary(Host("Linux", "x86_64")) == {"system": "Linux", "machine": "x86_64"}


LIMITED = """
    import resource, sys
    from pathlib import Path
    sys.path[:0] = {paths!r}
    import conftest
    from unetx_opt.bundle.write import staged_bundle
    from unetx_opt.errors import UnetxError
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        with staged_bundle(Path({output!r}), archive={archive}) as directory:
            conftest.write_into(directory)
    except UnetxError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no limit on file sizes")
@pytest.mark.parametrize(("archive", "limit"), [(False, 250), (False, 3000), (True, 6000)])
def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, samples: Any, archive: bool, limit: int) -> None:
    paths = [str(Path(__file__).parent), *(str(Path(part).parent) for part in unetx_opt.__path__)]
    output = tmp_path / "b"
    script = LIMITED.format(paths=paths, limit=limit, output=str(output), archive=archive)
    result = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert f"cannot write {output}: File too large; free some space" in result.stdout, result.stderr
    assert list(tmp_path.iterdir()) == []
