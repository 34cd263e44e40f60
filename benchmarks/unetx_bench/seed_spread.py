"""How much of a difference between variants is the seed? Evaluations of trainings that differ in it alone.

    python -m unetx_bench.seed_spread unet-0.json unet-1.json unet-2.json focal-0.json ... -o seeds.json

Each argument is what ``unetx-opt evaluate --checkpoint FILE -o`` saved of one training. The output is what
``unetx-opt reproduce --seeds`` takes; the tables of it are printed as Markdown. Images are the same in every
evaluation, so what is left between the seeds of one variant is chance of the training; between variants, seeds are
paired, because `crf` has the very networks of `unet`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.wording import ABSENT, FIGURE_TITLES, format_spread
from unetx_opt.errors import DataError, UnetxError
from unetx_opt.files import write_file
from unetx_opt.metrics.comparison import Evaluation, check_comparable, read_evaluation
from unetx_opt.models.variants import VARIANTS
from unetx_opt.training.options import TrainingOptions

__all__ = ["Training", "describe_spread", "main", "read_trainings", "render_spread"]

#: What two trainings of one row may differ in. The device is named in the output.
_FREE: Final = frozenset({"seed", "variant", "device", "best_epoch", "epochs_done"})
#: Checkpoints of earlier versions lack settings that came later, and had what is the default now.
_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {field.name: field.default for field in dataclasses.fields(TrainingOptions) if field.name not in _FREE}
)
_CONFIDENCE: Final = 0.95

#: Figure -> seed -> its mean over the images.
ByFigure = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Training:
    """One training, evaluated.

    Attributes
    ----------
    variant, seed : str
        Which.
    sha256 : str
        Of the checkpoint.
    settings : mapping
        Of the training.
    means : mapping of str to float
        Figure -> mean over the images.
    """

    variant: str
    seed: str
    sha256: str
    settings: Mapping[str, Any]
    means: Mapping[str, float]


@click.command()
@click.argument("evaluations", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file that shall appear.")
def main(evaluations: tuple[Path, ...], output: Path) -> None:
    """Put EVALUATIONS of several seeds of each variant into one table."""
    try:
        document = describe_spread(read_trainings(evaluations))
    except UnetxError as error:
        raise click.ClickException(str(error)) from error
    write_file(output, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("ascii"))
    click.echo(render_spread(document), nl=False)


def read_trainings(paths: Sequence[Path]) -> tuple[Training, ...]:
    """Read evaluations of checkpoints that differ in variant and seed alone.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        At least one.

    Raises
    ------
    DataError
        A file is no evaluation of a trained checkpoint, is of other images or other settings than the first, or two
        are of one variant and seed.
    """
    evaluations = [read_evaluation(path) for path in paths]
    trainings = [_read_training(evaluation) for evaluation in evaluations]
    for path, evaluation, training in zip(paths, evaluations, trainings, strict=True):
        check_comparable(evaluations[0].subject, evaluation.subject)
        expected = {**_DEFAULTS, "input_px": evaluations[0].model.get("input_px"), **trainings[0].settings}
        got = {**_DEFAULTS, "input_px": evaluation.model.get("input_px"), **training.settings}
        other = sorted(key for key in (expected.keys() | got.keys()) - _FREE if expected.get(key) != got.get(key))
        if other:
            raise DataError(
                f"{path} has {other[0]} {got.get(other[0])} and {paths[0]} has {expected.get(other[0])}: compare "
                "trainings that differ in the seed alone, evaluated at one size"
            )
    seen: dict[tuple[str, str], Path] = {}
    for path, training in zip(paths, trainings, strict=True):
        before = seen.setdefault((training.variant, training.seed), path)
        if before is not path:
            raise DataError(f"{path} and {before} are both seed {training.seed} of {training.variant}: pass one")
    return tuple(trainings)


def _read_training(evaluation: Evaluation) -> Training:
    model, where = evaluation.model, evaluation.subject.where
    settings, variant = model.get("training"), model.get("variant")
    known = isinstance(variant, str) and variant in VARIANTS
    if not known or not isinstance(settings, dict) or type(settings.get("seed")) is not int:
        raise DataError(
            f"{where} names no variant and seed of a training: evaluate what `unetx-opt train` wrote with "
            "`unetx-opt evaluate --checkpoint`"
        )
    means = {
        figure: statistics.fmean(value for value in column.values() if value is not None)
        for figure in FIGURE_TITLES
        if (column := evaluation.columns.get((None, figure))) and None not in column.values()
    }
    if set(means) != set(FIGURE_TITLES):
        raise DataError(f"{where} lacks {', '.join(sorted(set(FIGURE_TITLES) - set(means)))}: evaluate again")
    return Training(str(variant), str(settings["seed"]), str(model.get("sha256", "")), settings, means)


def describe_spread(trainings: Sequence[Training]) -> dict[str, Any]:
    """Give the document: each training's figures, their spread, and what it leaves of differences.

    Parameters
    ----------
    trainings : sequence of Training
        In any order.

    Returns
    -------
    dict
        Variant -> seed -> figure -> mean, as ``reproduce --seeds`` reads it, and beside the variants ``spread``
        (variant -> figure -> mean, std, n), ``differences`` (variant -> figure -> difference to the baseline, over
        the seeds that both have), ``trainings`` and ``method``.
    """
    ordered = sorted(trainings, key=lambda one: (list(VARIANTS).index(one.variant), int(one.seed)))
    rows: dict[str, dict[str, Mapping[str, float]]] = {}
    for one in ordered:
        rows.setdefault(one.variant, {})[one.seed] = one.means
    figures = {variant: _by_figure(seeds) for variant, seeds in rows.items()}
    baseline = figures.get(BASELINE, {})
    return {
        **rows,
        "spread": {
            variant: {figure: _spread(list(values.values())) for figure, values in table.items()}
            for variant, table in figures.items()
        },
        "differences": {
            variant: {figure: _difference(values, baseline.get(figure, {})) for figure, values in table.items()}
            for variant, table in figures.items()
            if variant != BASELINE and baseline
        },
        "trainings": [
            {"variant": one.variant, "seed": one.seed, "sha256": one.sha256, "settings": dict(one.settings)}
            for one in ordered
        ],
        "method": {
            "spread": "mean and sample standard deviation of the seeds' means over the same images",
            "differences": f"minus {BASELINE}, paired by seed; {_CONFIDENCE:.0%} interval of Student's t",
        },
    }


def render_spread(document: Mapping[str, Any]) -> str:
    """Render the document's two tables as Markdown."""
    titles = list(FIGURE_TITLES.values())
    lines = [_line(["variant", "seeds", *titles]), _line(["---"] * (2 + len(titles)))]
    for variant in document["spread"]:
        seeds = document[variant]
        cells = [format_spread([means[figure] for means in seeds.values()]) for figure in FIGURE_TITLES]
        lines.append(_line([f"`{variant}`", ", ".join(seeds), *cells]))
    if document["differences"]:
        lines += ["", _line([f"minus `{BASELINE}`", "seeds", *titles]), _line(["---"] * (2 + len(titles)))]
    for variant, table in document["differences"].items():
        counts = str(next(iter(table.values()))["n"])
        lines.append(_line([f"`{variant}`", counts, *(_signed(table[figure]) for figure in FIGURE_TITLES)]))
    return "\n".join(lines) + "\n"


def _by_figure(seeds: Mapping[str, Mapping[str, float]]) -> ByFigure:
    return {figure: {seed: means[figure] for seed, means in seeds.items()} for figure in FIGURE_TITLES}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def _difference(values: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Any]:
    from scipy.stats import t

    both = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    if len(both) < 2:
        return {"mean": both[0] if both else None, "low": None, "high": None, "n": len(both)}
    mean = statistics.fmean(both)
    arm = float(t.ppf((1 + _CONFIDENCE) / 2, len(both) - 1)) * statistics.stdev(both) / math.sqrt(len(both))
    return {"mean": mean, "low": mean - arm, "high": mean + arm, "n": len(both)}


def _signed(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return ABSENT
    interval = "" if row["low"] is None else f" ({row['low']:+.4f} to {row['high']:+.4f})"
    return f"{row['mean']:+.4f}{interval}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
