"""The engines of bundles as contenders, by three clocks: engine only, host to host, and file to file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.errors import MeasurementError
from unetx_bench.measurement import Contender
from unetx_opt.errors import EngineError, MissingPackageError
from unetx_opt.runtime.host import probe_host
from unetx_opt.runtime.opening import open_refiner
from unetx_opt.runtime.segmenter import Segmenter
from unetx_opt.runtime.sessions.base import OpenRequest, Session
from unetx_opt.runtime.sessions.table import SESSIONS, label_engine
from unetx_opt.specs import EngineRecord

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest
    from unetx_opt.bundle.open import Bundle

__all__ = [
    "CLOCK_SPANS",
    "OpenedEngine",
    "OpenedEngines",
    "TimedImage",
    "check_logits",
    "engine_contender",
    "engine_names",
    "open_engines",
    "span_contenders",
]

#: What lies inside the clock -> in words.
CLOCK_SPANS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine": "float32 (1, C, H, W) array in host memory to logits in host memory, copies to a device included",
        "host": "grey values of the image in host memory to its mask: preparation, engine, mask on the image's grid",
        "file": "image file to mask file on the disk, written, synced and renamed",
    }
)
_NOT_ASKED: Final = "not asked for"
_UNKNOWN_TARGET: Final = "this version knows no such target: update unetx-opt"


@dataclass(frozen=True, slots=True)
class TimedImage:
    """The image that latencies are measured with.

    Attributes
    ----------
    name : str
        For the record.
    path : pathlib.Path
        A grey PNG.
    mask_path : pathlib.Path
        Where the mask of the file clock is written, again and again.
    """

    name: str
    path: Path
    mask_path: Path


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """A loaded engine.

    Attributes
    ----------
    name : str
        Unique in a run: the bundle's name, and the engine's within it.
    bundle : str
        Name of the bundle.
    manifest : Manifest
        Of the bundle.
    record : EngineRecord
        Of the engine.
    session : Session
        Logits for prepared images.
    segmenter : Segmenter
        Masks for images; it owns `session`.
    load_ms : float
        From verified bytes to a loaded engine.
    """

    name: str
    bundle: str
    manifest: Manifest
    record: EngineRecord
    session: Session
    segmenter: Segmenter
    load_ms: float


@dataclass(frozen=True, slots=True)
class OpenedEngines:
    """The engines of a bundle on this machine.

    Attributes
    ----------
    name : str
        What the bundle is called.
    manifest : Manifest
        Of the bundle.
    manifest_sha256 : str
        Identifies the bundle.
    read : callable
        File name -> verified bytes; works as long as the context.
    engines : tuple of OpenedEngine
        Those that run here.
    why_not : mapping of str to str
        The others, by name, with their reasons; targets that were not built are among them.
    """

    name: str
    manifest: Manifest
    manifest_sha256: str
    read: Callable[[str], bytes]
    engines: tuple[OpenedEngine, ...]
    why_not: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def open_engines(path: Path, name: str | None = None, threads: int | None = None) -> Iterator[OpenedEngines]:
    """Verify a bundle and load every engine of it that runs here.

    Parameters
    ----------
    path : pathlib.Path
        A bundle.
    name : str, optional
        What to call it; its file name otherwise.
    threads : int, optional
        CPU threads of one inference; None leaves it to the engine.

    Yields
    ------
    OpenedEngines
        Closed with the context.

    Raises
    ------
    BundleError
        The bundle is incomplete or altered.
    """
    from unetx_opt.bundle.open import open_verified

    title = name or path.resolve().name.removesuffix(".unetx")
    with open_verified(path) as bundle, contextlib.ExitStack() as stack:
        records = tuple(engine.record for engine in bundle.manifest.engines)
        host, opened = probe_host(), []
        skipped = [row for row in bundle.manifest.skipped if row.reason != _NOT_ASKED]
        why_not = {f"{title} {row.target}": f"not built: {row.reason}" for row in skipped}
        for record, short in zip(records, engine_names(records), strict=True):
            label = f"{title} {short}"
            row = SESSIONS.get(record.target)
            reason = _UNKNOWN_TARGET if row is None else row.why_not(host, record)
            if reason is None:
                try:
                    engine = _open(bundle, record, label, title, threads)
                    stack.callback(engine.segmenter.close)
                    opened.append(engine)
                except (EngineError, MissingPackageError) as error:
                    reason = str(error)
            if reason is not None:
                why_not[label] = reason
        yield OpenedEngines(
            title, bundle.manifest, bundle.manifest_sha256, bundle.read, tuple(opened), MappingProxyType(why_not)
        )


def engine_names(records: Sequence[EngineRecord]) -> tuple[str, ...]:
    """Name the engines of a bundle: by target, and by the least that tells apart those of one target.

    That is the settings in which they differ ("openvino-cpu bf16"), or what they were built for, or their files.
    """
    return tuple(_engine_name(record, [r for r in records if r.target == record.target]) for record in records)


def _engine_name(record: EngineRecord, siblings: Sequence[EngineRecord]) -> str:
    if len(siblings) == 1:
        return record.target
    for words in (_differing_settings, _capabilities):
        marks = [words(other, siblings) for other in siblings]
        if len(set(marks)) == len(siblings):
            return " ".join((record.target, *words(record, siblings)))
    return label_engine(record, siblings)


def _differing_settings(record: EngineRecord, siblings: Sequence[EngineRecord]) -> tuple[str, ...]:
    rows = sorted(record.settings.items())
    return tuple(value for key, value in rows if any(other.settings.get(key) != value for other in siblings))


def _capabilities(record: EngineRecord, _: Sequence[EngineRecord]) -> tuple[str, ...]:
    return tuple(f"sm{name.replace('.', '')}" for name in record.compute_capabilities)


def _open(bundle: Bundle, record: EngineRecord, label: str, title: str, threads: int | None) -> OpenedEngine:
    files = {name: bundle.read(name) for name in record.files}
    start = time.perf_counter()
    session = SESSIONS[record.target].open(OpenRequest(record, files.__getitem__, threads))
    load_ms = (time.perf_counter() - start) * 1e3
    if session.compute_dtype != record.compute_dtype:
        session.close()
        raise EngineError(
            f"{label} computes {session.compute_dtype} here, its accuracy was measured in {record.compute_dtype}"
        )
    manifest = bundle.manifest
    names = tuple(row.name for row in manifest.labels)
    segmenter = Segmenter(session, record, manifest.input, names, None, open_refiner(manifest))
    return OpenedEngine(label, title, manifest, record, session, segmenter, load_ms)


def engine_contender(
    name: str, infer: Callable[[NDArray[np.float32]], NDArray[np.float32]], image_nchw: NDArray[np.float32]
) -> Contender:
    """Make a contender of anything that gives logits for a prepared image; NaN and Inf are refused."""
    return Contender(name, lambda: infer(image_nchw), check_logits)


def span_contenders(engine: OpenedEngine, image: TimedImage, spans: Sequence[str]) -> dict[str, Contender]:
    """Make the contenders of an engine.

    Parameters
    ----------
    engine : OpenedEngine
        The engine.
    image : TimedImage
        What it segments.
    spans : sequence of str
        Keys of `CLOCK_SPANS`.

    Returns
    -------
    dict of str to Contender
        Span -> contender; its name is the engine's and the span.

    Raises
    ------
    MeasurementError
        A span is unknown.
    """
    from unetx_opt.imaging.files import read_image, write_mask_png
    from unetx_opt.imaging.preprocess import prepare_image

    source, segmenter = read_image(image.path), engine.segmenter
    image_nchw = prepare_image(source.pixels, segmenter.contract, source.spacing_mm)[0][np.newaxis]

    def segment_file() -> object:
        read = read_image(image.path)
        found = segmenter.segment(read.pixels, read.spacing_mm)
        write_mask_png(image.mask_path, found.labels, num_classes=found.logits_khw.shape[0])
        return found

    calls: dict[str, tuple[Callable[[], object], Callable[[object], str | None]]] = {
        "engine": (lambda: engine.session.infer(image_nchw), check_logits),
        "host": (lambda: segmenter.segment(source.pixels, source.spacing_mm), _check_mask(source.pixels.shape)),
        "file": (segment_file, _check_mask(source.pixels.shape)),
    }
    unknown = sorted(set(spans) - set(calls))
    if unknown:
        raise MeasurementError(f"unknown clock span {unknown[0]!r}, expected one of {', '.join(calls)}")
    return {span: Contender(f"{engine.name} [{span}]", *calls[span]) for span in spans}


def check_logits(result: object) -> str | None:
    """Say what is wrong with an engine's logits, if anything is."""
    if not isinstance(result, np.ndarray) or result.ndim != 4:
        return f"it gave {type(result).__name__}, expected logits (N, K, H, W)"
    unusable = int(np.count_nonzero(~np.isfinite(result)))
    return f"{unusable} of {result.size} logits are NaN or infinite" if unusable else None


def _check_mask(shape: tuple[int, ...]) -> Callable[[Any], str | None]:
    def check(result: Any) -> str | None:
        if result.labels.shape != shape:
            return f"its mask is {result.labels.shape}, expected {shape} as the image"
        return None

    return check
