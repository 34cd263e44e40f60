"""A corpus of bad DICOM files, and what the reader and a whole run make of it.

    python -m unetx_bench.bad_input -o bad-input --count 20000
    python -m unetx_bench.bad_input -o bad-input --count 20000 --bundle unet-fp32 --format png,seg,sc,gsps,sr
    python -m unetx_bench.bad_input -o one-file --only 4711

The record is `bad-input.json` in the output folder. Exits 3 where a file did what no file may do.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

import unetx_opt
from unetx_bench.bad_input.corpus import make_file
from unetx_bench.bad_input.reading import Reading, check_alive, peak_memory_mib, read_corpus, summarize
from unetx_bench.bad_input.service import segment_corpus, write_corpus
from unetx_opt.dicom.sandbox import DicomReader, ReaderLimits
from unetx_opt.files import write_file

__all__ = ["main"]

#: What reads the files, and is named in the record with its version.
_TOOLS: Final = ("pydicom", "pylibjpeg-openjpeg", "pyjpegls", "imagecodecs", "pillow", "numpy")


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--count", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=click.IntRange(min=0), help="Write this one file, and nothing else.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Segment the corpus with it, too.")
@click.option("--format", "formats", default="png,seg", show_default=True, help="What is then written.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1))
def main(output: Path, *, count: int, seed: int, only: int | None, **segmenting: Any) -> None:
    """Read COUNT damaged and hostile files in the sandbox, and record what became of each."""
    output.mkdir(parents=True, exist_ok=True)
    if only is not None:
        write_corpus([only], seed, output)
        click.echo(output / make_file(only, seed).name)
        return
    record = _read(output, count, seed)
    path, bundle = output / "bad-input.json", segmenting["bundle"]
    write_file(path, json.dumps(record, indent=1).encode())
    if bundle is not None:
        write_corpus(range(count), seed, output / "files")
        record["segment"] = segment_corpus(bundle, output, segmenting["formats"], segmenting["workers"])
        write_file(path, json.dumps(record, indent=1).encode())
    click.echo(json.dumps({key: record[key] for key in ("outcomes", "peak_rss_mib", "alive", "slowest")}, indent=1))
    faults = record["faults"] + record.get("segment", {}).get("faults", [])
    for fault in faults:
        click.echo(f"fault: {fault}", err=True)
    sys.exit(3 if faults or not record["alive"] else 0)


def _read(output: Path, count: int, seed: int) -> dict[str, Any]:
    limits = ReaderLimits()
    folder = output / "reading"
    folder.mkdir(exist_ok=True)
    with DicomReader(limits) as reader:
        peaks: list[float] = []
        readings = list(_watch(read_corpus(range(count), seed, folder, reader), reader, peaks, count))
        dead = check_alive(reader, folder)
    folder.rmdir()
    return {
        "version": unetx_opt.__version__,
        "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        "seed": seed,
        "timeout_s": limits.timeout_s,
        "memory_limit_mib": limits.memory_mib,
        "peak_rss_mib": round(max(peaks, default=0.0), 1),
        "alive": not dead,
        **summarize(readings),
    }


def _watch(readings: Iterator[Reading], reader: DicomReader, peaks: list[float], count: int) -> Iterator[Reading]:
    for number, reading in enumerate(readings, start=1):
        peak = peak_memory_mib(reader.process_id)
        if peak is not None:
            peaks.append(peak)
        if number % 1000 == 0:
            click.echo(f"{number} of {count} files", err=True)
        yield reading


if __name__ == "__main__":
    main()
