"""`unetx-opt segment --workers`: many inputs, killed in the middle, end as if nothing had happened."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetx_opt.batch.outputs import OutputPlan
from unetx_opt.batch.settings import BatchSettings, Task
from unetx_opt.batch.worker import SegmentWorker
from unetx_opt.cli.main import main
from unetx_opt.errors import UnetxError
from unetx_opt.optional import find

pytest.importorskip("onnxruntime")

COMMAND = (sys.executable, "-m", "unetx_opt.cli.main", "segment")


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """30 images in folders and one file that is none."""
    folder = tmp_path / "films"
    random_values = np.random.default_rng(0)
    for number in range(30):
        path = folder / ("" if number % 3 else f"ward-{number % 2}") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_values.integers(0, 255, (400, 300), np.uint8)).save(path)
    (folder / "ward-0" / "broken.png").write_bytes((folder / "01.png").read_bytes()[:500])
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but the tables, which tell times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("results.csv", "results.jsonl")
    }


def table(folder: Path) -> list[dict[str, str]]:
    """Rows without times."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return [{key: cell for key, cell in row.items() if not key.endswith("_ms")} for row in csv.DictReader(file)]


def lines(folder: Path) -> int:
    path = folder / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_batch_is_the_same_files_as_one_by_one_with_a_row_for_each_input(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(bundle), str(films), "-o", str(out), "--workers", "2", "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["inputs"], document["segmented"], document["failed"]) == (31, 30, 1)
    assert "1 of 31 inputs could not be segmented, beginning with" in captured.err
    assert captured.err.count("broken.png is a damaged PNG") == 1
    for folder in (films, films / "ward-0", films / "ward-1"):
        main(["segment", str(bundle), str(folder), "-o", str(tmp_path / "plain" / folder.relative_to(films))])
    assert hashes(out) == hashes(tmp_path / "plain")
    rows = table(out)
    assert [row["input"] for row in rows] == sorted(str(path) for path in films.rglob("*.png"))
    for row in rows:
        assert row["input_sha256"] == hashlib.sha256(Path(row["input"]).read_bytes()).hexdigest()
        if row["status"] == "segmented":
            mask = out / row["mask"]
            assert row["mask_sha256"] == hashlib.sha256(mask.read_bytes()).hexdigest()
            with Image.open(mask) as image:
                assert int(row["class1_px"]) == np.count_nonzero(np.asarray(image))
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert "broken.png is a damaged PNG" in failed["reason"]
    assert failed["mask"] == ""


def run_and_kill(arguments: list[str], out: Path, after: int, kill: Callable[[int, int], None]) -> int:
    """Kill a run, alone or with its workers, as soon as so many more inputs are in its journal."""
    before = lines(out)
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None:
            if lines(out) >= before + after:
                kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        return process.returncode


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_run_killed_again_and_again_ends_with_the_same_files_and_table(
    bundle: Path, films: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["segment", str(bundle), str(films), "-o", str(whole), "--workers", "1"]) == 1
    arguments = [str(bundle), str(films), "-o", str(out), "--workers", "2", "--resume"]
    kills = random.Random(0)
    codes = [run_and_kill(arguments, out, kills.randint(3, 9), kill) for kill in (os.kill, os.killpg)]
    assert -signal.SIGKILL in codes
    assert main(["segment", *arguments]) == 1
    assert hashes(out) == hashes(whole)
    assert table(out) == table(whole)
    done = [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()[1:]]
    segmented = [entry["input"] for entry in done if entry["status"] == "segmented"]
    assert len(segmented) == len(set(segmented)) == 30, "what was done is not done again"


def test_what_failed_is_tried_again_and_another_request_or_an_unasked_resumption_is_refused(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ward = tmp_path / "out", films / "ward-0"
    arguments = ["segment", str(bundle), str(ward), "-o", str(out)]
    assert main([*arguments, "--workers", "1"]) == 1
    before = hashes(out)
    assert main([*arguments, "--workers", "1"]) == 1
    assert "pass --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--udi", "(01)1"]) == 1
    assert "with another udi" in capsys.readouterr().err
    (ward / "broken.png").write_bytes((films / "01.png").read_bytes())
    assert main([*arguments, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "5 of 6 inputs were done before" in captured.err
    assert "6 of 6 inputs segmented, 5 of them before" in captured.out
    assert {name: value for name, value in hashes(out).items() if "broken" not in name} == before


def test_inputs_of_one_name_get_results_of_their_own(bundle: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wards = [str(films / "ward-0"), str(films / "ward-1")]
    (films / "ward-1" / "00.png").write_bytes((films / "01.png").read_bytes())
    assert main(["segment", str(bundle), *wards, "-o", str(out), "--workers", "2"]) == 1
    names = {row["input"]: row["mask"] for row in table(out)}
    assert names[str(films / "ward-0" / "00.png")] == "00.mask.png"
    assert names[str(films / "ward-1" / "00.png")] == "00-2.mask.png"
    assert len(set(names.values())) == len(names)


def test_a_batch_needs_a_bundle_and_an_output_away_from_its_inputs(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(tmp_path / "none"), str(films), "-o", str(tmp_path / "x"), "--workers", "2"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["segment", str(bundle), str(films), "-o", str(films), "--workers", "2"]) == 1
    assert "lies within the output" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not (films / "results.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_worker_that_breaks_costs_its_input_and_is_replaced(bundle: Path, films: Path, tmp_path: Path) -> None:
    settings = BatchSettings(bundle, OutputPlan(tmp_path / "out", ("png",)))
    with SegmentWorker(settings) as worker:
        facts = worker.open()
        assert (facts.target, facts.label_names) == ("onnxruntime-cpu", ("background", "class1"))
        process = worker._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        broken = worker.segment(Task(films / "01.png", "01"))
        assert (broken["status"], broken["reason"]) == (
            "failed",
            "it broke the process that segmented it (signal 9)",
        )
        assert worker.segment(Task(films / "01.png", "01"))["status"] == "segmented"
    with pytest.raises(UnetxError, match="closed"):
        worker.segment(Task(films / "01.png", "01"))


def test_workers_demand_the_signature_that_the_command_does(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    arguments = ["segment", str(bundle), str(films), "-o", str(out), "--workers", "1", "--public-key", "key.pem"]
    assert main(arguments) == 1
    assert "signature" in capsys.readouterr().err
    assert not out.exists()


def test_a_worker_that_opens_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    settings = BatchSettings(bundle, OutputPlan(tmp_path / "out", ("png",)))
    with SegmentWorker(settings) as worker:
        facts = worker.open()
    with (
        SegmentWorker(settings, replace(facts, bundle_sha256="ab" * 32)) as other,
        pytest.raises(UnetxError, match="their masks could differ"),
    ):
        other.open()


@pytest.mark.skipif(not find("ray"), reason="Ray is not installed")
def test_a_cluster_gives_the_same_files_and_table(bundle: Path, films: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["segment", str(bundle), str(films), "-o", str(whole), "--workers", "1"]) == 1
    arguments = [str(bundle), str(films), "-o", str(out), "--workers", "2", "--ray", "local"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    assert hashes(out) == hashes(whole)
    assert table(out) == table(whole)


@pytest.mark.skipif(not find("ray"), reason="Ray is not installed")
def test_a_cluster_that_does_not_answer_is_one_line_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:none"):
        assert main(["segment", str(tmp_path / "bundle"), str(tmp_path), "-o", str(out), "--ray", address]) == 1
        assert f"error: no Ray cluster answers at {address}" in capsys.readouterr().err
    assert not out.exists()


def test_without_ray_the_extra_is_named_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path / "bundle"), str(tmp_path), "-o", str(out), "--ray", "auto"]) == 1
    assert "pip install 'unetx-opt[ray]'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to a group on Windows")
def test_an_interrupted_run_ends_at_once_without_its_processes_and_goes_on_later(
    bundle: Path, films: Path, tmp_path: Path
) -> None:
    # So many that a signal which comes late, on a busy machine, still finds the run at work.
    for number in range(970):
        shutil.copy(films / "01.png", films / f"copy-{number:03}.png")
    out = tmp_path / "out"
    arguments = [str(bundle), str(films), "-o", str(out), "--workers", "2", "--resume"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and lines(out) < 5:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told.splitlines()[-1]) == (130, "error: interrupted"), told
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert main(["segment", *arguments]) == 1
    assert len(table(out)) == 1001
