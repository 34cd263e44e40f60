"""Pictures of the worst images, taken into the page; only PNG files in the report's own folder are."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_bench.report import Candidate, Report, WorstCase
from unetx_opt.files import relative_name

__all__ = ["CasePictures", "PictureBudget", "embed_cases"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_KINDS: Final = ("reference", "engine", "difference")
_CASES: Final = 3
_LARGEST_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class CasePictures:
    """One image of one candidate: the same view with the reference's mask, the engine's, and where they differ.

    Attributes
    ----------
    candidate : str
        Whose masks they are.
    case : WorstCase
        Of the report.
    uris : mapping of str to str
        reference, engine, difference -> data URI.
    """

    candidate: str
    case: WorstCase
    uris: dict[str, str]


@dataclass(slots=True)
class PictureBudget:
    """How much of a page pictures may be, in bytes of files; what is left."""

    left_bytes: int = 8 * 2**20


def embed_cases(report: Report, folder: Path, budget: PictureBudget) -> tuple[tuple[CasePictures, ...], int]:
    """Read the pictures of engines' worst images.

    Parameters
    ----------
    report : Report
        Names them.
    folder : pathlib.Path
        Where the report lies.
    budget : PictureBudget
        Reduced by what is taken.

    Returns
    -------
    tuple of CasePictures
        The worst images of each engine on which masks differ at all.
    int
        How many cases have pictures in the report that are missing, no PNG, or beyond the budget.
    """
    found, left_out = [], 0
    for candidate in report.candidates:
        if candidate.kind != "engine" or candidate.drift is None:
            continue
        cases = [case for case in candidate.drift.worst if case.pictures and case.differing_px > 0]
        for case in cases[:_CASES]:
            embedded = _embed_case(candidate, case, folder, budget)
            found += [] if embedded is None else [embedded]
            left_out += embedded is None
    return tuple(found), left_out


def _embed_case(candidate: Candidate, case: WorstCase, folder: Path, budget: PictureBudget) -> CasePictures | None:
    files = {kind: _read_png(folder, case.pictures.get(kind, "")) for kind in _KINDS}
    present = {kind: data for kind, data in files.items() if data is not None}
    size = sum(map(len, present.values()))
    if len(present) < len(_KINDS) or size > budget.left_bytes:
        return None
    budget.left_bytes -= size
    uris = {kind: f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}" for kind, data in present.items()}
    return CasePictures(candidate.name, case, uris)


def _read_png(folder: Path, name: str) -> bytes | None:
    relative = relative_name(name)
    if relative is None:
        return None
    path = folder / relative
    try:
        # A link could lead out of the folder to any file of the reader's.
        if not path.resolve().is_relative_to(folder.resolve()) or path.stat().st_size > _LARGEST_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(_SIGNATURE) else None
