"""The reader process: the same pictures as in this process, and what happens when it breaks."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from unetx_opt.dicom.read import read_dicom
from unetx_opt.dicom.sandbox import DicomReader, ReaderLimits
from unetx_opt.errors import ImageError, UnetxError

pydicom = pytest.importorskip("pydicom", reason="reading DICOM needs pydicom")


def write_radiograph(path: Path, rows: int = 40, columns: int = 30, seed: int = 0, **attributes: object) -> Path:
    """An uncompressed 12-bit Computed Radiography image."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{seed}"
    dataset.PatientName = "Secret^Name"
    dataset.Modality, dataset.BodyPartExamined = "CR", "CHEST"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [0.2, 0.3]
    for name, value in attributes.items():
        setattr(dataset, name, value)
    values = np.random.default_rng(seed).integers(0, 4096, (rows, columns), dtype=np.uint16)
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def reader():
    with DicomReader() as opened:
        yield opened


def test_a_picture_is_the_same_in_either_process(reader, tmp_path):
    for seed, attributes in enumerate(({}, {"PhotometricInterpretation": "MONOCHROME1"}, {"PixelSpacing": None})):
        path = write_radiograph(tmp_path / f"{seed}.dcm", seed=seed, **attributes)
        here, there = read_dicom(path), reader.read(path)
        assert np.array_equal(here.pixels, there.pixels)
        assert there.pixels.dtype == np.float32
        for name in ("spacing_mm", "pixel_aspect", "sop_instance_uid", "transfer_syntax_uid", "photometric"):
            assert getattr(here, name) == getattr(there, name)


def test_real_files_are_read_or_refused_as_in_this_process(reader, dicom_samples):
    for path in sorted(dicom_samples.glob("*.dcm")):
        try:
            here = read_dicom(path)
        except ImageError as error:
            with pytest.raises(ImageError) as caught:
                reader.read(path)
            assert str(caught.value) == str(error)
        else:
            assert np.array_equal(here.pixels, reader.read(path).pixels)


def test_a_file_that_is_refused_costs_no_process(reader, tmp_path):
    good, bad = write_radiograph(tmp_path / "good.dcm"), tmp_path / "bad.dcm"
    bad.write_bytes(good.read_bytes()[:400])
    reader.read(good)
    process = reader._process
    with pytest.raises(ImageError, match=r"bad\.dcm cannot be used"):
        reader.read(bad)
    reader.read(good)
    assert reader._process is process


def test_a_reader_can_be_warmed_up_before_its_first_file(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm")
    with DicomReader() as reader:
        assert reader.process_id is None
        reader.warm_up()
        process = reader.process_id
        assert reader.read(path).pixels.shape == (40, 30)
        assert reader.process_id == process
    assert reader.process_id is None
    with pytest.raises(UnetxError, match="closed"):
        reader.warm_up()


def test_a_process_that_was_killed_is_replaced(reader, tmp_path):
    path = write_radiograph(tmp_path / "a.dcm")
    reader.read(path)
    os.kill(reader._process.pid, signal.SIGKILL)
    reader._process.wait()
    assert reader.read(path).pixels.shape == (40, 30)


def test_a_read_that_takes_too_long_is_ended_and_the_next_one_works(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm")
    with DicomReader() as reader:
        reader.read(path)
        os.kill(reader._process.pid, signal.SIGSTOP)  # as a decoder that loops for ever
        reader.limits = ReaderLimits(timeout_s=0.5)
        with pytest.raises(ImageError, match=r"a\.dcm cannot be used: reading it took more than 0\.5 s"):
            reader.read(path)
        process = reader.process_id
        assert process is not None, "the next process is started at once"
        reader.limits = ReaderLimits()
        assert reader.read(path).pixels.shape == (40, 30)
        assert reader.process_id == process


@pytest.mark.skipif(os.name == "nt", reason="no resource limits on Windows")
def test_an_image_that_needs_more_memory_than_allowed_is_refused_and_the_next_one_works(tmp_path):
    large = write_radiograph(tmp_path / "large.dcm", rows=5000, columns=5000)
    small = write_radiograph(tmp_path / "small.dcm")
    with DicomReader(ReaderLimits(memory_mib=480)) as reader:
        assert reader.read(small).pixels.shape == (40, 30)
        with pytest.raises(ImageError, match=r"large\.dcm cannot be used"):
            reader.read(large)
        assert reader.read(small).pixels.shape == (40, 30)
    with DicomReader() as reader:
        assert reader.read(large).pixels.shape == (5000, 5000)


def test_a_process_that_breaks_while_it_reads_is_named_and_replaced(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm")
    with DicomReader() as reader:
        reader.read(path)
        pid = reader._process.pid
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGSEGV))  # pending until it goes on
        killer.start()
        waker = threading.Timer(0.5, os.kill, (pid, signal.SIGCONT))
        waker.start()
        with pytest.raises(
            ImageError, match=r"a\.dcm cannot be used: it broke the process that read it \(signal 11\)"
        ):
            reader.read(path)
        assert reader.read(path).pixels.shape == (40, 30)


def test_threads_take_turns_and_each_gets_its_own_picture(reader, tmp_path):
    paths = [write_radiograph(tmp_path / f"{seed}.dcm", seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: reader.read(path).sop_instance_uid, paths))
    assert found == [f"1.2.3.{seed}" for seed in range(8)]


def test_a_closed_reader_says_so_also_to_who_was_waiting(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm")
    reader = DicomReader()
    reader.read(path)
    os.kill(reader._process.pid, signal.SIGSTOP)
    closer = threading.Timer(0.3, reader.close)
    closer.start()
    with pytest.raises(UnetxError, match="closed"):
        reader.read(path)
    closer.join()
    with pytest.raises(UnetxError, match="closed"):
        reader.read(path)
    reader.close()
