"""`unetx-opt segment`: radiographs in, masks, overlays and DICOM results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt.batch.outputs import (
    FILES,
    OUTPUTS,
    SEGMENTATION_KINDS,
    OutputPlan,
    read_radiograph,
    segment_radiograph,
)
from unetx_opt.batch.settings import BatchSettings
from unetx_opt.cli.output import echo_json, note, progress
from unetx_opt.cli.segment_batch import Distribution, segment_batch
from unetx_opt.cli.trust import public_key_option, read_trusted_keys
from unetx_opt.errors import UnetxError

if TYPE_CHECKING:
    from unetx_opt.runtime import Segmenter

__all__ = ["segment"]


@dataclass(frozen=True, slots=True)
class _Job:
    """One input and the stem of its outputs."""

    source: Path
    stem: str


def _split_formats(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    names = dict.fromkeys(name.strip().lower() for value in values for name in value.split(","))
    for name in names:
        if name not in OUTPUTS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(OUTPUTS)}.")
    return tuple(names)


@click.command("segment")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the masks and overlays.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("png",),
    show_default=True,
    callback=_split_formats,
    metavar="NAME",
    help=f"What is written, repeated or with commas: {', '.join(OUTPUTS)}. All but png need DICOM inputs.",
)
@click.option(
    "--seg-kind",
    default="BINARY",
    show_default=True,
    type=click.Choice(SEGMENTATION_KINDS, case_sensitive=False),
    help="Kind of DICOM segmentation.",
)
@click.option("--stable-uids", is_flag=True, help="The same input and bundle give results of the same UIDs.")
@click.option("--udi", metavar="TEXT", help="Unique Device Identifier that DICOM results carry.")
@click.option("--force", is_flag=True, help="Take DICOM images that are no single grey chest radiograph, too.")
@click.option("--target", metavar="NAME", help="Use the engine of this target and no other.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one inference.")
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=1024),
    metavar="N",
    help="Segment folders with all that is below them in so many processes.",
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier run with --workers left in DIR.")
@click.option(
    "--ray", "ray_address", metavar="ADDRESS", help="Put the workers on a Ray cluster (auto, local, HOST:PORT)."
)
@public_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def segment(bundle: Path, inputs: tuple[Path, ...], output: Path, *, as_json: bool, **options: Any) -> None:
    """Segment radiographs (PNG or DICOM files, or folders of them) with a BUNDLE.

    Each input NAME gives NAME.mask.png and NAME.overlay.png in the output folder, and NAME.seg.dcm, NAME.sc.dcm,
    NAME.gsps.dcm or NAME.sr.dcm where they are asked for. An input that cannot be segmented is reported and does not
    stop the others; the exit code is then 1.

    With --workers, --resume or --ray, folders are searched with all that is below them, which is repeated in the
    output folder; results.csv there says what became of each input. A run that was stopped goes on with --resume.
    """
    opening = {name: options.pop(name) for name in ("target", "threads")}
    distribution = {name: options.pop(name) for name in ("workers", "resume", "ray_address")}
    public_keys = options.pop("public_keys")
    plan = OutputPlan(output, **options)
    if any(distribution.values()):
        settings = BatchSettings(bundle.absolute(), plan, **opening, public_keys=public_keys)
        segment_batch(settings, inputs, Distribution(**distribution), as_json=as_json)
    else:
        _segment_here(bundle, inputs, plan, opening, public_keys, as_json=as_json)


def _segment_here(
    bundle: Path,
    inputs: tuple[Path, ...],
    plan: OutputPlan,
    opening: Mapping[str, Any],
    public_keys: tuple[Path, ...],
    *,
    as_json: bool,
) -> None:
    from unetx_opt.runtime import open_bundle

    trusted = read_trusted_keys(public_keys)
    jobs = tuple(_name_jobs(_expand(inputs)))
    _refuse_replaced_inputs(jobs, plan)
    with open_bundle(bundle, **opening, trusted=trusted) as segmenter:
        _note_engine(segmenter)
        results = list(_segment_all(segmenter, jobs, plan, quiet=as_json))
        header = {
            "bundle": bundle,
            "target": segmenter.target,
            "compute_dtype": segmenter.compute_dtype,
            "passed_over": segmenter.passed_over,
        }
    if as_json:
        echo_json({**header, "images": results})
    failed = [result for result in results if result["error"] is not None]
    if failed:
        raise UnetxError(
            f"{len(failed)} of {len(results)} inputs could not be segmented, beginning with {failed[0]['input']}: "
            "each is reported above"
        )


def _expand(inputs: Iterable[Path]) -> Iterator[Path]:
    """Put a folder's visible files in its place, in order of their names."""
    for path in inputs:
        if path.is_dir():
            yield from sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != ".")
        else:
            yield path


def _name_jobs(sources: Iterable[Path]) -> Iterator[_Job]:
    """Give each input a stem of its own: the second a.png becomes a-2, also where case is ignored."""
    taken: set[str] = set()
    for source in sources:
        stem, number = source.stem, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{source.stem}-{number}"
        taken.add(stem.casefold())
        yield _Job(source, stem)


def _refuse_replaced_inputs(jobs: tuple[_Job, ...], plan: OutputPlan) -> None:
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        for path in plan.paths(job.stem).values():
            if path.resolve() in sources:
                raise UnetxError(
                    f"{path} is an input, and the result of {job.source} would replace it: choose another --output"
                )


def _note_engine(segmenter: Segmenter) -> None:
    note(f"engine: {segmenter.target}, computes {segmenter.compute_dtype}")
    for engine, reason in segmenter.passed_over.items():
        note(f"not used: {engine}: {reason}")


def _segment_all(
    segmenter: Segmenter, jobs: tuple[_Job, ...], plan: OutputPlan, *, quiet: bool
) -> Iterator[dict[str, Any]]:
    from unetx_opt.dicom.sandbox import DicomReader

    first_run = True
    with DicomReader() as reader, progress(enabled=len(jobs) > 1 and not quiet) as display:
        bar = display.add_task("segmenting", total=len(jobs))
        for job in jobs:
            try:
                image = read_radiograph(job.source, reader, plan)
                for reason in image.notes:
                    note(f"forced: {job.source}: {reason}")
                facts, files = segment_radiograph(segmenter, image, plan, job.stem)
                paths = {key: file.path for key, file in files.items()}
                result = {"input": job.source, "error": None, **paths, **facts, "first_run": first_run}
                first_run = False
                if not quiet:
                    click.echo(_describe(result))
            except (UnetxError, OSError) as error:
                note(f"error: {error}")
                result = {"input": job.source, "error": str(error)}
            display.advance(bar)
            yield result


def _describe(result: Mapping[str, Any]) -> str:
    areas = (
        [f"{name} {pixels} px" for name, pixels in result["areas_px"].items()]
        if result["areas_mm2"] is None
        else [f"{name} {area:.0f} mm2" for name, area in result["areas_mm2"].items()]
    )
    warm_up = ", first run" if result["first_run"] else ""
    first = next(result[name] for name in FILES if name in result)
    return f"{first}: {', '.join(areas)}; {result['timings_ms']['total']:.1f} ms{warm_up}"
