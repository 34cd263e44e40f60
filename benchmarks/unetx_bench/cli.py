"""The command `unetx-opt bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from unetx_bench.report import Report

__all__ = ["bench"]


@click.command("bench")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), help="Data folder for drift.  [phantoms]")
@click.option("--split", default="test", show_default=True, help="Split of --data.")
@click.option("--images", type=click.IntRange(0), default=40, show_default=True, help="Most images for drift.")
@click.option(
    "--gate", type=click.Choice(["strict", "standard"]), default="strict", show_default=True, help="For drift."
)
@click.option("--peer", "peers", multiple=True, metavar="NAME", help="Compare with this peer; may be repeated.")
@click.option("--all-peers", is_flag=True, help="Compare with every peer; those that do not run are listed.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Weights of a bundle, found by hash; reference checkpoints are known.",
)
@click.option("--span", "spans", multiple=True, type=click.Choice(("engine", "host", "file")), help="Clock.  [all]")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Images in a call of an engine.  [1]")
@click.option("--seconds", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Most time for samples.")
@click.option("--half-width", type=click.FloatRange(1e-4, 0.5), default=0.01, show_default=True, help="Stop at this.")
@click.option("--idle-gap", type=click.FloatRange(0), default=0.0, show_default=True, help="Pause before calls, s.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one inference.")
@click.option("--cpu", "cpus", multiple=True, type=click.IntRange(0), help="Stay on this processor; may be repeated.")
@click.option("--attempts", type=click.IntRange(1), default=2, show_default=True, help="Passes while disturbed.")
@click.option("--details/--no-details", default=True, show_default=True, help="First run, limits, profile, energy.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Of the worst images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of contenders.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder that shall appear.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def bench(**given: Any) -> None:
    """Measure latency and drift of every engine of BUNDLES on this machine, beside its peers.

    Writes report.json (the whole record), report.html (a page of it), latency.csv, samples.csv, summary.md and
    pictures/ into the output folder.
    All contenders take turns in one run; the run is marked where other programs disturbed it.
    """
    from unetx_bench.benchmark import run_benchmark
    from unetx_bench.measurement import MeasureOptions
    from unetx_bench.peers import PEERS
    from unetx_bench.request import BenchRequest
    from unetx_opt.cli.output import echo_json, note

    as_json = given.pop("as_json")
    measure = MeasureOptions(
        half_width=given.pop("half_width"),
        maximum_seconds=given.pop("seconds"),
        idle_gap_s=given.pop("idle_gap"),
        seed=given.pop("seed"),
    )
    peers = tuple(PEERS) if given.pop("all_peers") else given.pop("peers")
    given.pop("peers", None)
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PEERS)}", param_hint="--peer")
    given["spans"] = given["spans"] or ("engine", "host", "file")
    given["batches"] = given["batches"] or (1,)
    given["cpus"] = given["cpus"] or None
    report = run_benchmark(BenchRequest(measure=measure, peers=peers, **given), note)
    if as_json:
        echo_json(report)
    else:
        _print(report, given["output"])


def _print(report: Report, output: Path) -> None:
    for sentence in report.answer:
        click.echo(sentence)
    for row in report.latencies:
        median = row.median_ms
        text = "too few samples"
        if median is not None:
            text = f"{median.value:.4g} ms ({median.low:.4g} to {median.high:.4g})"
        click.echo(f"  {row.contender}: {text}")
    for name, reason in report.not_measured.items():
        click.echo(f"not measured: {name}: {reason}")
    click.echo(f"report: {output}")
