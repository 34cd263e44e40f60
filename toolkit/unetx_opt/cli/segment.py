"""`unetx-opt segment`: radiographs in, masks and overlays out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt.cli.output import echo_json, note, progress
from unetx_opt.cli.trust import public_key_option, read_trusted_keys
from unetx_opt.errors import UnetxError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.dicom.sandbox import DicomReader
    from unetx_opt.runtime import Segmenter

__all__ = ["segment"]


@dataclass(frozen=True, slots=True)
class _Job:
    """One input and the stem of its outputs."""

    source: Path
    stem: str


@dataclass(frozen=True, slots=True)
class _Radiograph:
    """What the engine needs of an input, whatever kind of file it was."""

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    pixel_aspect: float | None
    read_ms: float


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
@click.option("--target", metavar="NAME", help="Use the engine of this target and no other.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one inference.")
@public_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def segment(bundle: Path, inputs: tuple[Path, ...], output: Path, *, as_json: bool, **opening: Any) -> None:
    """Segment radiographs (PNG or DICOM files, or folders of them) with a BUNDLE.

    Each input NAME gives NAME.mask.png and NAME.overlay.png in the output folder. An input that cannot be
    segmented is reported and does not stop the others; the exit code is then 1.
    """
    from unetx_opt.runtime import open_bundle

    jobs = tuple(_name_jobs(_expand(inputs)))
    _refuse_replaced_inputs(jobs, output)
    trusted = read_trusted_keys(opening.pop("public_keys"))
    with open_bundle(bundle, **opening, trusted=trusted) as segmenter:
        _note_engine(segmenter)
        results = list(_segment_all(segmenter, jobs, output, quiet=as_json))
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


def _output_paths(job: _Job, output: Path) -> tuple[Path, Path]:
    return output / f"{job.stem}.mask.png", output / f"{job.stem}.overlay.png"


def _refuse_replaced_inputs(jobs: tuple[_Job, ...], output: Path) -> None:
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        for path in _output_paths(job, output):
            if path.resolve() in sources:
                raise UnetxError(
                    f"{path} is an input, and the result of {job.source} would replace it: choose another --output"
                )


def _note_engine(segmenter: Segmenter) -> None:
    note(f"engine: {segmenter.target}, computes {segmenter.compute_dtype}")
    for engine, reason in segmenter.passed_over.items():
        note(f"not used: {engine}: {reason}")


def _segment_all(
    segmenter: Segmenter, jobs: tuple[_Job, ...], output: Path, *, quiet: bool
) -> Iterator[dict[str, Any]]:
    from unetx_opt.dicom.sandbox import DicomReader

    first_run = True
    with DicomReader() as reader, progress(enabled=len(jobs) > 1 and not quiet) as display:
        bar = display.add_task("segmenting", total=len(jobs))
        for job in jobs:
            try:
                result = _segment_one(segmenter, _read(job.source, reader), job, output) | {"first_run": first_run}
                first_run = False
                if not quiet:
                    click.echo(_describe(result))
            except UnetxError as error:
                note(f"error: {error}")
                result = {"input": job.source, "error": str(error)}
            display.advance(bar)
            yield result


def _segment_one(segmenter: Segmenter, image: _Radiograph, job: _Job, output: Path) -> dict[str, Any]:
    from unetx_opt.imaging.files import write_mask_png, write_overlay_png

    segmentation = segmenter.segment(image.pixels, image.spacing_mm, pixel_aspect=image.pixel_aspect)
    segmented = time.perf_counter()
    mask, overlay = _output_paths(job, output)
    write_mask_png(mask, segmentation.labels, num_classes=segmentation.logits_khw.shape[0])
    write_overlay_png(overlay, image.pixels, segmentation.labels)
    written = time.perf_counter()
    return {
        "input": job.source,
        "error": None,
        "mask": mask,
        "overlay": overlay,
        "height": image.pixels.shape[0],
        "width": image.pixels.shape[1],
        "spacing_mm": image.spacing_mm,
        "areas_px": segmentation.areas_px,
        "areas_mm2": segmentation.areas_mm2,
        "timings_ms": {
            "read": image.read_ms,
            **segmentation.timings_ms,
            "write": (written - segmented) * 1e3,
        },
    }


def _read(path: Path, reader: DicomReader) -> _Radiograph:
    from unetx_opt.dicom.read import is_dicom
    from unetx_opt.imaging.files import read_image

    started = time.perf_counter()
    image = reader.read(path) if is_dicom(path) else read_image(path)
    read_ms = (time.perf_counter() - started) * 1e3
    return _Radiograph(image.pixels, image.spacing_mm, getattr(image, "pixel_aspect", None), read_ms)


def _describe(result: Mapping[str, Any]) -> str:
    areas = (
        [f"{name} {pixels} px" for name, pixels in result["areas_px"].items()]
        if result["areas_mm2"] is None
        else [f"{name} {area:.0f} mm2" for name, area in result["areas_mm2"].items()]
    )
    warm_up = ", first run" if result["first_run"] else ""
    return f"{result['mask']}: {', '.join(areas)}; {result['timings_ms']['total']:.1f} ms{warm_up}"
