"""One bundle of the GPU record, in a process of its own: what hangs or dies there takes nothing else with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from unetx_bench.apart import run_apart
from unetx_opt.errors import UnetxError
from unetx_opt.specs import Precision

__all__ = ["BuildOrder", "build_apart"]


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """One bundle.

    Attributes
    ----------
    variant, precision, target : str
        Names.
    checkpoint, output : str
        Paths of the weights and of the bundle that shall appear.
    size_px : int
        Of the engine's input.
    """

    variant: str
    precision: str
    target: str
    checkpoint: str
    output: str
    size_px: int

    @property
    def name(self) -> str:
        """What the record calls it."""
        return f"{self.variant}-{self.precision}-{self.target}"


def build_apart(order: BuildOrder, limit_s: float) -> None:
    """Build in another process and wait for it.

    Raises
    ------
    MeasurementError
        It failed, with its last line, was killed, or took longer than `limit_s` seconds.
    """
    run_apart("unetx_bench.gpu_record_build", asdict(order), limit_s, "built")


def _build(order: BuildOrder) -> None:
    from unetx_exporters.options import BuildOptions
    from unetx_exporters.pipeline import build_bundle
    from unetx_opt.runtime.host import probe_host

    # For RTX the GPU that is there alone: the others' engines are built, and not measured, anywhere.
    present = probe_host().compute_capability
    options = BuildOptions(
        variant=order.variant,
        precision=Precision(order.precision),
        output=Path(order.output),
        targets=(order.target,),
        checkpoint=Path(order.checkpoint),
        size_px=order.size_px,
        gate="off",
        # Of random weights nothing but the time is wanted; what the engines compute, builds of trained ones check.
        compare=False,
        compute_capabilities=(present,) if present is not None and order.target == "tensorrt-rtx" else (),
    )
    build_bundle(options, lambda stage, done, total: None)


@click.command()
@click.argument("order")
def main(order: str) -> None:
    """Build what ORDER, in JSON, says."""
    try:
        _build(BuildOrder(**json.loads(order)))
    except UnetxError as error:
        raise click.ClickException(" ".join(str(error).split())) from error


if __name__ == "__main__":
    main()
