"""An evaluation as tables that a person reads; everything in them is in the JSON document too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.cli.output import note
from unetx_opt.metrics.figures import FIGURES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["describe_model", "describe_worst", "print_evaluation"]

# Tables of figures are wider than what a pipe or a log is assumed to be.
_LEAST_COLUMNS: Final = 118
_NAMES_SHOWN: Final = 3
_SIGNIFICANCE: Final = 0.05
# Below, see `unetx_opt.metrics.bootstrap`, the percentile bootstrap's intervals are visibly too narrow.
_FEW_IMAGES: Final = 20


def print_evaluation(document: Mapping[str, Any], worst: int) -> None:
    """Print the tables of an evaluation on stdout, and notes about what is missing on stderr.

    Parameters
    ----------
    document : mapping
        As ``--json`` prints it.
    worst : int
        Failures to list.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _LEAST_COLUMNS))
    heading = f"{document['data']}, split {document['split']}, {document['n']} images"
    _print(console, f"{heading}: {describe_model(document['model'])}", _figure_table(document["metrics"]))
    if len(document["classes"]) > 1:
        _print(console, "By class: mean +- standard deviation", _class_table(document))
    for name, difference in document.get("differences", {}).items():
        _print_difference(console, name, difference, is_family=len(document["differences"]) > 1)
    _print(
        console, f"Worst {min(worst, document['n'])} of {document['n']} images by Dice", _worst_table(document, worst)
    )
    _note_missing(document)


def describe_model(facts: Mapping[str, Any]) -> str:
    """Name a model in a few words: its file, its variant or target, and its input."""
    source = str(facts.get("checkpoint") or facts.get("bundle") or "a model").replace("\\", "/").rsplit("/", 1)[-1]
    details = [str(facts[key]) for key in ("variant", "target", "compute_dtype") if facts.get(key)]
    if isinstance(size := facts.get("input_px"), list | tuple) and len(size) == 2:
        details.append(f"{size[0]} x {size[1]}")
    return f"{source} ({', '.join(details)})" if details else source


def describe_worst(row: Mapping[str, Any]) -> str:
    """Give the figures of one image of ``per_image`` in one line."""
    if row["hd95_px"] is None:
        distance = "no HD95 (class in one mask)"
    else:
        millimetres = "" if row["hd95_mm"] is None else f" ({row['hd95_mm']:.1f} mm)"
        distance = f"HD95 {row['hd95_px']:.1f} px{millimetres}"
    return f"Dice {row['dice']:.4f}   {distance}"


def _figure_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(("figure", "mean", "std", "95 % interval of the mean", "images"))
    for key, row in rows.items():
        digits = FIGURES[key].digits
        interval = "-" if row["ci95"] is None else " to ".join(_number(bound, digits) for bound in row["ci95"])
        cells = (_number(row["mean"], digits), _number(row["std"], digits), interval, str(row["n"]))
        table.add_row(FIGURES[key].title, *cells)
    return table


def _class_table(document: Mapping[str, Any]) -> Table:
    classes = document["classes"]
    keys = [key for key in FIGURES if all(key in rows for rows in classes.values())]
    table = _table(("figure", *classes))
    for key in keys:
        digits = FIGURES[key].digits
        cells = (
            f"{_number(rows[key]['mean'], digits)} +- {_number(rows[key]['std'], digits)}"
            for rows in classes.values()
        )
        table.add_row(FIGURES[key].title, *cells)
    for kind, words in (("truth_only", "images where it was missed"), ("found_only", "images where it was made up")):
        table.add_row(words, *(str(document["missing"][name][kind]) for name in classes))
    return table


def _print_difference(console: Console, name: str, difference: Mapping[str, Any], *, is_family: bool) -> None:
    heading = f"Difference, image by image, over {difference['n']} images: this - {name}"
    if difference["model"]:
        heading += f", {describe_model(difference['model'])}"
    rows = {FIGURES[key].title: (key, row) for key, row in difference["metrics"].items()}
    _print(console, heading, _difference_table(rows, is_family=is_family))
    if len(difference["classes"]) > 1:
        rows = {
            f"{label}: {FIGURES[key].title}": (key, figures[key])
            for label, figures in difference["classes"].items()
            for key in _class_keys(figures)
        }
        _print(console, f"The same by class: this - {name}", _difference_table(rows, is_family=is_family))
    _note_small_or_left_out(name, difference)


def _class_keys(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of a class that are printed; the others are in the document."""
    return ("dice", "hd95_mm" if "hd95_mm" in figures else "hd95_px")


def _note_small_or_left_out(name: str, difference: Mapping[str, Any]) -> None:
    count = difference["n"]
    if count < _FEW_IMAGES:
        note(f"{name}: with {count} images the intervals are too narrow, and no p can be below {2 / 2**count:.2g}")
    left_out = [f"{key} {row['left_out']}" for key, row in difference["metrics"].items() if row["left_out"]]
    if left_out:
        note(f"{name}: images without such a distance in one of the two, left out: {', '.join(left_out)}")


def _difference_table(rows: Mapping[str, tuple[str, Mapping[str, Any]]], *, is_family: bool) -> Table:
    # The adjusted p-value of a single comparison is the p-value itself.
    p_columns = ("p", "p (Holm)") if is_family else ("p",)
    table = _table(("figure", "this", "other", "difference", "95 % interval", *p_columns, "finding"))
    for title, (key, row) in rows.items():
        digits = FIGURES[key].digits
        interval = "-" if row["ci95"] is None else " to ".join(_signed(bound, digits) for bound in row["ci95"])
        table.add_row(
            title,
            _number(row["candidate"], digits),
            _number(row["reference"], digits),
            _signed(row["mean"], digits),
            interval,
            *(_probability(row[name]) for name in ("p", "p_holm")[: len(p_columns)]),
            _finding(row, higher_is_better=FIGURES[key].higher_is_better),
        )
    return table


def _finding(row: Mapping[str, Any], *, higher_is_better: bool) -> str:
    if row["p_holm"] is None:
        return "too few images"
    if row["p_holm"] >= _SIGNIFICANCE:
        return "none shown"
    return "better" if (row["mean"] > 0) == higher_is_better else "worse"


def _worst_table(document: Mapping[str, Any], worst: int) -> Table:
    images = {row["name"]: row for row in document["per_image"]}
    names = document["worst_first"][:worst]
    keys = [key for key in ("dice", "miou", "accuracy", "hd95_px", "hd95_mm") if key in document["metrics"]]
    table = _table(("image", *(FIGURES[key].title for key in keys)))
    for name in names:
        table.add_row(name, *(_number(images[name][key], FIGURES[key].digits) for key in keys))
    return table


def _note_missing(document: Mapping[str, Any]) -> None:
    for label in document["classes"]:
        for here, there, words in (
            ("in_truth", "in_found", "in the data set's mask and not in the model's"),
            ("in_found", "in_truth", "in the model's mask and not in the data set's"),
        ):
            names = [
                row["name"]
                for row in document["per_image"]
                if row["classes"][label][here] and not row["classes"][label][there]
            ]
            if names:
                more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
                listed = ", ".join(names[:_NAMES_SHOWN]) + more
                note(f"{label}: {words} in {len(names)} images, without a finite distance: {listed}")
        if neither := document["missing"][label]["neither"]:
            note(f"{label}: in neither mask in {neither} images, counted as complete agreement")
    unknown = sum(row["spacing_mm"] is None for row in document["per_image"])
    if "hd95_mm" in document["metrics"] and unknown:
        note(f"{unknown} images have no known pixel spacing: they have no part in millimetres")


def _print(console: Console, heading: str, table: Table) -> None:
    console.print(heading, style="bold", highlight=False, markup=False)
    console.print(table)


def _table(columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first, *others = columns
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="left" if column == "finding" else "right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int) -> str:
    # Rounded first: a difference of -0.00004 is +0.0000 and not -0.0000.
    return "-" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
