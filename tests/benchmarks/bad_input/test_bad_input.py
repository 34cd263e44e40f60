"""500 damaged and hostile files: each is read or refused with one line, and whoever reads them lives on.

`UNETX_BAD_INPUT=20000` makes it as many; `python -m unetx_bench.bad_input` is the same as one command with a record.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from unetx_bench.bad_input.__main__ import main as command
from unetx_bench.bad_input.corpus import make_file
from unetx_bench.bad_input.elements import join_file, split_file
from unetx_bench.bad_input.hostile import HOSTILE
from unetx_bench.bad_input.mutations import MUTATIONS
from unetx_bench.bad_input.reading import Reading, check_alive, peak_memory_mib, read_corpus, summarize
from unetx_bench.bad_input.valid import SHAPE, VALID, valid_bytes
from unetx_opt.dicom.decode import TRANSFER_SYNTAXES
from unetx_opt.dicom.read import read_dicom_bytes
from unetx_opt.dicom.sandbox import DicomReader, ReaderLimits

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")

COUNT = int(os.environ.get("UNETX_BAD_INPUT", "500"))


LIMITS = ReaderLimits(timeout_s=20.0, memory_mib=2048)


@dataclass(frozen=True)
class Corpus:
    """What became of the files, the reader's memory, and what it no longer reads afterwards."""

    readings: list[Reading]
    peak_mib: float
    dead: tuple[str, ...]
    left: list[Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    readings, peaks = [], []
    with DicomReader(LIMITS) as reader:
        for reading in read_corpus(range(COUNT), 0, folder, reader):
            readings.append(reading)
            peaks.append(peak_memory_mib(reader.process_id) or 0.0)
        dead = check_alive(reader, folder)
    return Corpus(readings, max(peaks), dead, list(folder.iterdir()))


def test_each_bad_file_is_read_or_refused_in_one_line_within_the_limits(corpus: Corpus) -> None:
    record = summarize(corpus.readings)
    assert record["faults"] == []
    assert record["ended"] == [], "files that the reader itself does not refuse in time"
    assert record["outcomes"]["read"] > COUNT / 5
    assert record["outcomes"]["refused"] > COUNT / 5
    assert set(HOSTILE) | set(MUTATIONS) == set(record["kinds"])
    assert corpus.peak_mib < LIMITS.memory_mib
    assert (corpus.dead, corpus.left) == ((), [])


#: What may be read in the end, because only something beside the picture is wrong with it.
HARMLESS = {
    *("window-width-0", "window-nan", "study-uid-upwards", "series-uid-absolute", "elf-preamble", "exe-preamble"),
    *("text-64-mib", "charset-shift", "elements-50000", "rle-too-long"),
}
#: A codec fills in what a frame lacks whose header and whose file agree about a size.
FILLED = {"jpeg-2000-4096", "jpeg-4096", "jpeg-lossless-4096"}


def test_of_the_hostile_files_only_those_with_a_whole_picture_are_read(corpus: Corpus) -> None:
    readings = corpus.readings[: len(HOSTILE)]
    assert {reading.kind for reading in readings if reading.outcome == "read"} == HARMLESS | FILLED
    reasons = {reading.kind: reading.reason or "" for reading in readings}
    for kind, words in {
        "deflate-1-gib": "inflates to more than",
        "deflate-200-mib": "more than 65536 elements",
        "items-2000000": "more than 65536 items",
        "open-items-1000000": "more than 65536 items",
        "sides-65535-frames-2-31": "65535 x 65535",
        "frames-2-31-compressed": "2147483647 frames",
        "jpeg-2000-65535": "65535 x 65535",
        "jpeg-2000-components": "16384 components",
        "instance-uid-upwards": "SOPInstanceUID is absent or malformed",
        "empty": "no DICOM file",
    }.items():
        assert words in reasons[kind], kind


def test_the_command_records_what_it_saw_and_makes_one_file_again(tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["-o", str(tmp_path), "--count", "1"], catch_exceptions=False)
    assert run.exit_code == 0
    record = json.loads((tmp_path / "bad-input.json").read_text(encoding="ascii"))
    assert (record["files"], record["outcomes"], record["alive"]) == (1, {"refused": 1}, True)
    assert record["peak_rss_mib"] > 10 or sys.platform != "linux"
    assert record["tools"]["pydicom"] == pydicom.__version__
    run = CliRunner().invoke(command, ["-o", str(tmp_path / "one"), "--only", "77"], catch_exceptions=False)
    (path,) = (tmp_path / "one").iterdir()
    assert str(path) == run.output.strip()
    assert path.read_bytes() == make_file(77).data


@pytest.mark.parametrize("name", VALID)
def test_the_material_is_read_and_comes_apart_and_together_again(name: str) -> None:
    data = valid_bytes(name)
    image = read_dicom_bytes(data)
    assert image.pixels.shape == SHAPE
    assert image.pixels[24, 30] > image.pixels[24, 60], "the disc is brighter than the ground"
    again = join_file(split_file(data))
    assert again == data or (name == "deflated" and split_file(again) == split_file(data))


def test_every_codec_has_a_valid_file() -> None:
    near_lossless_or_lossy = {f"1.2.840.10008.1.2.4.{end}" for end in (81, 91, 202, 203)}
    assert set(TRANSFER_SYNTAXES) - {kind.syntax for kind in VALID.values()} == near_lossless_or_lossy


def test_a_file_follows_from_its_seed_and_place_alone() -> None:
    for place in (0, 60, 61, 499, 19_999):
        assert make_file(place, 7) == make_file(place, 7)
    assert make_file(499, 7).data != make_file(499, 8).data
    names = {make_file(place).name for place in range(len(HOSTILE), 300)}
    assert len(names) == 300 - len(HOSTILE)
    assert make_file(300).data != make_file(300 + len(VALID)).data
