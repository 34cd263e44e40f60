"""The watch over logs finds what it is for: a run with a leak fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LEAKS = {
    "a logger": "logging.getLogger('node').warning('got %s', 'Lovelace^Augusta')",
    "standard error": "print('got Lovelace^Augusta', file=sys.stderr)",
    "a log file": "(tmp_path / 'log').write_text('got patient-18151210')",
    "an audit trail": "(tmp_path / 'audit.jsonl').write_text('{\"who\": \"Lovelace^Augusta\"}')",
    "standard error of a child": "subprocess.run([sys.executable, '-c', 'import sys; sys.exit(\"Secret^Name\")'])",
}


@pytest.fixture
def apart() -> Iterator[Path]:
    """A folder that the watch over this run does not search."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _run(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    imports = "import logging, subprocess, sys"
    (folder / "test_one.py").write_text(f"{imports}\n\ndef test_one(tmp_path):\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "patients_in_logs", "-p", "no:cacheprovider", *arguments]
    basetemp = f"--basetemp={folder / 'temporary'}"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [*command, basetemp, "test_one.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("body", LEAKS.values(), ids=list(LEAKS))
def test_a_run_that_logs_a_patient_fails(apart: Path, body: str) -> None:
    done = _run(apart, body)
    assert done.returncode == 1, done.stdout
    assert "lines of logs name a patient" in done.stdout


def test_a_run_of_several_processes_fails_too(apart: Path) -> None:
    done = _run(apart, LEAKS["a log file"], "-n", "2")
    assert done.returncode == 1, done.stdout
    assert "lines of logs name a patient" in done.stdout


def test_a_run_that_names_nobody_passes(apart: Path) -> None:
    done = _run(
        apart, "logging.getLogger('node').warning('took an image'); (tmp_path / 'a.dcm').write_text('Lovelace')"
    )
    assert done.returncode == 0, done.stdout
