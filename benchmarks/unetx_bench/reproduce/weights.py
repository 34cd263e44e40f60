"""Which weights each variant is measured with: given, shipped, or trained here; and figures of further seeds."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.identity import identify_training
from unetx_bench.reproduce.plan import DEFAULT_SIZE_PX
from unetx_bench.reproduce.record import SeedFigures, WeightsRecord
from unetx_bench.reproduce.stages import WORK_NAME
from unetx_opt.errors import CheckpointError, DataError, UnetxError
from unetx_opt.models.variants import VARIANTS

if TYPE_CHECKING:
    from unetx_bench.reproduce.plan import Plan
    from unetx_opt.models.checkpoint import Checkpoint

__all__ = ["Weights", "find_weights", "read_seeds"]

_ENDINGS: Final = (".safetensors", ".pt", ".pth")
_MAX_SEED_BYTES: Final = 1 << 20
_STDERR: Final = 2


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint file and what it says about itself.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    record : WeightsRecord
        For the report.
    label_count : int
        Labels of its masks, the background included.
    divisor : int
        Of what the side of its input must be a multiple.
    """

    path: Path
    record: WeightsRecord
    label_count: int
    divisor: int


def find_weights(plan: Plan, tell: Callable[[str], None]) -> tuple[Mapping[str, Weights], Mapping[str, str]]:
    """Find, or train, the weights of every variant.

    Parameters
    ----------
    plan : Plan
        What is measured.
    tell : callable
        Told what is going on, line by line.

    Returns
    -------
    found : mapping of str to Weights
        By variant.
    missing : mapping of str to str
        Variant -> why it has none.

    Raises
    ------
    CheckpointError
        The baseline has none: there is nothing to compare with.
    """
    identify = _identify_once(plan)
    found: dict[str, Weights] = {}
    missing: dict[str, str] = {}
    for variant in plan.variants:
        try:
            found[variant] = _read(variant, _locate(variant, plan, found, tell, identify))
        except UnetxError as error:
            if variant == BASELINE:
                raise CheckpointError(f"the baseline has no weights to compare with: {error}") from error
            missing[variant] = str(error)
            tell(f"left out: {variant}: {error}")
    return found, missing


def _identify_once(plan: Plan) -> Callable[[], str]:
    """Give the identity of the data to train on, read when it is first asked for."""

    @functools.cache
    def identify() -> str:
        assert plan.options.data is not None  # noqa: S101  (checked with the options)
        return identify_training(plan.options.data, partial=plan.options.partial)

    return identify


def _locate(
    variant: str, plan: Plan, found: Mapping[str, Weights], tell: Callable[[str], None], identify: Callable[[], str]
) -> Path:
    from unetx_opt.models.checkpoint import reference_checkpoint

    folder = plan.options.checkpoints
    if folder is not None:
        paths = (folder / f"{variant}{ending}" for ending in _ENDINGS)
        given = next((path for path in paths if path.is_file()), None)
        if given is not None:
            return given
    if plan.options.train:
        return _train(variant, plan, found, tell, identify)
    if folder is not None:
        raise CheckpointError(f"--checkpoints holds no {variant}.safetensors: add it, or train it with --train")
    return reference_checkpoint(variant)


def _train(
    variant: str, plan: Plan, found: Mapping[str, Weights], tell: Callable[[str], None], identify: Callable[[], str]
) -> Path:
    """Train with the command of that name, in a process of its own, and go on with what a stopped run left."""
    options = plan.options
    assert options.data is not None  # noqa: S101  (checked with the options)
    size_px = options.size_px or DEFAULT_SIZE_PX
    data = f"{options.data.resolve().name}-{identify()}"
    settings = f"{data}-{options.width}-wide-{size_px}-px-{options.epochs}-epochs"
    output = options.output / WORK_NAME / "checkpoints" / settings / f"{variant}.safetensors"
    if output.is_file():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments: list[object] = ["--variant", variant, "--data", options.data, "--output", output, "--size", size_px]
    if _adds_a_step_alone(variant) and BASELINE in found:
        # The step is fitted to the baseline's own weights: the two then differ in the step and in nothing else.
        arguments += ["--weights", found[BASELINE].path]
    else:
        arguments += ["--epochs", options.epochs, "--width", options.width, "--resume"]
    arguments += ["--partial"] if options.partial else []
    tell(f"training {variant}")
    command = [sys.executable, "-m", "unetx_opt.cli.main", "train", *map(str, arguments)]
    # What training prints is no part of the result on stdout.
    ended = subprocess.run(command, check=False, stdout=_STDERR)
    if ended.returncode != 0:
        raise UnetxError(f"training {variant} ended with exit code {ended.returncode}: repeat the command to go on")
    return output


def _adds_a_step_alone(variant: str) -> bool:
    """Whether a variant is the baseline's network, trained as the baseline is, with a step behind it."""
    from unetx_opt.models.variants import variant_spec

    row, base = VARIANTS[variant], VARIANTS[BASELINE]
    return row.postprocess is not None and row.loss == base.loss and variant_spec(variant) == variant_spec(BASELINE)


def _read(variant: str, path: Path) -> Weights:
    from unetx_opt.models.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path, variant=variant)
    record = WeightsRecord(
        source=path.name,
        sha256=checkpoint.sha256,
        trained_on=_fact(checkpoint, "data", "name", str),
        trained_size_px=checkpoint.trained_size_px,
        seed=_fact(checkpoint, "training", "seed", int),
    )
    return Weights(path, record, max(2, checkpoint.spec.num_classes), checkpoint.spec.divisor)


def _fact(checkpoint: Checkpoint, part: str, name: str, kind: type) -> Any:
    try:
        value = json.loads(checkpoint.metadata.get(part, "{}")).get(name)
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if type(value) is kind else None


def read_seeds(path: Path | None) -> Mapping[str, SeedFigures]:
    """Read figures of several seeds: ``{variant: {seed: {"accuracy": .., "miou": .., "dice": ..}}}``.

    Parameters
    ----------
    path : pathlib.Path or None
        JSON file; keys that are no variant are left alone. None gives none.

    Raises
    ------
    DataError
        It cannot be read, or a figure is no number.
    """
    if path is None:
        return {}
    try:
        if path.stat().st_size > _MAX_SEED_BYTES:
            raise DataError(f"{path} has more than {_MAX_SEED_BYTES} bytes, expected figures of some seeds")
        document = dict(json.loads(path.read_text(encoding="utf-8")))
        rows = {name: document[name] for name in VARIANTS if name in document}
        return {name: _by_figure(seeds) for name, seeds in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # The checks of the record tell over several lines, with links: its first complaint says enough.
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(
            f'{path} is no JSON object of the form {{"unet": {{"0": {{"accuracy": 0.98}}}}}}: {reason}'
        ) from error


def _by_figure(seeds: Mapping[str, Mapping[str, float]]) -> SeedFigures:
    figures: dict[str, dict[str, float]] = {}
    for seed, row in seeds.items():
        for figure, value in row.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{figure} of seed {seed} is {value!r:.40}, expected a finite number")
            figures.setdefault(figure, {})[seed] = value
    return SeedFigures(figures=figures)
