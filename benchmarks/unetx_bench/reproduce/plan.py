"""What a reproduction is asked for, and what of it ``--quick`` leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_bench.measure import MeasureOptions
from unetx_exporters.options import BuildOptions
from unetx_exporters.targets import TARGETS
from unetx_opt.errors import SpecError
from unetx_opt.models.variants import VARIANTS, get_variant
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import Host, Precision

__all__ = ["DEFAULT_SIZE_PX", "Plan", "ReproduceOptions", "make_plan"]

DEFAULT_SIZE_PX: Final = 256


@dataclass(frozen=True, slots=True)
class ReproduceOptions:
    """One reproduction.

    Attributes
    ----------
    output : pathlib.Path
        Folder for the table, the page and the work that is kept between runs.
    data : pathlib.Path or None
        Data folder, or ChestX-ray14 with a CheXmask table; None measures accuracy on phantoms.
    variants : tuple of str
        Keys of the table of variants; empty for all. The baseline is always among them.
    checkpoints : pathlib.Path or None
        Folder with ``VARIANT.safetensors`` or ``VARIANT.pt``; None takes the reference checkpoints.
    train : bool
        Train what is not in `checkpoints`, all with the same settings, on the train split of `data`.
    epochs, width : int
        Of that training.
    quick : bool
        Cut down to minutes.
    size_px : int or None
        Height and width of every network's input; None takes the size that the baseline was trained at.
    targets, precisions : tuple of str
        Empty for all that this machine can build and run.
    images : int or None
        At most so many test images.
    partial : bool
        ChestX-ray14: leave out images without a file or a mask.
    seeds : pathlib.Path or None
        JSON file with figures of several seeds.
    seconds : float or None
        At most so long are times sampled.
    overwrite : bool
        Begin anew in a finished output, as soon as everything that is needed was found; trained weights stay.
    """

    output: Path
    data: Path | None = None
    variants: tuple[str, ...] = ()
    checkpoints: Path | None = None
    train: bool = False
    epochs: int = 40
    width: int = 16
    quick: bool = False
    size_px: int | None = None
    targets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    images: int | None = None
    partial: bool = False
    seeds: Path | None = None
    seconds: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in self.variants:
            get_variant(name)
        if self.train and self.data is None:
            raise SpecError("training needs data: pass --data, or leave --train out to take checkpoints")
        if self.train and self.quick:
            raise SpecError("training takes hours and --quick minutes: choose one of them")


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much is measured.

    Attributes
    ----------
    images, phantoms : int or None
        At most so many test images, and how many phantoms in place of them.
    gate : str or None
        Gate of the builds; None is each precision's default.
    every_precision : bool
        Score the bundles of every precision, or those of the first alone.
    measure : MeasureOptions
        When the timing stops.
    """

    images: int | None
    phantoms: int
    gate: str | None
    every_precision: bool
    measure: MeasureOptions


_FULL: Final = _Extent(
    images=None,
    phantoms=48,
    gate=None,
    every_precision=True,
    measure=MeasureOptions(minimum_rounds=60, maximum_seconds=600.0),
)
_QUICK: Final = _Extent(
    images=100,
    phantoms=24,
    gate="off",
    every_precision=False,
    measure=MeasureOptions(half_width=0.02, minimum_rounds=20, maximum_seconds=90.0, warmup_maximum_seconds=10.0),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, with nothing left open.

    Attributes
    ----------
    options : ReproduceOptions
        What was asked for.
    variants : tuple of str
        The baseline first, in the order of the table.
    targets : tuple of str
        Those that this machine can build and run.
    precisions : tuple of Precision
        Those that this version can build.
    extent : _Extent
        How much is measured.
    left_out : mapping of str to str
        Target or precision -> why it is not measured.
    cut : tuple of str
        What ``--quick`` leaves out, as sentences.
    data_identity : str or None
        Of the content of `build_data`, once it was read; bundles of other data are never taken for it.
    """

    options: ReproduceOptions
    variants: tuple[str, ...]
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...]
    extent: _Extent
    left_out: Mapping[str, str]
    cut: tuple[str, ...]
    data_identity: str | None = None

    @property
    def measure(self) -> MeasureOptions:
        """When the timing stops."""
        return _limited(self.extent.measure, self.options.seconds)

    @property
    def build_data(self) -> Path | None:
        """Folder whose splits decide gates and INT8 ranges; None where it is not a folder of images and masks."""
        data = self.options.data
        return data if data is not None and (data / "masks").is_dir() else None

    @property
    def image_limit(self) -> int | None:
        """At most so many test images."""
        limits = [limit for limit in (self.options.images, self.extent.images) if limit is not None]
        return min(limits, default=None)


def make_plan(options: ReproduceOptions, host: Host) -> Plan:
    """Decide what is measured on a machine.

    Parameters
    ----------
    options : ReproduceOptions
        What was asked for.
    host : Host
        The machine.

    Raises
    ------
    SpecError
        A name is unknown, or nothing that was asked for can be measured here.
    """
    left_out: dict[str, str] = {}
    targets = []
    for name in TARGETS:
        reason = _why_not_target(name, options, host)
        if reason is None:
            targets.append(name)
        else:
            left_out[name] = reason
    precisions = []
    for precision in Precision:
        reason = _why_not_precision(precision, options)
        if reason is None:
            precisions.append(precision)
        else:
            left_out[precision.value] = reason
    if not targets or not precisions:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise SpecError(f"nothing can be built and timed here: {listed}")
    asked = options.variants or tuple(VARIANTS)
    return Plan(
        options=options,
        variants=tuple(name for name in VARIANTS if name in asked or name == next(iter(VARIANTS))),
        targets=tuple(targets),
        precisions=tuple(precisions),
        extent=_QUICK if options.quick else _FULL,
        left_out=MappingProxyType(left_out),
        cut=_describe_cut(options) if options.quick else (),
    )


def _why_not_target(name: str, options: ReproduceOptions, host: Host) -> str | None:
    if options.targets and name not in options.targets:
        return "not asked for"
    if options.quick and not options.targets and not name.endswith("-cpu"):
        return "left out by --quick, which times CPU targets only"
    # What is built here for another machine cannot be timed here.
    return TARGETS[name].why_not(host) or SESSIONS[name].why_not(host)


def _why_not_precision(precision: Precision, options: ReproduceOptions) -> str | None:
    if options.precisions and precision not in options.precisions:
        return "not asked for"
    if options.quick and not options.precisions and precision is Precision.INT8:
        return "left out by --quick: its calibration and search take minutes for each variant"
    try:
        BuildOptions(variant=next(iter(VARIANTS)), precision=precision, output=options.output, data=options.data)
    except SpecError as error:
        return str(error)
    return None


def _describe_cut(options: ReproduceOptions) -> tuple[str, ...]:
    measure = _limited(_QUICK.measure, options.seconds)
    images = f"at most {_QUICK.images} test images" if options.data is not None else f"{_QUICK.phantoms} phantoms"
    return (
        f"accuracy on {images}",
        f"timing ends at intervals of +- {measure.half_width:.0%} or after {measure.maximum_seconds:.0f} s, in place "
        f"of +- {_FULL.measure.half_width:.0%} or {_FULL.measure.maximum_seconds:.0f} s",
        f"networks at {options.size_px or DEFAULT_SIZE_PX} x {options.size_px or DEFAULT_SIZE_PX} pixels",
        "accuracy of the first precision only",
        "no drift gate on the bundles: unetx-opt build runs it",
    )


def _limited(usual: MeasureOptions, seconds: float | None) -> MeasureOptions:
    if seconds is None:
        return usual
    warm_up = min(seconds, usual.warmup_maximum_seconds)
    return dataclasses.replace(usual, maximum_seconds=seconds, warmup_maximum_seconds=warm_up)
