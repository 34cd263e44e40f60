"""Listing, naming and recalling the inputs of a batch, without an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.batch.journal import JOURNAL_NAME, Journal
from unetx_opt.batch.listing import Found, check_inputs, list_inputs, stem_of
from unetx_opt.batch.plan import Plan
from unetx_opt.errors import UnetxError


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def named(inputs: list[Path], output: Path) -> dict[str, str]:
    with Plan() as plan:
        plan.add(list_inputs(inputs, output))
        plan.name_results()
        return {str(task.source): task.stem for task in plan.pending()}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.png", "a"),
        ("A.DCM", "A"),
        ("1.2.840.1", "1.2.840.1"),
        ("x.dicom", "x"),
        (".png", ".png"),
        ("a.b.png", "a.b"),
    ],
)
def test_a_stem_loses_a_known_suffix_and_never_a_part_of_a_uid(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_folders_below_are_repeated_in_the_output_in_order_of_their_names(tmp_path: Path) -> None:
    films = tmp_path / "films"
    fill(films, "b.png", "a/2.png", "a/1.dcm", "a/deep/1.dcm", ".hidden/x.png", "a/.x.png")
    found = named([films], tmp_path / "out")
    assert list(found.values()) == ["a/1", "a/2", "a/deep/1", "b"]
    assert set(found) == {str(films / name) for name in ("a/1.dcm", "a/2.png", "a/deep/1.dcm", "b.png")}


def test_inputs_that_want_the_same_name_are_numbered_the_same_way_each_time(tmp_path: Path) -> None:
    fill(tmp_path / "one", "a.png", "A.dcm", "a-2.png")
    fill(tmp_path / "two", "a.png")
    inputs = [tmp_path / "one", tmp_path / "two", tmp_path / "one" / "a.png"]
    found = {
        Path(path).relative_to(tmp_path).as_posix(): stem for path, stem in named(inputs, tmp_path / "out").items()
    }
    assert found == {"one/A.dcm": "A", "one/a-2.png": "a-2", "one/a.png": "a-3", "two/a.png": "a-4"}


def test_the_output_within_an_input_is_no_input_and_an_input_within_the_output_is_refused(tmp_path: Path) -> None:
    films = tmp_path / "films"
    fill(films, "a.png", "out/a.mask.png", "out/old/b.png")
    assert list(named([films], films / "out").values()) == ["a"]
    for given_input in (films / "out", films / "out" / "old", films / "out" / "a.mask.png"):
        with pytest.raises(UnetxError, match="lies within the output"):
            check_inputs([given_input], films / "out")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_to_a_folder_is_not_followed_and_not_left_out(tmp_path: Path) -> None:
    films = tmp_path / "films"
    fill(films, "a.png")
    (films / "again").symlink_to(films)
    (films / "b.png").symlink_to(films / "a.png")
    assert list(named([films], tmp_path / "out").values()) == ["a", "again", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_name_that_is_no_text_is_kept_exactly(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    Path(os.fsdecode(os.fsencode(films) + b"/\xff\xe4.png")).write_bytes(b"x")
    (source, stem), *_ = named([films], tmp_path / "out").items()
    assert os.fsencode(source).endswith(b"/\xff\xe4.png")
    assert os.fsencode(stem) == b"\xff\xe4"
    assert json.loads(json.dumps(stem)) == stem


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b", "x/a", "X/a"]), max_size=12))
def test_stems_are_unique_also_where_case_is_ignored(stems: list[str]) -> None:
    with Plan() as plan:
        plan.add(Found(0, Path(f"/films/{number}"), stem) for number, stem in enumerate(stems))
        plan.name_results()
        tasks = list(plan.pending())
    assert len({task.stem.casefold() for task in tasks}) == len(stems)
    for task in tasks:
        assert task.stem.startswith(stems[int(task.source.name)])


def segmented(source: Path, stem: str, out: Path) -> dict[str, object]:
    out.mkdir(exist_ok=True)
    (out / f"{stem}.mask.png").write_bytes(b"mask")
    stat = source.stat()
    return {
        "input": str(source),
        "stem": stem,
        "status": "segmented",
        "input_bytes": stat.st_size,
        "input_mtime_ns": stat.st_mtime_ns,
        "files": {"mask": {"name": f"{stem}.mask.png", "bytes": 4, "sha256": ""}},
    }


def left_to_do(folder: Path, out: Path, entries: list[dict[str, object]]) -> dict[str, str]:
    with Plan() as plan:
        plan.add(list_inputs([folder], out))
        plan.recall(entries, out)
        plan.name_results()
        return {task.source.name: task.stem for task in plan.pending()}


def test_only_what_is_whole_and_unchanged_is_not_done_again(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    fill(films, "done.png", "changed.png", "lost.png", "short.png", "failed.png", "new.png")
    entries = [segmented(films / f"{name}.png", name, out) for name in ("done", "changed", "lost", "short")]
    entries.append({"input": str(films / "failed.png"), "stem": "failed", "status": "failed", "reason": "disk full"})
    (films / "changed.png").write_bytes(b"other")
    (out / "lost.mask.png").unlink()
    (out / "short.mask.png").write_bytes(b"m")
    assert set(left_to_do(films, out, entries)) == {"changed.png", "lost.png", "short.png", "failed.png", "new.png"}


def test_the_last_line_about_an_input_counts(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    fill(films, "a.png")
    done = segmented(films / "a.png", "a", out)
    failed = {"input": done["input"], "stem": "a", "status": "failed", "reason": "?"}
    assert left_to_do(films, out, [failed, done]) == {}
    assert left_to_do(films, out, [done, failed]) == {"a.png": "a"}


def test_a_result_keeps_its_name_when_an_input_of_the_same_name_comes_later(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    fill(films, "a.png")
    entries = [segmented(films / "a.png", "a", out)]
    fill(films, "A.png")
    assert left_to_do(films, out, entries) == {"A.png": "A-2"}


@pytest.mark.parametrize("stem", ["../a", "/etc/a", "b", "a-0", "a-2/../../x", "a-2\n"])
def test_a_stem_that_an_input_could_not_have_had_is_not_believed(tmp_path: Path, stem: str) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    fill(films, "a.png")
    entry = {**segmented(films / "a.png", "a", out), "stem": stem}
    assert left_to_do(films, out, [entry]) == {"a.png": "a"}


_PLAN_OF_MANY = """
import resource, sys
from pathlib import Path
from unetx_opt.batch.listing import Found
from unetx_opt.batch.plan import Plan
count = int(sys.argv[1])
with Plan() as plan:
    plan.add(Found(0, Path(f"/films/{number:07}.png"), f"{number:07}") for number in range(count))
    plan.name_results()
    for task in plan.pending():
        plan.record({"input": str(task.source), "status": "failed", "reason": "x" * 400})
    assert sum(1 for _ in plan.rows()) == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory in kB as Linux gives it")
def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    def peak_kb(count: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _PLAN_OF_MANY, str(count)], capture_output=True, text=True, timeout=120, check=True
        )
        return int(done.stdout)

    # What is recorded of 24,000 inputs is 11 MB.
    small, large = peak_kb(2_000), peak_kb(24_000)
    assert large < small + 4_000, f"{small} kB for 2,000 inputs, {large} kB for 24,000"


REQUEST = {"bundle": "ab", "format": ("png",)}


def test_a_journal_gives_back_its_lines_and_forgets_one_that_is_not_whole(tmp_path: Path) -> None:
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(REQUEST)
        journal.append({"input": "a"})
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    for end in (b'{"input": "b"', b"\xff" * 200_000, b""):
        path.write_bytes(whole + end)
        with Journal(tmp_path, resume=True) as journal:
            journal.begin(REQUEST)
            assert list(journal.entries()) == [{"input": "a"}]
            journal.append({"input": "c"})
            assert list(journal.entries()) == [{"input": "a"}, {"input": "c"}]


def test_a_journal_without_a_whole_line_begins_again(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b'{"batch": {"bun')
    with Journal(tmp_path, resume=True) as journal:
        journal.begin(REQUEST)
        assert list(journal.entries()) == []
    assert json.loads((tmp_path / JOURNAL_NAME).read_bytes())["batch"]["bundle"] == "ab"


def test_a_journal_is_neither_replaced_nor_shared_nor_mixed(tmp_path: Path) -> None:
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(REQUEST)
        if os.name != "nt":
            with pytest.raises(UnetxError, match="another run is writing"):
                Journal(tmp_path, resume=True)
    with pytest.raises(UnetxError, match="pass --resume"):
        Journal(tmp_path, resume=False)
    with Journal(tmp_path, resume=True) as journal, pytest.raises(UnetxError, match="another bundle, format"):
        journal.begin({"bundle": "cd", "format": ("png", "seg")})


@pytest.mark.parametrize("line", [b"[1]\n", b"{'a'}\n", b"\xff\n"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(REQUEST)
    with (tmp_path / JOURNAL_NAME).open("ab") as file:
        file.write(line)
    with Journal(tmp_path, resume=True) as journal:
        journal.begin(REQUEST)
        with pytest.raises(UnetxError, match=r"line 2 of .* is damaged"):
            list(journal.entries())
