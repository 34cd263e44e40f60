"""Fixtures that every test may use, and the settings that keep the suite the same everywhere.

Real images are not part of the project. Tests that want them look for a folder with ``lungs/``, ``nih/`` and
``dicom/`` at ``$UNETX_DATA``, or ``../shared/data`` beside the checkout, and skip with a reason otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before numpy, torch or an engine is imported (pytest and hypothesis import none of them): each takes every core
# otherwise, and tests that run beside one another then wait for one another.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "2")

#: Every run is watched: no log may name a patient.
pytest_plugins = ["patients_in_logs"]

ROOT = Path(__file__).resolve().parent.parent

# No deadline: the first example of a property often pays for an import. In CI the examples are the same in
# every run, so that a red run is about the change and not about luck.
settings.register_profile(
    "local", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def lungs() -> Path:
    """Chest radiographs with lung masks: ``images/``, ``masks/`` and ``splits.csv``."""
    return _data_folder("lungs", "splits.csv")


@pytest.fixture(scope="session")
def nih_samples() -> Path:
    """Tables and images in the formats of NIH ChestX-ray14 and CheXmask."""
    return _data_folder("nih", "chexmask_ChestX-Ray8_subset50.csv")


@pytest.fixture(scope="session")
def dicom_samples() -> Path:
    """Real DICOM files, good and malformed."""
    return _data_folder("dicom", "nih_dx_implicit_mono2_8bit.dcm")


def _data_folder(name: str, witness: str) -> Path:
    named = os.environ.get("UNETX_DATA")
    root = Path(named) if named else ROOT.parent / "shared" / "data"
    if (root / name / witness).is_file():
        return root / name
    pytest.skip(f"needs real data: no {name}/{witness} in {root}; set UNETX_DATA to its folder")
