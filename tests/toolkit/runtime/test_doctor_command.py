"""`unetx-opt doctor`: every target with its reasons, on machines that are not this one too."""

from __future__ import annotations

import json

import pytest

from unetx_opt.cli.main import main
from unetx_opt.runtime import host as host_module
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import Host


def test_json_lists_every_target_with_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document["targets"]] == list(SESSIONS)
    for row in document["targets"]:
        assert row["can_run"] == (row["why_not_run"] is None)
        assert row["can_build"] == (row["why_not_build"] is None)
    assert document["host"]["system"]


def test_a_bare_machine_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_module, "probe_host", lambda: Host("Windows", "AMD64"))
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["targets"]
    assert not any(row["can_run"] or row["can_build"] for row in rows)
    assert all("install" in row["why_not_run"] for row in rows)


def test_a_cpu_whose_8_bit_products_saturate_is_told_that_it_builds_no_int8_engines_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = dict.fromkeys(("onnx", "onnxruntime", "openvino", "tensorrt_rtx"), "1.7")
    features = frozenset({"sse2", "avx2"})
    old = Host("Linux", "x86_64", features, packages, ("CPUExecutionProvider",))
    monkeypatch.setattr(host_module, "probe_host", lambda: old)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["doctor", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["targets"]}
    for name in ("openvino-cpu", "onnxruntime-cpu"):
        assert rows[name]["can_build"]
        assert not rows[name]["can_build_int8"]
        assert "lacks VNNI" in rows[name]["why_not_build_int8"]
    assert rows["tensorrt-rtx"]["can_build_int8"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("yes, but not int8: 8-bit products saturate") == 2


def test_the_table_shows_extras_in_their_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_module, "probe_host", lambda: Host("Windows", "AMD64", driver="13.0"))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "unetx-opt[cpu]" in text
    assert "no usable CUDA device (driver for CUDA 13.0)" in text
    for name in SESSIONS:
        assert name in text
