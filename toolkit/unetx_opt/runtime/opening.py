"""Bundle to segmenter: verify, choose an engine, load it, and say which ones were passed over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unetx_opt.errors import BundleError, EngineError, MissingPackageError, SpecError
from unetx_opt.runtime.host import probe_host
from unetx_opt.runtime.segmenter import Segmenter
from unetx_opt.runtime.sessions.base import OpenRequest, OtherArithmeticError, Session
from unetx_opt.runtime.sessions.table import SESSIONS, describe_reasons, label_engine, rank_engines
from unetx_opt.specs import EngineRecord

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest
    from unetx_opt.bundle.open import Bundle
    from unetx_opt.bundle.sign import VerifyingKey
    from unetx_opt.imaging.refinement import Refiner

__all__ = ["open_bundle", "open_refiner"]


def open_bundle(
    path: Path | str,
    target: str | None = None,
    threads: int | None = None,
    *,
    trusted: Sequence[VerifyingKey] | None = None,
) -> Segmenter:
    """Open a bundle with the engine that this machine runs best.

    Parameters
    ----------
    path : pathlib.Path or str
        A bundle, verified before anything of it is used.
    target : str, optional
        Use the engine of this target and no other.
    threads : int, optional
        CPU threads of one inference, at least 1; None leaves it to the engine.
    trusted : sequence of VerifyingKey, optional
        Refuse every bundle that none of these keys signed, see `unetx_opt.bundle.sign.read_verifying_key`.

    Returns
    -------
    Segmenter
        Its `target` says which engine it is, its `passed_over` why each of the others is not.

    Raises
    ------
    BundleError
        The bundle is incomplete, altered, unsafe, not signed as demanded, or asks for a step that this version does
        not have.
    EngineError
        No engine of it runs here: every one is listed with its reason.
    MissingPackageError
        The step after its engine needs a package that is not installed; the message names the extra.
    """
    from unetx_opt.bundle.open import open_verified

    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}, expected at least 1")
    with open_verified(Path(path), trusted) as bundle:
        return _open_best(bundle, target, threads)


def _open_best(bundle: Bundle, target: str | None, threads: int | None) -> Segmenter:
    manifest = bundle.manifest
    refiner = open_refiner(manifest)
    engines = tuple(engine.record for engine in manifest.engines)
    choice = rank_engines(engines, probe_host(), target)
    reasons = dict(choice.reasons)
    for index, record in enumerate(choice.usable):
        try:
            session = _open_session(record, bundle, threads)
        except (EngineError, MissingPackageError) as error:
            # The next engine is as good as this one where the gate is concerned; the reason is not lost.
            reasons[label_engine(record, engines)] = str(error)
            continue
        for other in choice.usable[index + 1 :]:
            reasons[label_engine(other, engines)] = f"{label_engine(record, engines)} is preferred"
        names = tuple(label.name for label in manifest.labels)
        segmenter = Segmenter(session, record, manifest.input, names, reasons, refiner)
        segmenter.manifest_sha256 = bundle.manifest_sha256
        return segmenter
    raise EngineError(describe_reasons("no engine of this bundle runs on this machine", reasons))


def open_refiner(manifest: Manifest) -> Refiner | None:
    """Bind the step that a bundle's masks need; None where the mask follows from the engine's logits.

    Raises
    ------
    BundleError
        The step is unknown, or its parameters do not fit it.
    MissingPackageError
        The step needs a package that is not installed.
    """
    if manifest.postprocess is None:
        return None
    from unetx_opt.imaging.dense_crf import preferred_backend
    from unetx_opt.imaging.refinement import make_refiner

    step = manifest.postprocess
    try:
        return make_refiner(step.name, step.parameters, manifest.input, preferred_backend())
    except SpecError as error:
        raise BundleError(f"the bundle's masks cannot be made here: {error}") from error


def _open_session(record: EngineRecord, bundle: Bundle, threads: int | None) -> Session:
    session = SESSIONS[record.target].open(OpenRequest(record, bundle.read, threads))
    if session.compute_dtype != record.compute_dtype:
        session.close()
        raise OtherArithmeticError(
            f"{record.target} computes {session.compute_dtype} here, its record says {record.compute_dtype}"
        )
    return session
