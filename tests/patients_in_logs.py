"""No log of a test run may name a patient: the run fails where one does.

Watched are the records of every logger in the tests' own processes, what pytest captured of standard error, and every
log file and audit trail below the run's temporary folder, where the nodes and peers that tests start write theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Names and numbers of the patients in the tests' own files and in the real ones of ``dicom/``.
PATIENTS = (
    "Lovelace",
    "patient-18151210",
    "Secret^Name",
    "secret-id",
    "Jürgen",
    "Covid0000",
    "16d7f894-55d7-4d95-8957-d18987f0e981",
    "Lastname^Firstname",
    "id11111",
    "Rubo DEMO",
    "556342B",
)
#: Names of the files that are logs, and their last suffixes.
LOG_NAMES = ("log", "stderr", "Orthanc.log")
LOG_SUFFIXES = (".log", ".jsonl")
_CAPTURED = ("Captured log", "Captured stderr")


class Watch(logging.Handler):
    """What was logged by name of a patient, as "where: the line"."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.search(f"logger {record.name}", record.getMessage())

    def search(self, where: str, text: str) -> None:
        """Keep every line that names a patient."""
        if any(patient in text for patient in PATIENTS):
            self.found += [f"{where}: {line}" for line in text.splitlines() if any(one in line for one in PATIENTS)]

    def search_files(self, folder: Path) -> None:
        """Search the logs below a folder."""
        for path in folder.rglob("*"):
            if (path.name in LOG_NAMES or path.suffix in LOG_SUFFIXES) and path.is_file():
                self.search(str(path.relative_to(folder)), path.read_text(encoding="utf-8", errors="replace"))


_WATCH = Watch()


@pytest.fixture(scope="session", autouse=True)
def _no_patient_in_any_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    logging.getLogger().addHandler(_WATCH)
    yield
    logging.getLogger().removeHandler(_WATCH)
    _WATCH.search_files(tmp_path_factory.getbasetemp())
    assert not _WATCH.found, f"{len(_WATCH.found)} lines of logs name a patient: {_WATCH.found[:5]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Search what pytest captured of a test."""
    report = yield
    for title, text in report.sections:
        if title.startswith(_CAPTURED):
            _WATCH.search(f"{item.nodeid} ({title})", text)
    return report
