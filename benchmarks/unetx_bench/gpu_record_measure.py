"""One variant of the GPU record, timed in a process of its own: a broken device context ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from unetx_bench.errors import MeasurementError
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
    command = [sys.executable, "-m", "unetx_bench.gpu_record_measure", json.dumps(asdict(order))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"not measured within {limit_s:.0f} s") from error
    if done.returncode < 0:
        raise MeasurementError(f"its process was ended by signal {-done.returncode}")
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise MeasurementError(" ".join(last.split())[:500])
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
