"""The table of results, and all that were asked for as the bytes of files."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_opt.dicom.results.gsps import build_gsps
from unetx_opt.dicom.results.references import finish_result, prepare_source, silence_libraries
from unetx_opt.dicom.results.request import Algorithm, Findings, ResultOptions, ResultRequest
from unetx_opt.dicom.results.sc import build_sc
from unetx_opt.dicom.results.seg import build_seg
from unetx_opt.dicom.results.sr import build_sr
from unetx_opt.errors import ImageError, SpecError, UnetxError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["RESULTS", "ResultKind", "encode_results"]

_Built = Mapping[str, "Dataset"]


@dataclass(frozen=True, slots=True)
class ResultKind:
    """One kind of DICOM result.

    Attributes
    ----------
    title : str
        As a person calls it.
    build : callable
        f(request, what was built before) -> data set.
    """

    title: str
    build: Callable[[ResultRequest, _Built], Dataset]


#: Name -> row, in the order in which they are built: a report refers to the segmentation.
RESULTS: Final[Mapping[str, ResultKind]] = MappingProxyType(
    {
        "seg": ResultKind("Segmentation", lambda request, built: build_seg(request)),
        "sc": ResultKind("Secondary Capture", lambda request, built: build_sc(request)),
        "gsps": ResultKind("Presentation State", lambda request, built: build_gsps(request)),
        "sr": ResultKind("Structured Report", lambda request, built: build_sr(request, built.get("seg"))),
    }
)


def encode_results(
    names: Iterable[str],
    source_json: str,
    findings: Findings,
    algorithm: Algorithm,
    options: ResultOptions | None = None,
) -> Mapping[str, bytes]:
    """Make DICOM files of what was found in a radiograph.

    Parameters
    ----------
    names : iterable of str
        Keys of `RESULTS`.
    source_json : str
        What `unetx_opt.dicom.read` gives of the source's header.
    findings : Findings
        On the grid of the source.
    algorithm : Algorithm
        What made them.
    options : ResultOptions, optional
        How they are written.

    Returns
    -------
    mapping of str to bytes
        Name -> a whole DICOM file.

    Raises
    ------
    SpecError
        A name is unknown, or the findings lack what one needs.
    ImageError
        The source has no identity that results could refer to, or does not fit the findings. The message has no
        value of its header.
    MissingPackageError
        pydicom or highdicom is not installed.
    """
    wanted = set(names)
    if unknown := wanted - set(RESULTS):
        raise SpecError(f"unknown result {min(unknown)!r}, expected one of {', '.join(RESULTS)}")
    options = options or ResultOptions()
    salt = "" if options.stable_uids else uuid.uuid4().hex
    request = ResultRequest(prepare_source(source_json), findings, algorithm, options, salt)
    built: dict[str, Dataset] = {}
    with silence_libraries():
        for name, kind in RESULTS.items():
            if name in wanted:
                built[name] = _build(kind, request, built)
        return MappingProxyType({name: _encode(dataset) for name, dataset in built.items()})


def _build(kind: ResultKind, request: ResultRequest, built: _Built) -> Dataset:
    try:
        return finish_result(kind.build(request, built), request)
    except UnetxError:
        raise
    except Exception as error:
        # highdicom raises nearly everything on headers that it does not expect, and quotes them.
        raise ImageError(f"no {kind.title} can be made of its header ({type(error).__name__}): ask for PNG") from None


def _encode(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
