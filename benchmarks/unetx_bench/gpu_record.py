"""The record on a GPU, by one command: every variant and precision at full width, with PyTorch's peers.

    python -m unetx_bench.gpu_record -o benchmarks/results/

makes width 64 at 512 x 512 px, FP32, FP16 and INT8, for ONNX Runtime with CUDA and TensorRT (for RTX or not), and
writes one report for each variant, all its precisions in one run, and ``gpu-record.json``, which names all that did
not run and why.
The weights are random: latency does not depend on them; accuracy is neither measured nor claimed, and the engines are
not compared with PyTorch while they are built.

All bundles are built first, several at once, so that nothing else runs while one is timed. Each is built, and each
variant timed, in a process of its own: what hangs, crashes or breaks the device's context takes nothing else with it.
A variant whose run fails is timed once more without peers. Variants with a network of their own come first;
`--deadline` ends the run, and the record, which is on the disk after every variant, names what was not reached.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import itertools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from unetx_bench.environment import capture_environment
from unetx_bench.errors import MeasurementError
from unetx_bench.gpu_record_build import BuildOrder, build_apart
from unetx_bench.gpu_record_measure import MeasureOrder, measure_apart
from unetx_bench.peers import PEERS
from unetx_bench.report import REPORT_NAME
from unetx_exporters.targets import TARGETS
from unetx_opt.files import scratch_directory, staged_directory, write_file
from unetx_opt.models.variants import VARIANTS, variant_spec
from unetx_opt.optional import require
from unetx_opt.specs import Precision

__all__ = ["RecordRequest", "main", "make_record"]

_TARGETS: Final = ("onnxruntime-cuda", "tensorrt-rtx", "tensorrt")
_PEERS: Final = tuple(name for name in PEERS if "cuda" in name)

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RecordRequest:
    """What the record covers.

    Attributes
    ----------
    variants, precisions, targets, peers : tuple of str
        Names.
    width, size_px : int
        Of the network, and of its input.
    seconds : float
        Most time of one measurement.
    jobs : int
        Bundles that are built at once.
    build_seconds : float
        Most time of building one.
    variant_seconds : float
        Most time of timing one variant.
    deadline_seconds : float
        From the start; no measurement goes on later.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    precisions: tuple[str, ...] = tuple(precision.value for precision in Precision)
    targets: tuple[str, ...] = _TARGETS
    peers: tuple[str, ...] = _PEERS
    width: int = 64
    size_px: int = 512
    seconds: float = 60.0
    jobs: int = 4
    build_seconds: float = 900.0
    variant_seconds: float = 3600.0
    deadline_seconds: float = 86400.0


@click.command()
@click.option("--variant", "variants", multiple=True, type=click.Choice(tuple(VARIANTS)), help="[all]")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice([p.value for p in Precision]), help="[all]"
)
@click.option("--target", "targets", multiple=True, type=click.Choice(tuple(TARGETS)), help="[all of the GPU]")
@click.option("--peer", "peers", multiple=True, type=click.Choice(tuple(PEERS)), help="[all of the GPU]")
@click.option("--width", type=click.IntRange(1, 256), default=64, show_default=True)
@click.option("--size", "size_px", type=click.IntRange(32), default=512, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Of one measurement.")
@click.option("--jobs", type=click.IntRange(1), default=4, show_default=True, help="Bundles built at once.")
@click.option("--build-seconds", type=click.FloatRange(1), default=900.0, show_default=True, help="Of one bundle.")
@click.option("--variant-seconds", type=click.FloatRange(1), default=3600.0, show_default=True, help="Of timing one.")
@click.option("--deadline", "deadline_seconds", type=click.FloatRange(1), default=86400.0, help="Of the whole run.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Parent folder."
)
def main(output: Path, **given: Any) -> None:
    """Make the record in a new folder of the output folder."""
    request = RecordRequest(**{name: value for name, value in given.items() if value != ()})
    folder = output / f"gpu-record-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}"
    record = make_record(request, folder, lambda text: click.echo(text, err=True))
    for name, reason in record["did_not_run"].items():
        click.echo(f"did not run: {name}: {reason}")
    click.echo(f"{len(record['reports'])} reports: {folder.name}")


def make_record(request: RecordRequest, folder: Path, note: Note = lambda text: None) -> dict[str, Any]:
    """Build and measure everything; what fails is named and stops nothing.

    Parameters
    ----------
    request : RecordRequest
        What the record covers.
    folder : pathlib.Path
        Shall appear, whole or not at all.
    note : callable
        Takes a line of progress.

    Returns
    -------
    dict
        The content of ``gpu-record.json``.
    """
    begun = time.monotonic()
    record: dict[str, Any] = {
        "schema_version": 1,
        "what": "latency with random weights; accuracy is neither measured nor claimed",
        "request": asdict(request),
        "environment": asdict(capture_environment()),
        "reports": {},
        "did_not_run": {},
    }
    with staged_directory(folder) as staging, scratch_directory(folder.parent / f"{folder.name}.work") as scratch:
        checkpoints = {variant: _make_checkpoint(request, variant, scratch) for variant in request.variants}
        bundles, failed = _build_all(request, checkpoints, scratch, note)
        record["did_not_run"] |= failed
        for variant in _new_networks_first(request):
            output = scratch / f"{variant}-report"
            left_s = begun + request.deadline_seconds - time.monotonic()
            try:
                found = _measure_variant(request, bundles[variant], checkpoints[variant], output, left_s)
            except MeasurementError as error:
                record["did_not_run"][variant] = str(error)
                note(f"not measured: {variant}: {error}")
            else:
                record["did_not_run"] |= {f"{variant}: {name}": reason for name, reason in found.items()}
                record["reports"][variant] = f"{variant}/{REPORT_NAME}"
                shutil.move(output, staging / variant)
                note(f"measured {variant}")
            write_file(staging / "gpu-record.json", (json.dumps(record, indent=1) + "\n").encode("ascii"))
    return record


def _new_networks_first(request: RecordRequest) -> list[str]:
    """Order the variants: where time runs out, it is in those whose network another one has, too."""
    specs: list[Any] = []
    repeated: dict[str, bool] = {}
    for variant in request.variants:
        spec = variant_spec(variant, width=request.width)
        repeated[variant] = spec in specs
        specs.append(spec)
    return sorted(request.variants, key=lambda variant: repeated[variant])


def _build_all(
    request: RecordRequest, checkpoints: dict[str, Path], scratch: Path, note: Note
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Build every precision for every target apart; gives the bundles of each variant, and what was not built."""
    orders = []
    failed: dict[str, str] = {}
    for variant, precision, target in itertools.product(checkpoints, request.precisions, request.targets):
        if precision == Precision.INT8 and TARGETS[target].scheme is None:
            failed[f"{variant}-{precision}-{target}"] = f"{target} has no 8-bit convolution"
            continue
        paths = (str(checkpoints[variant]), str(scratch / f"{variant}-{precision}-{target}"))
        orders.append(BuildOrder(variant, precision, target, *paths, request.size_px))
    bundles: dict[str, list[Path]] = {variant: [] for variant in checkpoints}
    with concurrent.futures.ThreadPoolExecutor(request.jobs) as pool:
        runs = [(order, pool.submit(build_apart, order, request.build_seconds)) for order in orders]
        for order, run in runs:
            try:
                run.result()
            except MeasurementError as error:
                failed[order.name] = str(error)
                note(f"not built: {order.name}: {error}")
            else:
                bundles[order.variant].append(Path(order.output))
                note(f"built {order.name}")
    return bundles, failed


def _measure_variant(
    request: RecordRequest, bundles: list[Path], checkpoint: Path, output: Path, left_s: float
) -> dict[str, str]:
    """Time all bundles of a variant in one run, if need be once more without peers; gives what did not run."""
    if not bundles:
        raise MeasurementError("none of its bundles could be built")
    late = f"the time was up: {request.deadline_seconds:.0f} s"
    if left_s <= 0.0:
        raise MeasurementError(late)
    begun = time.monotonic()
    paths = tuple(str(bundle) for bundle in bundles)
    order = MeasureOrder(paths, str(checkpoint), str(output), request.peers, request.seconds)
    try:
        return measure_apart(order, min(request.variant_seconds, left_s))
    except MeasurementError as error:
        left_s -= time.monotonic() - begun
        if not request.peers or left_s <= 0.0:
            raise MeasurementError(late if left_s <= 0.0 else str(error)) from error
        shutil.rmtree(output, ignore_errors=True)
        alone = dataclasses.replace(order, peers=())
        return {"peers": str(error)} | measure_apart(alone, min(request.variant_seconds, left_s))


def _make_checkpoint(request: RecordRequest, variant: str, scratch: Path) -> Path:
    from unetx_opt.imaging.dense_crf import CrfParameters
    from unetx_opt.imaging.refinement import crf_step_parameters
    from unetx_opt.models.checkpoint import write_checkpoint
    from unetx_opt.models.postprocess import METADATA_KEY, StepRecord, step_metadata
    from unetx_opt.models.unet import build_model
    from unetx_opt.models.variants import get_variant

    path = scratch / f"{variant}.safetensors"
    require("torch", purpose="making the models of the record").manual_seed(0)
    step = get_variant(variant).postprocess
    # The step's own defaults: its time does not depend on how well its parameters fit.
    parameters = {"dense_crf": crf_step_parameters(CrfParameters(), request.size_px)}
    metadata = {} if step is None else {METADATA_KEY: step_metadata(StepRecord(step, parameters[step]))}
    write_checkpoint(path, build_model(variant_spec(variant, width=request.width)), variant, metadata)
    return path


if __name__ == "__main__":
    main()
