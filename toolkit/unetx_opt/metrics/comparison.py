"""Evaluations of several models on the same images, compared figure by figure and class by class.

An evaluation is the JSON document that ``unetx-opt evaluate --json`` prints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from unetx_opt.errors import DataError
from unetx_opt.metrics.figures import CLASS_FIGURES, IMAGE_FIGURES
from unetx_opt.metrics.paired import PairedOptions, adjust_holm, paired_difference

__all__ = [
    "Evaluation",
    "Subject",
    "check_comparable",
    "compare_evaluations",
    "describe_method",
    "parse_evaluation",
    "read_evaluation",
]

_MAX_FILE_BYTES: Final = 1 << 30

#: A class (None for the image as a whole) and a figure -> image name -> value; None where it does not exist.
Columns = Mapping[tuple[str | None, str], Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was, or will be, evaluated.

    Attributes
    ----------
    where : str
        What messages call it.
    names : frozenset of str
        Image names.
    classes : tuple of str
        Class names in their order, without the background.
    data_sha256 : str or None
        Digest of images and masks; None where it is not known.
    """

    where: str
    names: frozenset[str]
    classes: tuple[str, ...]
    data_sha256: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a comparison needs of one evaluation.

    Attributes
    ----------
    subject : Subject
        Its images and classes.
    model : mapping
        The facts that the document gives about the model.
    columns : mapping
        (class name or None, figure) -> image name -> value or None.
    """

    subject: Subject
    model: Mapping[str, Any]
    columns: Columns


def read_evaluation(path: Path) -> Evaluation:
    """Read the document that ``evaluate --json`` printed, or ``evaluate -o`` saved.

    Raises
    ------
    DataError
        The file is missing, too large, no JSON, or no evaluation.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise DataError(f"{path} has {size} bytes, expected at most {_MAX_FILE_BYTES}")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}; pass what `unetx-opt evaluate --json` printed") from error
    return parse_evaluation(document, str(path))


def parse_evaluation(document: object, where: str) -> Evaluation:
    """Check a document and turn its rows into columns.

    Parameters
    ----------
    document : object
        As ``json.loads`` gives it.
    where : str
        What messages call it.

    Raises
    ------
    DataError
        It is no evaluation, an image is in it twice, or a figure is no number.
    """
    rows = document.get("per_image") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(rows, list) or not rows:
        raise DataError(f"{where} has no per_image rows: pass what `unetx-opt evaluate --json` printed")
    columns: dict[tuple[str | None, str], dict[str, float | None]] = {}
    seen: set[str] = set()
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or name in seen:
            raise DataError(f"{where}: {name!r} is no image name, or is listed twice: evaluate again")
        seen.add(name)
        for key, value in _figures(row):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            ):
                raise DataError(f"{where}: {name} has {key[1]} = {value!r}, expected a finite number or null")
            columns.setdefault(key, {})[name] = value
    ragged = [key for key, column in columns.items() if len(column) != len(seen)]
    if ragged:
        raise DataError(f"{where}: some images have no {ragged[0][1]} or other classes than others: evaluate again")
    classes = tuple(dict.fromkeys(name for name, _ in columns if name is not None))
    digest, model = document.get("data_sha256"), document.get("model")
    subject = Subject(where, frozenset(seen), classes, digest if isinstance(digest, str) else None)
    return Evaluation(subject, model if isinstance(model, dict) else {}, columns)


def check_comparable(subject: Subject, other: Subject) -> None:
    """Check that figures of two evaluations can be subtracted; before the first is made, where it takes long.

    Raises
    ------
    DataError
        Images (they are named), classes, or the content of images or masks differ.
    """
    for missing, where in ((subject.names - other.names, other.where), (other.names - subject.names, subject.where)):
        if missing:
            listed = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise DataError(f"{where} lacks {listed}: compare evaluations of the same images")
    if subject.classes != other.classes:
        raise DataError(
            f"{other.where} has the classes {', '.join(other.classes)}, {subject.where} "
            f"{', '.join(subject.classes)}: compare evaluations of the same labels"
        )
    if None not in (subject.data_sha256, other.data_sha256) and subject.data_sha256 != other.data_sha256:
        raise DataError(
            f"{other.where} was made from images or masks of the same names and other content: evaluate again"
        )


def compare_evaluations(
    candidate: Evaluation, others: Mapping[str, Evaluation], options: PairedOptions | None = None
) -> dict[str, Any]:
    """Compare one evaluation with others of the same images.

    Parameters
    ----------
    candidate : Evaluation
        The minuend: a positive difference means that its figure is larger.
    others : mapping of str to Evaluation
        Key of the result -> what is subtracted. Together they are the family of Holm's adjustment.
    options : PairedOptions, optional
        Confidence, resamples and seed.

    Returns
    -------
    dict
        Key -> ``{"model", "n", "metrics": {metric: row}, "classes": {name: {metric: row}}}`` with rows ``{"mean",
        "ci95", "p", "p_holm", "wilcoxon_p", "n", "left_out", "candidate", "reference"}``: the difference, its
        interval and p-values, the images it rests on and those left out because a distance is infinite in one of
        the two, and the two means over the same images. What cannot be computed from fewer than two images is None.

    Raises
    ------
    DataError
        As `check_comparable`.
    """
    for other in others.values():
        check_comparable(candidate.subject, other.subject)
    chosen = options or PairedOptions()
    rows = {key: _compare(candidate, other, chosen) for key, other in others.items()}
    for figure in {figure for table in rows.values() for figure in table}:
        p_values = {key: table[figure]["p"] for key, table in rows.items() if figure in table}
        adjusted = adjust_holm({key: value for key, value in p_values.items() if value is not None})
        for key in p_values:
            rows[key][figure]["p_holm"] = adjusted.get(key)
    return {key: _document(others[key], rows[key]) for key in others}


def describe_method(options: PairedOptions | None = None) -> dict[str, str]:
    """Say in words what the figures of `compare_evaluations` are."""
    chosen = options or PairedOptions()
    return {
        "mean": "mean over images of this evaluation minus the other",
        "ci95": f"percentile bootstrap of the paired differences, {chosen.resamples} resamples, seed {chosen.seed}",
        "p": "two-sided sign-flip test of the mean difference; exact for up to "
        f"{chosen.exact_up_to} differences other than 0, else up to {chosen.flips} random flips, seed {chosen.seed}",
        "p_holm": "p adjusted by Holm over the compared evaluations, figure by figure",
        "wilcoxon_p": "two-sided Wilcoxon signed-rank test of the same differences",
    }


def _compare(
    candidate: Evaluation, other: Evaluation, options: PairedOptions
) -> dict[tuple[str | None, str], dict[str, Any]]:
    rows = {}
    for key, values in candidate.columns.items():
        against = other.columns.get(key, {})
        pairs = {
            name: (value, reference)
            for name, value in values.items()
            if value is not None and (reference := against.get(name)) is not None
        }
        # Not the millimetres that no image has, or that an older document lacks.
        if against and any(value is not None for value in (*values.values(), *against.values())):
            rows[key] = {**_row(pairs, options), "left_out": len(values) - len(pairs)}
    return rows


def _row(pairs: Mapping[str, tuple[float, float]], options: PairedOptions) -> dict[str, Any]:
    first = {name: pair[0] for name, pair in pairs.items()}
    second = {name: pair[1] for name, pair in pairs.items()}
    means = {"candidate": _mean(first), "reference": _mean(second), "n": len(pairs), "p_holm": None}
    if len(pairs) < 2:
        only = _mean({name: first[name] - second[name] for name in pairs})
        return {"mean": only, "ci95": None, "p": None, "wilcoxon_p": None, **means}
    difference = paired_difference(first, second, options)
    return {
        "mean": difference.mean,
        "ci95": [difference.lower, difference.upper],
        "p": difference.p_value,
        "wilcoxon_p": _wilcoxon([first[name] - second[name] for name in sorted(pairs)]),
        **means,
    }


def _document(other: Evaluation, rows: Mapping[tuple[str | None, str], Any]) -> dict[str, Any]:
    classes: dict[str, dict[str, Any]] = {}
    for (name, figure), row in rows.items():
        if name is not None:
            classes.setdefault(name, {})[figure] = row
    metrics = {figure: row for (name, figure), row in rows.items() if name is None}
    return {"model": other.model, "n": len(other.subject.names), "metrics": metrics, "classes": classes}


def _figures(row: Mapping[str, Any]) -> Iterable[tuple[tuple[str | None, str], Any]]:
    yield from (((None, key), row[key]) for key in IMAGE_FIGURES if key in row)
    classes = row.get("classes", {})
    for name, scores in classes.items() if isinstance(classes, dict) else ():
        if isinstance(scores, dict):
            yield from (((name, key), scores[key]) for key in CLASS_FIGURES if key in scores)


def _wilcoxon(differences: list[float]) -> float:
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if any(differences) else 1.0


def _mean(values: Mapping[str, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
