"""`unetx-opt segment --workers` over damaged and hostile files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")
pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")

from unetx_bench.bad_input.corpus import make_file
from unetx_bench.bad_input.hostile import HOSTILE
from unetx_bench.bad_input.service import segment_corpus, write_corpus


def test_a_run_over_bad_files_ends_with_a_row_for_each_and_files_only_in_its_folder(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle()
    # The largest pictures would only take long.
    places = [place for place in range(len(HOSTILE) + 60) if not make_file(place).kind.endswith("-4096")]
    folder = tmp_path / "a" / "b" / "c" / "run"
    write_corpus(places, 0, folder / "files")
    odd = {"loop.dcm"}
    (folder / "files" / "loop.dcm").symlink_to(folder)
    if hasattr(os, "mkfifo"):
        odd.add("pipe.dcm")
        os.mkfifo(folder / "files" / "pipe.dcm")
    outside = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    record = segment_corpus(bundle, folder, "png,seg", workers=1)
    assert record["faults"] == []
    assert record["exit_code"] == 1
    assert record["statuses"]["segmented"] > 20
    assert sum(record["statuses"].values()) == len(places) + len(odd)
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == outside
