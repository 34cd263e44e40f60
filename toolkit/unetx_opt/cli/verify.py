"""`unetx-opt verify`: every byte of a bundle, and that its engines run here and agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from unetx_opt.cli.output import echo_json
from unetx_opt.cli.trust import public_key_option, read_trusted_keys
from unetx_opt.errors import BundleError, EngineError, ImageError, MissingPackageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unetx_opt.bundle.open import Bundle
    from unetx_opt.bundle.sign import VerifyingKey
    from unetx_opt.runtime.segmenter import Segmentation
    from unetx_opt.specs import EngineRecord

__all__ = ["verify"]

# Two engines of one checkpoint differ by the rounding of their arithmetic. More than this, as the mean absolute
# difference of probabilities over an image, is another network or an engine that computes wrongly.
_MAX_MEAN_DIFFERENCE: Final = 0.05
_PHANTOM_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class _EngineRun:
    """What one engine did with the phantom; `reason` says why it did not run."""

    target: str
    ran: bool
    compute_dtype: str
    reason: str | None = None
    foreground_px: int | None = None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """How far two engines are apart on the phantom."""

    first: str
    second: str
    mean_probability_difference: float
    differing_px: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """Everything that running the engines showed."""

    runs: tuple[_EngineRun, ...] = ()
    comparisons: tuple[_Comparison, ...] = ()
    preferred: str | None = None
    problems: tuple[str, ...] = ()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@public_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(bundle: Path, public_keys: tuple[Path, ...], as_json: bool) -> None:
    """Check every byte of BUNDLE against its manifest, and run its engines on a phantom.

    Engines that this machine cannot run are listed with the reason; at least one must run. The exit code is 1
    where anything is wrong.
    """
    from unetx_opt.bundle.check import check_bundle

    trusted = read_trusted_keys(public_keys)
    check = check_bundle(bundle, trusted)
    problems = list(check.problems)
    trial = _Trial() if problems else _try_engines(bundle, trusted)
    problems.extend(trial.problems)
    result = {
        "bundle": str(bundle),
        "ok": not problems,
        "kind": check.kind,
        "files": check.files,
        "size_bytes": check.size,
        "signature": None
        if check.signing_key_sha256 is None
        else {"key_sha256": check.signing_key_sha256, "proven": check.signature_proven},
        "problems": problems,
        "engines": [asdict(run) for run in trial.runs],
        "comparisons": [asdict(comparison) for comparison in trial.comparisons],
        "preferred": trial.preferred,
    }
    if as_json:
        echo_json(result)
    else:
        _print(result, trial)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        first = problems[0] if problems[0].startswith(str(bundle)) else f"{bundle}: {problems[0]}"
        raise BundleError(f"{first}{more}")


def _try_engines(path: Path, trusted: Sequence[VerifyingKey] | None) -> _Trial:
    from unetx_opt.bundle.open import open_verified
    from unetx_opt.runtime.host import probe_host
    from unetx_opt.runtime.opening import open_bundle
    from unetx_opt.runtime.sessions.table import describe_reasons, rank_engines

    with open_verified(path, trusted) as bundle:
        records = [engine.record for engine in bundle.manifest.engines]
        choice = rank_engines(records, probe_host())
        skipped = tuple(
            _EngineRun(name, ran=False, compute_dtype="", reason=why) for name, why in choice.reasons.items()
        )
        if not choice.usable:
            problem = describe_reasons("no engine of this bundle runs on this machine", choice.reasons)
            return _Trial(skipped, problems=(problem,))
        runs, comparisons, problems = _run_engines(bundle, choice.usable)
    preferred = None
    if not any(run.ran for run in runs):
        return _Trial((*runs, *skipped), problems=problems)
    try:
        with open_bundle(path, trusted=trusted) as segmenter:  # as `unetx-opt segment` opens it
            preferred = segmenter.target
    except (EngineError, MissingPackageError) as error:
        problems = (*problems, str(error))
    return _Trial((*runs, *skipped), comparisons, preferred, problems)


def _run_engines(
    bundle: Bundle, records: tuple[EngineRecord, ...]
) -> tuple[tuple[_EngineRun, ...], tuple[_Comparison, ...], tuple[str, ...]]:
    from unetx_opt.imaging.phantom import chest_phantom
    from unetx_opt.runtime.sessions.base import OtherArithmeticError

    image, _ = chest_phantom(_PHANTOM_SEED)
    runs: list[_EngineRun] = []
    problems: list[str] = []
    results: list[tuple[str, Segmentation]] = []
    for record in records:
        name = _name(record, records)
        try:
            segmentation = _run_engine(bundle, record, image)
        except (EngineError, ImageError, MissingPackageError) as error:
            runs.append(_EngineRun(name, ran=False, compute_dtype=record.compute_dtype, reason=str(error)))
            if not isinstance(error, OtherArithmeticError):
                problems.append(f"{name} does not run: {error}")
            continue
        results.append((name, segmentation))
        foreground_px = int((segmentation.labels > 0).sum())
        runs.append(_EngineRun(name, True, segmentation.compute_dtype, foreground_px=foreground_px))
    if not results and not problems:
        problems.append(f"no engine of this bundle runs on this machine: {runs[0].target}: {runs[0].reason}")
    comparisons = tuple(_compare(*pair) for pair in itertools.combinations(results, 2))
    return tuple(runs), comparisons, (*problems, *_disagreements(comparisons))


def _disagreements(comparisons: tuple[_Comparison, ...]) -> tuple[str, ...]:
    return tuple(
        f"{found.first} and {found.second} disagree: their probabilities differ by "
        f"{found.mean_probability_difference:.3f} on average, expected at most {_MAX_MEAN_DIFFERENCE}: build the "
        "bundle again"
        for found in comparisons
        if not found.mean_probability_difference <= _MAX_MEAN_DIFFERENCE
    )


def _run_engine(bundle: Bundle, record: EngineRecord, image: NDArray[np.uint16]) -> Segmentation:
    from unetx_opt.runtime.opening import open_refiner
    from unetx_opt.runtime.segmenter import Segmenter
    from unetx_opt.runtime.sessions.base import OpenRequest, OtherArithmeticError
    from unetx_opt.runtime.sessions.table import SESSIONS

    manifest = bundle.manifest
    names = tuple(label.name for label in manifest.labels)
    refiner = open_refiner(manifest)
    session = SESSIONS[record.target].open(OpenRequest(record, bundle.read))
    with Segmenter(session, record, manifest.input, names, refiner=refiner) as segmenter:
        if segmenter.compute_dtype != record.compute_dtype:
            raise OtherArithmeticError(
                f"it computes {segmenter.compute_dtype} on this machine, its record says {record.compute_dtype}"
            )
        segmentation = segmenter.segment(image)  # refuses logits that are not finite
    if segmentation.labels.shape != image.shape or int(segmentation.labels.max()) >= len(names):
        raise EngineError(
            f"its mask has the shape {segmentation.labels.shape} and values up to {segmentation.labels.max()}, "
            f"expected {image.shape} and values below {len(names)}"
        )
    return segmentation


def _name(record: EngineRecord, records: tuple[EngineRecord, ...]) -> str:
    if sum(other.target == record.target for other in records) == 1:
        return record.target
    settings = ", ".join(f"{key}={value}" for key, value in sorted(record.settings.items()))
    return f"{record.target} ({settings or record.files[0]})"


def _compare(first: tuple[str, Segmentation], second: tuple[str, Segmentation]) -> _Comparison:
    import numpy as np

    difference = np.abs(first[1].probabilities - second[1].probabilities)
    return _Comparison(
        first=first[0],
        second=second[0],
        mean_probability_difference=float(difference.mean(dtype=np.float64)),
        differing_px=int((first[1].labels != second[1].labels).sum()),
    )


def _describe_signature(signature: dict[str, Any] | None) -> str:
    if signature is None:
        return "none: the bytes are as they were written, by whom is not proven"
    key = signature["key_sha256"][:16]
    if signature["proven"]:
        return f"by the key {key}, which is trusted"
    return f"by the key {key}, not checked: pass --public-key to prove it"


def _print(result: dict[str, Any], trial: _Trial) -> None:
    if result["kind"] is not None:
        click.echo(
            f"checked   {result['bundle']}: {result['kind']}, {result['files']} files with the manifest, "
            f"{result['size_bytes']} bytes"
        )
    for run in trial.runs:
        if run.ran:
            click.echo(
                f"runs      {run.target}: computes {run.compute_dtype}, "
                f"{run.foreground_px} px foreground on the phantom"
            )
        else:
            click.echo(f"not run   {run.target}: {run.reason}")
    for found in trial.comparisons:
        click.echo(
            f"agree     {found.first} and {found.second}: mean probability difference "
            f"{found.mean_probability_difference:.2g}, {found.differing_px} px differ"
        )
    if trial.preferred is not None:
        click.echo(f"preferred {trial.preferred}")
    for problem in result["problems"]:
        click.echo(f"problem   {problem}")
    if result["ok"]:
        click.echo(f"signature {_describe_signature(result['signature'])}")
        click.echo("ok")
