"""The archive: any ZIP program reads it, one way only to write it, every altered byte found."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unetx_opt.bundle.archive as archive_module
from unetx_opt.bundle.archive import ArchiveContents, write_archive
from unetx_opt.bundle.check import check_bundle
from unetx_opt.bundle.directory import DirectoryContents
from unetx_opt.bundle.open import open_verified
from unetx_opt.errors import BundleError, UnetxError

MARK = b"unetx-sha256:"


def sealed(body: bytes) -> bytes:
    """Bytes that end with the mark, followed by their right hash, as a hostile hand would write it."""
    return body + hashlib.sha256(body).hexdigest().encode()


def reseal(archive: bytes) -> bytes:
    return sealed(archive[:-64])


def foreign(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    """An archive that Python's own writer makes, with a right hash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for info, data in entries:
            file.writestr(info, data)
        file.comment = MARK + b"0" * 64
    return reseal(buffer.getvalue())


def info(name: str, **changes: Any) -> zipfile.ZipInfo:
    result = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    result.external_attr = 0o100644 << 16
    for field, value in changes.items():
        setattr(result, field, value)
    return result


def refused(path: Path, data: bytes, expected: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        open_verified(path)
    assert "\n" not in str(caught.value)
    assert expected in str(caught.value)
    assert check_bundle(path).problems


def test_the_same_files_give_the_same_bytes(tmp_path: Path, samples: Any) -> None:
    shuffled = samples.directory(tmp_path / "copy")
    for name in sorted(samples.files, reverse=True):
        data = (shuffled / name).read_bytes()
        (shuffled / name).unlink()
        (shuffled / name).write_bytes(data)
    write_archive(DirectoryContents(shuffled), tmp_path / "again.unetx")
    assert (tmp_path / "again.unetx").read_bytes() == samples.archive


def test_ordinary_zip_programs_read_it(tmp_path: Path, samples: Any) -> None:
    path = samples.root / "bundle.unetx"
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
        assert file.namelist() == sorted(file.namelist())
        file.extractall(tmp_path / "python")
    with open_verified(tmp_path / "python") as bundle:
        assert bundle.kind == "directory"
    unzip = shutil.which("unzip")
    if unzip is not None:
        assert subprocess.run([unzip, "-tq", path], capture_output=True, check=False).returncode == 0


def test_every_flipped_byte_is_found(tmp_path: Path, samples: Any) -> None:
    path, original = tmp_path / "bundle.unetx", samples.archive
    with zipfile.ZipFile(io.BytesIO(original)) as file:
        headers = [entry.header_offset for entry in file.infolist()]
        start = file.start_dir
    positions = {*range(0, len(original), 97), *range(len(original) - 120, len(original))}
    positions |= {start + index for index in range(0, len(original) - start, 7)}
    positions |= {offset + index for offset in headers for index in range(0, 30, 3)}
    for position in sorted(positions):
        altered = bytearray(original)
        altered[position] ^= 0x20
        refused(path, bytes(altered), "")


def test_a_cut_or_extended_archive_is_found(tmp_path: Path, samples: Any) -> None:
    path, original = tmp_path / "bundle.unetx", samples.archive
    for length in {*range(120), *range(120, len(original), 211), len(original) - 1}:
        refused(path, original[:length], "it is no bundle")
    refused(path, original + b"\n", "it is no bundle")
    refused(path, b"\n" + original, "altered")


def test_an_archive_that_another_program_wrote_is_refused(tmp_path: Path, samples: Any) -> None:
    with zipfile.ZipFile(io.BytesIO(samples.archive)) as file:
        entries = [(info(name), file.read(name)) for name in file.namelist()]
    plain = foreign(entries)
    path = tmp_path / "bundle.unetx"
    path.write_bytes(plain)
    open_verified(path).close()  # exactly our form: the same archive
    assert plain == samples.archive
    first, *rest = entries
    packed = (info(first[0].filename, compress_type=zipfile.ZIP_DEFLATED), b"graph " * 99)
    for odd, expected in (
        ([packed, *rest], "is not as this program writes it"),
        ([(info("empty.txt", date_time=(2026, 1, 1, 0, 0, 0)), b""), *rest], "is not as this program writes it"),
        ([(info("empty.txt", extra=b"\1\0\2\0ab"), b""), *rest], "not as this program writes it"),
        ([(info("empty.txt", comment=b"hello"), b""), *rest], "not as this program writes it"),
        ([(info("empty.txt", external_attr=0o120777 << 16), b"model-card.md"), *rest], "not as this program"),
        ([(info("../../x"), b""), *rest], "is not a name that a bundle can hold"),
        ([(info("/x"), b""), *rest], "is not a name that a bundle can hold"),
        ([(info("dir/"), b""), *rest], "is not a name that a bundle can hold"),
        ([(info("caf\u00e9"), b""), *rest], "is not a name that a bundle can hold"),
        ([*rest, first], "out of place"),
        (rest, "empty.txt is missing"),
        ([first, (info("extra"), b""), *rest], "out of place"),
        ([first, (info("empty.txt1"), b""), *rest], "empty.txt1 is not listed"),
    ):
        refused(path, foreign(odd), expected)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    twice = foreign([(info("a"), b"good"), (info("a"), b"evil")])
    refused(tmp_path / "bundle.unetx", twice, "a is out of place")


def test_bytes_between_the_files_are_refused(tmp_path: Path, samples: Any) -> None:
    original = samples.archive
    with zipfile.ZipFile(io.BytesIO(original)) as file:
        start = file.start_dir
    for gap in (0, start):
        body = bytearray(original[:gap] + b"hidden" + original[gap:-64])
        end = len(body) - len(MARK) - 22
        struct.pack_into("<I", body, end + 16, start + 6)
        refused(tmp_path / "bundle.unetx", sealed(bytes(body)), "bundle archive")


def test_a_local_header_that_differs_from_the_directory_is_refused(tmp_path: Path, samples: Any) -> None:
    # A program that reads from the front would see another name than one that reads the directory.
    original = samples.archive
    with zipfile.ZipFile(io.BytesIO(original)) as file:
        offset = file.getinfo("model-card.md").header_offset
    altered = original[:offset] + original[offset:].replace(b"model-card.md", b"model-care.md", 1)
    refused(tmp_path / "bundle.unetx", reseal(altered), "header of model-card.md")


def test_a_check_sum_that_differs_between_the_headers_is_refused(tmp_path: Path, samples: Any) -> None:
    path = tmp_path / "bundle.unetx"
    altered = bytearray(samples.archive)
    with zipfile.ZipFile(io.BytesIO(samples.archive)) as file:
        offset = file.getinfo("model-card.md").header_offset
    altered[offset + 14] ^= 1
    refused(path, reseal(bytes(altered)), "header of model-card.md")


@given(data=st.data())
def test_no_mutation_with_a_right_hash_is_a_crash(samples: Any, data: st.DataObject) -> None:
    body = bytearray(samples.archive[:-64])
    path = samples.root / "mutated.unetx"
    for _ in range(data.draw(st.integers(1, 4))):
        position = len(body) - 1 - data.draw(st.integers(0, 600)) if data.draw(st.booleans()) else None
        if position is None:
            position = data.draw(st.integers(0, len(body) - 1))
        body[position] = data.draw(st.integers(0, 255))
    path.write_bytes(sealed(bytes(body)))
    try:
        with open_verified(path) as bundle:
            assert bytes(body) == samples.archive[:-64]
            assert bundle.names
    except BundleError as error:
        assert "\n" not in str(error)


def test_sizes_that_a_plain_zip_cannot_hold_are_refused_before_anything_is_written(
    tmp_path: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_MAX_BYTES", len(samples.archive) - 1)
    contents = DirectoryContents(samples.root / "bundle")
    with pytest.raises(BundleError, match="write the bundle as a directory instead"):
        write_archive(contents, tmp_path / "b.unetx")
    monkeypatch.setattr(archive_module, "_MAX_BYTES", len(samples.archive))
    write_archive(contents, tmp_path / "b.unetx")
    assert [path.name for path in tmp_path.iterdir()] == ["b.unetx"]


def test_an_existing_archive_is_replaced_only_on_demand(tmp_path: Path, samples: Any) -> None:
    path = tmp_path / "b.unetx"
    path.write_bytes(b"mine")
    contents = DirectoryContents(samples.root / "bundle")
    with pytest.raises(UnetxError, match="already exists"):
        write_archive(contents, path)
    assert path.read_bytes() == b"mine"
    write_archive(contents, path, overwrite=True)
    assert path.read_bytes() == samples.archive


def test_a_file_that_grows_while_it_is_archived_is_an_error(tmp_path: Path, samples: Any) -> None:
    directory = samples.directory(tmp_path / "bundle")
    contents = DirectoryContents(directory)
    (directory / "model-card.md").write_bytes(b"longer than before")
    with pytest.raises(BundleError, match=r"model-card\.md changed while it was read"):
        write_archive(contents, tmp_path / "b.unetx")
    assert not (tmp_path / "b.unetx").exists()


def test_streams_of_one_archive_do_not_disturb_one_another(samples: Any) -> None:
    contents = ArchiveContents(samples.root / "bundle.unetx")
    try:
        names = ("engines/rtx/sm86.plan", "engines/cpu/model.onnx")
        with contents.stream(names[0]) as first, contents.stream(names[1]) as second:
            parts = [(first.read(7), second.read(5)) for _ in range(60)]
        assert b"".join(part[0] for part in parts) == samples.files[names[0]]
        assert b"".join(part[1] for part in parts) == samples.files[names[1]]
    finally:
        contents.close()
