"""The record on a GPU: what runs is in it, and what hangs, dies or comes too late is named. No GPU is needed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetx_bench import gpu_record
from unetx_bench.errors import MeasurementError
from unetx_bench.gpu_record_measure import MeasureOrder, measure_apart

pytest.importorskip("torch", reason="torch is not installed: pip install 'unetx-opt[export]'")


def test_the_gpu_record_names_what_did_not_run_and_why(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, on which what is missing elsewhere would run")
    request = gpu_record.RecordRequest(
        variants=("unet",),
        precisions=("fp32",),
        targets=("onnxruntime-cpu", "onnxruntime-cuda"),
        peers=("torch-eager", "torch-cuda-graph-fp16"),
        width=2,
        size_px=64,
        seconds=1.0,
    )
    record = gpu_record.make_record(request, tmp_path / "record")
    assert record["reports"] == {"unet": "unet/report.json"}
    assert (tmp_path / "record" / "unet" / "report.json").is_file()
    assert "unet-fp32-onnxruntime-cuda" in record["did_not_run"]
    assert any("torch-cuda-graph-fp16" in name for name in record["did_not_run"])
    assert json.loads((tmp_path / "record" / "gpu-record.json").read_text(encoding="ascii")) == json.loads(
        json.dumps(record)
    )


def test_the_gpu_record_builds_no_int8_for_a_target_without_8_bit_convolutions(tmp_path: Path) -> None:
    request = gpu_record.RecordRequest(
        variants=("unet",), precisions=("int8",), targets=("onnxruntime-cuda",), width=2, size_px=64
    )
    lines: list[str] = []
    record = gpu_record.make_record(request, tmp_path / "record", lines.append)
    assert record["did_not_run"]["unet-int8-onnxruntime-cuda"] == "onnxruntime-cuda has no 8-bit convolution"
    assert lines == ["not measured: unet: none of its bundles could be built"]  # and none was begun


#: What a process does as it starts -> what the record says of it.
FAULTS = {
    "import os; os.kill(os.getpid(), 9)": "its process was ended by signal 9",
    "import time; time.sleep(60)": "not measured within 3 s",
    "import sys; sys.exit('RuntimeError: an illegal memory access')": "RuntimeError: an illegal memory access",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_dies_hangs_or_fails_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'unetx_bench.gpu_record_measure' in sys.orig_argv:\n    {fault}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MeasurementError, match=f"{FAULTS[fault]}$"):
        measure_apart(MeasureOrder((), "", str(tmp_path / "report"), (), 1.0), 3.0)


def test_what_cannot_be_measured_is_told_in_the_last_line_of_its_process(tmp_path: Path) -> None:
    order = MeasureOrder((str(tmp_path / "missing"),), "", str(tmp_path / "report"), (), 1.0)
    with pytest.raises(MeasurementError, match=r"^Error: .*missing"):
        measure_apart(order, 60.0)


@pytest.fixture
def without_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant has a bundle, which nothing looks at."""

    def build_all(request: gpu_record.RecordRequest, *others: object) -> tuple[dict[str, list[Path]], dict[str, str]]:
        del others
        return {variant: [Path("bundle")] for variant in request.variants}, {}

    monkeypatch.setattr(gpu_record, "_build_all", build_all)


@pytest.mark.usefixtures("without_builds")
def test_a_variant_whose_run_fails_is_timed_again_without_peers_and_the_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[MeasureOrder] = []

    def measure(order: MeasureOrder, limit_s: float) -> dict[str, str]:
        assert limit_s > 0.0
        orders.append(order)
        if order.peers and "unet-report" in order.output:
            raise MeasurementError("an illegal memory access")
        Path(order.output).mkdir()
        return {"something": "a reason"}

    monkeypatch.setattr(gpu_record, "measure_apart", measure)
    request = gpu_record.RecordRequest(variants=("unet", "attention"), width=2, size_px=64)
    record = gpu_record.make_record(request, tmp_path / "record")
    assert record["reports"] == {name: f"{name}/report.json" for name in ("unet", "attention")}
    assert record["did_not_run"] == {
        "unet: peers": "an illegal memory access",
        "unet: something": "a reason",
        "attention: something": "a reason",
    }
    assert [bool(order.peers) for order in orders] == [True, False, True]
    assert json.loads((tmp_path / "record" / "gpu-record.json").read_text(encoding="ascii"))["did_not_run"]


@pytest.mark.usefixtures("without_builds")
def test_what_time_was_too_short_for_is_named_and_comes_last_if_its_network_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def measure(order: MeasureOrder, limit_s: float) -> dict[str, str]:
        del limit_s
        begun.append(Path(order.output).name.removesuffix("-report"))
        raise MeasurementError("no device")

    monkeypatch.setattr(gpu_record, "measure_apart", measure)
    request = gpu_record.RecordRequest(width=2, size_px=64, peers=())
    record = gpu_record.make_record(request, tmp_path / "all")
    assert sorted(begun) == sorted(request.variants)
    assert set(begun[-2:]) == {"focal", "crf"}  # both have the network of `unet`
    assert record["did_not_run"] == dict.fromkeys(begun, "no device")
    begun.clear()
    late = gpu_record.RecordRequest(width=2, size_px=64, deadline_seconds=1e-9)
    record = gpu_record.make_record(late, tmp_path / "late")
    assert begun == []
    assert record["did_not_run"] == dict.fromkeys(late.variants, "the time was up: 0 s")
