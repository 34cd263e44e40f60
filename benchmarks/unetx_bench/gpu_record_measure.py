"""One variant of the GPU record, timed in a process of its own: a broken device context ends with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from unetx_bench.apart import run_apart
from unetx_opt.errors import UnetxError
from unetx_opt.files import write_file

__all__ = ["MeasureOrder", "measure_apart"]

#: Beside the report: what did not run, and why.
_NOT_MEASURED_SUFFIX = "-not-measured.json"


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    """All bundles of one variant, in one run.

    Attributes
    ----------
    bundles : tuple of str
        Their paths.
    checkpoint : str
        Path of the weights, for the peers.
    output : str
        Folder of the report that shall appear.
    peers : tuple of str
        Names; may be empty.
    seconds : float
        Most time of one measurement.
    """

    bundles: tuple[str, ...]
    checkpoint: str
    output: str
    peers: tuple[str, ...]
    seconds: float


def measure_apart(order: MeasureOrder, limit_s: float) -> dict[str, str]:
    """Measure in another process and wait for it.

    Returns
    -------
    dict of str to str
        What did not run to the reason.

    Raises
    ------
    MeasurementError
        It failed, with its last line, was killed, or took longer than `limit_s` seconds.
    """
    run_apart("unetx_bench.gpu_record_measure", asdict(order), limit_s, "measured")
    reasons: dict[str, str] = json.loads(_reasons_path(order).read_text(encoding="ascii"))
    return reasons


def _reasons_path(order: MeasureOrder) -> Path:
    return Path(f"{order.output}{_NOT_MEASURED_SUFFIX}")


def _measure(order: MeasureOrder) -> None:
    from unetx_bench.benchmark import run_benchmark
    from unetx_bench.measurement import MeasureOptions
    from unetx_bench.request import BenchRequest

    bundles = tuple(Path(bundle) for bundle in order.bundles)
    options = MeasureOptions(maximum_seconds=order.seconds)
    asked = BenchRequest(
        bundles, Path(order.output), options, (Path(order.checkpoint),), tuple(order.peers), images=0
    )
    report = run_benchmark(asked, lambda text: None)
    # Each bundle was built for one target: that it lacks the others is no finding.
    reasons = {name: reason for name, reason in report.not_measured.items() if not reason.startswith("not built: ")}
    write_file(_reasons_path(order), json.dumps(reasons).encode("ascii"))


@click.command()
@click.argument("order")
def main(order: str) -> None:
    """Measure what ORDER, in JSON, says."""
    try:
        _measure(MeasureOrder(**json.loads(order)))
    except UnetxError as error:
        raise click.ClickException(" ".join(str(error).split())) from error


if __name__ == "__main__":
    main()
