"""The command `unetx-opt reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt.cli.output import echo_json, note
from unetx_opt.errors import UnetxError
from unetx_opt.models.variants import VARIANTS
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import Precision

if TYPE_CHECKING:
    from unetx_bench.reproduce.record import Reproduction

__all__ = ["reproduce"]


def _read_variants(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if name not in VARIANTS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(VARIANTS)}", context, parameter)
    return names


@click.command("reproduce")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for table and page.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with images/ and masks/, or ChestX-ray14 with a CheXmask table. Without it: phantoms.",
)
@click.option("--quick", is_flag=True, help="Cut down to minutes; the report says what was cut.")
@click.option(
    "--checkpoints",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with VARIANT.safetensors files. Without it: the reference checkpoints.",
)
@click.option("--train", is_flag=True, help="Train what --checkpoints does not hold, all with the same settings.")
@click.option("--epochs", type=click.IntRange(1), default=40, show_default=True, help="Of --train, at most.")
@click.option("--width", type=click.IntRange(1, 256), default=16, show_default=True, help="Of --train.")
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(16, 8192),
    help="Input of every network in pixels. Without it: the size that the baseline was trained at; --quick: 256.",
)
@click.option(
    "--variants", metavar="NAME,...", callback=_read_variants, help="These and the baseline.  [default: all]"
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice([p.value for p in Precision]),
    help="May be repeated. Without it: all that can be built.",
)
@click.option("--target", "targets", multiple=True, type=click.Choice(tuple(SESSIONS)), help="Likewise.")
@click.option("--images", type=click.IntRange(2), help="At most so many test images.")
@click.option("--partial", is_flag=True, help="ChestX-ray14: leave out images without a file or a mask.")
@click.option(
    "--seeds",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="JSON with figures of several trainings of each variant on the same data.",
)
@click.option("--seconds", type=click.FloatRange(1), help="Sample times no longer.  [default: 600; --quick: 90]")
@click.option("--overwrite", is_flag=True, help="Begin anew in a finished output; trained weights stay.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def reproduce(output: Path, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Measure the article's table on this device, and answer its claims.

    Every variant is evaluated on the test split, built, and timed in turns with the others. The output gets table.md,
    table.csv, table.json, page.html and timing.json with every sample. A run that was stopped goes on where it was
    when the same command is given again.
    """
    from unetx_bench.reproduce.plan import ReproduceOptions
    from unetx_bench.reproduce.publish import TABLE_NAME, publish
    from unetx_bench.reproduce.run import reproduce as run_reproduction

    require("jinja2", purpose="rendering the page of a reproduction")  # now, and not after an hour
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise UnetxError(f"--output {output}: {path} is a file, expected a folder or a new name: choose another")
    if (output / TABLE_NAME).exists() and not overwrite:
        raise UnetxError(f"{output} holds a finished table: choose another output, or pass --overwrite")
    options = ReproduceOptions(
        output=output,
        overwrite=overwrite,
        precisions=tuple(Precision(name) for name in given.pop("precisions")),
        **given,
    )
    result, run = run_reproduction(options, note)
    publish(output, result, run)
    if as_json:
        echo_json(result)
    else:
        _print(result, output)


def _print(result: Reproduction, output: Path) -> None:
    for claim in result.claims:
        click.echo(f"{claim.id} {claim.verdict}: {claim.reason}")
    click.echo(f"page   {output / 'page.html'}")
    click.echo(f"table  {output / 'table.md'}")
