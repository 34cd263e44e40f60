"""Files appear whole or not at all, whatever happens to the process, the disk or the names."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unetx_opt
import unetx_opt.files as files_module
from unetx_opt.errors import UnetxError
from unetx_opt.files import relative_name, scratch_directory, staged_directory, staged_file, write_file

SOURCES = os.pathsep.join(str(Path(part).parent) for part in unetx_opt.__path__)
NOBODY = 2**22 + 1  # above the largest process id of Linux


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def abandoned(path: Path, kind: str = "partial", host: str | None = None, pid: int = NOBODY) -> Path:
    """The name of an entry that another process left."""
    token = host if host is not None else files_module._host_token()
    return path.parent / f".{path.name}.{kind}-{token}-{pid}-0123abcd"


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "a.txt", b"one")
    write_file(tmp_path / "new" / "a.txt", b"two")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"two"
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", b"one")
    with pytest.raises(KeyboardInterrupt), staged_file(tmp_path / "a.txt") as staging:
        staging.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_file_can_be_protected(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", b"one")
    with pytest.raises(UnetxError, match="already exists"), staged_file(tmp_path / "a.txt", overwrite=False):
        pytest.fail("work was done")
    with (
        pytest.raises(UnetxError, match="already exists"),
        staged_file(tmp_path / "b.txt", overwrite=False) as staging,
    ):
        staging.write_bytes(b"two")
        (tmp_path / "b.txt").write_bytes(b"another was faster")
    assert (tmp_path / "b.txt").read_bytes() == b"another was faster"
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "out") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_bytes(b"x")
        assert names(tmp_path) == [staging.name]
    assert (tmp_path / "out" / "sub" / "a").read_bytes() == b"x"
    assert names(tmp_path) == ["out"]


def test_a_file_that_may_not_be_written_is_synced_too(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "out") as staging:
        (staging / "a").write_bytes(b"x")
        (staging / "a").chmod(0o444)
    assert (tmp_path / "out" / "a").is_file()


def test_an_existing_directory_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    expected = "already exists: choose another output, or pass --overwrite"
    with pytest.raises(UnetxError, match=expected), staged_directory(tmp_path / "out"):
        pytest.fail("work was done")
    assert names(tmp_path) == ["out"]


def test_a_directory_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UnetxError, match="already exists"), staged_directory(tmp_path / "out") as staging:
        (staging / "a").touch()
        (tmp_path / "out").mkdir()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("old", ["directory", "file", "link"])
def test_what_is_there_is_replaced_on_demand(tmp_path: Path, old: str) -> None:
    output, aside = tmp_path / "out", tmp_path / "aside"
    if old == "directory":
        output.mkdir()
        (output / "old").touch()
    elif old == "file":
        output.write_bytes(b"old")
    else:
        output.symlink_to(aside)
    with staged_directory(output, overwrite=True) as staging:
        (staging / "new").touch()
    assert names(output) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_replacement_that_fails_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "broken disk", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="broken disk"), staged_directory(output, overwrite=True) as staging:
        (staging / "new").touch()
    assert names(output) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_scratch_directory_goes_in_any_case(tmp_path: Path) -> None:
    with scratch_directory(tmp_path / "out") as scratch:
        (scratch / "a").touch()
    with pytest.raises(KeyboardInterrupt), scratch_directory(tmp_path / "out") as scratch:
        (scratch / "a").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG], ids=["full disk", "size limit"])
def test_a_full_disk_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    expected = r"cannot write .*out.*; free some space, or choose another output"
    with pytest.raises(UnetxError, match=expected), staged_directory(tmp_path / "out") as staging:
        (staging / "a").touch()
    with pytest.raises(UnetxError, match="free some space"):
        write_file(tmp_path / "file", b"x")
    with pytest.raises(UnetxError, match="free some space"), scratch_directory(tmp_path / "out"):
        full(0)
    assert names(tmp_path) == []


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_file(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="there nothing tells whether a process lives without ending it")
def test_the_next_writer_removes_what_a_dead_process_left(tmp_path: Path) -> None:
    output = tmp_path / "o[u]t*"
    abandoned(output).mkdir()
    (abandoned(output) / "a").touch()
    abandoned(output, pid=NOBODY + 1).write_bytes(b"half a file")
    abandoned(output, pid=NOBODY + 2).symlink_to(tmp_path)
    others = [
        abandoned(output, host="0" * 12),  # on a shared drive, a process of another host may live
        abandoned(output, pid=os.getpid()),
        abandoned(tmp_path / "out"),
        abandoned(tmp_path / "o[u]t*.more"),
        tmp_path / f".{output.name}.partial-mine",
    ]
    for other in others:
        other.touch()
    write_file(output, b"x")
    assert names(tmp_path) == sorted([output.name, *(other.name for other in others)])


@pytest.mark.skipif(os.name == "nt", reason="there nothing tells whether a process lives without ending it")
def test_an_old_directory_that_stepped_aside_for_a_killed_writer_comes_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    abandoned(output, "replaced").mkdir()
    (abandoned(output, "replaced") / "old").touch()
    abandoned(output).mkdir()
    with pytest.raises(UnetxError, match="already exists"), staged_directory(output):
        pytest.fail("work was done")
    assert names(tmp_path) == ["out"]
    assert names(output) == ["old"]
    abandoned(output, "replaced").mkdir()  # here the new one was in place already
    write_file(tmp_path / "out2", b"")
    with staged_directory(output, overwrite=True) as staging:
        (staging / "new").touch()
    assert names(tmp_path) == ["out", "out2"]
    assert names(output) == ["new"]


WRITER = """
import sys
from pathlib import Path
from unetx_opt.files import staged_directory
while True:
    with staged_directory(Path(sys.argv[1]), overwrite=True) as staging:
        print("writing", flush=True)
        for index in range(20):
            (staging / f"{index}").write_bytes(b"x" * 20000)
    print("done", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there nothing tells whether a process lives without ending it")
def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_directory_or_none(tmp_path: Path) -> None:
    output, chooser = tmp_path / "out", random.Random(5)
    for round_ in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-S", "-c", WRITER, str(output)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": SOURCES},
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(chooser.random() * (0.01 if round_ % 2 else 0.1))
            writer.kill()
        if output.exists():
            assert len(list(output.iterdir())) == 20
            assert {path.stat().st_size for path in output.iterdir()} == {20000}
    existed = output.exists() or any(".replaced-" in name for name in names(tmp_path))
    with scratch_directory(output):
        pass
    assert names(tmp_path) == (["out"] if existed else [])


@pytest.mark.parametrize(
    "name", ["a", "a.onnx", "engines/cpu/model.onnx", "A-b_c+d.1", ".hidden", "console", "com10"]
)
def test_a_plain_name_is_accepted(name: str) -> None:
    path = relative_name(name)
    assert path is not None
    assert path.as_posix() == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/..",
        "a/./b",
        "a.",
        "a./b",
        "a\\b",
        "C:",
        "C:a",
        "a:stream",
        "~",
        "a b",
        "a\n",
        "a\0",
        "\u00e4",
        "\uff0e\uff0e",
        "a*",
        "nul",
        "NUL",
        "nul.txt",
        "x/AUX.h",
        "com0",
        "lpt9.log",
        "a" * 201,
    ],
)
def test_a_name_that_means_more_than_a_file_is_refused(name: str) -> None:
    assert relative_name(name) is None


@given(st.text(max_size=30) | st.text("./\\aC:~ ", max_size=12))
def test_an_accepted_name_stays_below_its_root(name: str) -> None:
    path = relative_name(name)
    if path is not None:
        root = Path("root").resolve()
        assert root.joinpath(*path.parts).resolve().relative_to(root).as_posix() == name
