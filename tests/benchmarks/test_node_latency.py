"""The latency of a whole node: between a real node and a real Orthanc, with few images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from unetx_bench import node_latency

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: pip install 'unetx-opt[node]'")


def test_every_send_is_timed_and_takes_longer_than_its_engine(tmp_path: Path, small_bundle: Path) -> None:
    if shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc")
    bundle, output = shutil.copytree(small_bundle, tmp_path / "bundle"), tmp_path / "latency.json"
    done = CliRunner().invoke(node_latency.main, [str(bundle), "-o", str(output), "--sends", "2"])
    assert done.exit_code == 0, done.output
    record = json.loads(output.read_text())
    samples, summary = record["samples"], record["summary"]
    assert [len(samples[name]) for name in ("received_to_stored_ms", "send_ms", "engine_ms")] == [2, 2, 2]
    for stored, engine in zip(samples["received_to_stored_ms"], samples["engine_ms"], strict=True):
        assert stored > engine > 0
    over = [all_ - own for all_, own in zip(samples["received_to_stored_ms"], samples["engine_ms"], strict=True)]
    assert summary["over_engine_ms"]["median"] == pytest.approx(sum(over) / 2)
    for stored, stages in zip(samples["received_to_stored_ms"], samples["node_stages_ms"], strict=True):
        assert set(stages) >= {"read", "prepare", "infer", "restore", "results"}
        assert sum(stages.values()) < stored + len(stages)  # each is rounded to a millisecond
    in_node = [stages["infer"] for stages in samples["node_stages_ms"]]
    assert summary["engine_in_node_ms"]["most"] == max(in_node)
    assert summary["over_engine_in_node_ms"]["most"] <= max(samples["received_to_stored_ms"]) - min(in_node)
    assert summary["over_engine_ms"]["median_ci95"] is None, "two samples enclose no median with 95 %"
    assert record["state_before"]["load_average"]
    assert all(samples["versions"][name] for name in ("unetx-opt", "orthanc"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "latency.json"]


def test_without_a_pacs_the_error_says_what_to_install(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_latency.shutil, "which", lambda *given, **more: None)
    with pytest.raises(node_latency.MeasurementError, match="Orthanc is not installed"):
        node_latency.measure(small_bundle, tmp_path, 1)


def test_the_radiograph_has_the_size_and_bits_it_says() -> None:
    dataset = node_latency.make_radiograph(3)
    assert dataset.pixel_array.shape == node_latency.SHAPE
    assert 0 <= int(dataset.pixel_array.min()) < int(dataset.pixel_array.max()) == 4095


def test_the_interval_of_twenty_sends_encloses_their_median() -> None:
    samples = [float(value) for value in np.random.default_rng(0).permutation(20)]
    row = node_latency._summarize(samples)
    low, high = row["median_ci95"]
    assert (row["n"], row["median"], row["least"], row["most"]) == (20, 9.5, 0.0, 19.0)
    assert 0 < low < 9.5 < high < 19
