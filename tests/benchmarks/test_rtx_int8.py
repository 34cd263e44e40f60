"""What TensorRT-RTX multiplies in 8 bits, by the real builder; it needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from unetx_bench import rtx_int8
from unetx_bench.errors import MeasurementError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'unetx-opt[rtx]'")
SMALL = rtx_int8.Form(channels=16)


def test_convolutions_are_8_bit_where_the_gpu_is_younger_than_turing_and_float_there() -> None:
    network = rtx_int8.write_network(SMALL)
    assert all("Int8" in types for types in rtx_int8.read_arithmetic(network, "8.6"))
    found = rtx_int8.read_arithmetic(network, "7.5")
    assert len(found) == 3
    assert not any("Int8" in types for types in found)


def test_what_the_parser_refuses_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="does not take the network"):
        rtx_int8.read_arithmetic(b"no network", "8.6")


def test_the_record_has_a_row_for_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx_int8, "FORMS", {"small": SMALL})
    output = tmp_path / "record.json"
    done = CliRunner().invoke(rtx_int8.main, ["-o", str(output), "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(output.read_text())["rows"]
    assert (row["form"], row["channels"], row["compute_capability"]) == ("small", 16, "8.9")
    assert len(row["products"]) == 3
