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
