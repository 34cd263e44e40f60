from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.cli import output
from unetx_opt.specs import Precision

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_DOCUMENTS = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    value: float


def _printed(obj: object, capsys: pytest.CaptureFixture[str]) -> object:
    output.echo_json(obj)
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


@given(document=_DOCUMENTS)
def test_what_is_printed_reads_back_as_it_was(document: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(output.click, "echo", lines.append)
        output.echo_json(document)
    assert len(lines) == 1
    assert json.loads(lines[0]) == document


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param(np.float32(0.5), 0.5, id="float32"),
        pytest.param(np.float64(0.25), 0.25, id="float64"),
        pytest.param(np.int64(7), 7, id="int64"),
        pytest.param(np.bool_(True), True, id="bool"),
        pytest.param(np.array([[1, 2]], np.uint8), [[1, 2]], id="array"),
        pytest.param(MappingProxyType({"a": np.int32(1)}), {"a": 1}, id="mapping"),
        pytest.param(frozenset({"b", "a"}), ["a", "b"], id="set"),
        pytest.param(_Row("x", 1.5), {"name": "x", "value": 1.5}, id="dataclass"),
        pytest.param((_Row("x", 1.5),), [{"name": "x", "value": 1.5}], id="tuple"),
        pytest.param(PurePosixPath("a/b"), "a/b", id="path"),
        pytest.param(Precision.FP16, "fp16", id="enum"),
    ],
)
def test_what_results_are_made_of_becomes_plain_json(
    value: object, plain: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _printed({"value": value}, capsys) == {"value": plain}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, -np.inf])])
def test_a_number_that_json_lacks_is_refused_and_nothing_is_printed(
    value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"(?i)JSON compliant"):
        output.echo_json({"first": 1, "value": value})
    assert capsys.readouterr().out == ""


def test_a_type_that_has_no_json_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="object has no place in a JSON result"):
        output.echo_json([object()])
    assert capsys.readouterr().out == ""


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("reading 3 images")
    assert capsys.readouterr() == ("", "reading 3 images\n")


def test_progress_shows_nothing_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as bars:
        task = bars.add_task("images", total=2)
        bars.advance(task)
    assert bars.disable
    assert capsys.readouterr() == ("", "")


def test_progress_can_be_switched_off_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True)
    assert output.progress(enabled=False).disable
    assert not output.progress().disable
