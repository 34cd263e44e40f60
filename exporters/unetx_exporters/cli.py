"""The command `unetx-opt build`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_exporters.targets import TARGETS
from unetx_opt.models.variants import VARIANTS
from unetx_opt.specs import Precision

if TYPE_CHECKING:
    from unetx_exporters.result import BuildResult


@click.command()
@click.option("--variant", required=True, type=click.Choice(tuple(VARIANTS)), help="Model variant.")
@click.option(
    "--precision",
    required=True,
    type=click.Choice([p.value for p in Precision]),
    help="What the engines store and, where the target can, compute in.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(tuple(TARGETS)),
    help="Build this target; may be repeated. Without it: every target that this machine can build.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A .safetensors checkpoint or a state dict (.pt). Without it: the reference checkpoint.",
)
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(16, 8192),
    help="Engine input in pixels. Without it: the size that the checkpoint was trained at, or 512.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data folder that decides the gate; its calibration split gives int8 its ranges. Without it: phantoms.",
)
@click.option("--split", default="validation", show_default=True, help="Split of --data.")
@click.option(
    "--gate",
    type=click.Choice(["strict", "standard", "off"]),
    help="Accuracy gate. Without it: strict, for int8 standard.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="CUDA compute capability to build for, such as 8.6; may be repeated. Without it: all, for int8 but 7.5.",
)
@click.option(
    "--option",
    "target_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of a single builder, such as tensorrt_max_batch=8; may be repeated.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the bundle shall appear.")
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Show the worst gate images in the evidence. With --data these are pictures of patients.",
)
@click.option("--archive", is_flag=True, help="Write the bundle as one file instead of a directory.")
@click.option("--native", is_flag=True, help="Put the C library's header, source and examples into the bundle.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--sign-key",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sign the bundle with this Ed25519 private key (PEM).",
)
@click.option(
    "--budget",
    "budget_minutes",
    type=click.FloatRange(0.0, min_open=True),
    default=6.0,
    show_default=True,
    metavar="MINUTES",
    help="For the search of an int8 build; one that is interrupted goes on where it was.",
)
@click.option(
    "--repeat-builds",
    type=click.IntRange(1, 20),
    default=1,
    show_default=True,
    help="Build the engines this often, and report how their masks and times differ.",
)
@click.option(
    "--compress-weights",
    is_flag=True,
    help="Of an fp16 build: store the weights of the CPU engines in 8 bits, if that keeps the gate.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the phantoms and of the int8 search.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def build(context: click.Context, /, as_json: bool, **chosen: Any) -> None:
    """Turn a checkpoint into a bundle of verified engines.

    The checkpoint is exported to ONNX, converted to the precision, compiled for every target, compared with the
    PyTorch reference image by image, and packed with a manifest. A failed accuracy gate exits 3.
    """
    from unetx_exporters.options import BuildOptions
    from unetx_exporters.pipeline import build_bundle
    from unetx_opt.bundle.sign import read_signer
    from unetx_opt.cli.output import echo_json, progress

    precision = Precision(chosen.pop("precision"))
    output = chosen.pop("output")
    if output is None:
        output = Path(f"{chosen['variant']}-{precision}" + (".unetx" if chosen["archive"] else ""))
    sign_key = chosen.pop("sign_key")
    options = BuildOptions(
        precision=precision,
        output=output,
        target_options=dict(_read_option(text) for text in chosen.pop("target_options")),
        command=tuple(context.find_root().obj or ("unetx-opt", "build")),
        signer=None if sign_key is None else read_signer(sign_key, _ask_password),
        **chosen,
    )
    with progress(enabled=not as_json) as display:
        task = display.add_task("build", total=None)

        def report(stage: str, done: int, total: int) -> None:
            display.update(task, description=stage, completed=done, total=total)

        result = build_bundle(options, report)
    if as_json:
        echo_json(result)
    else:
        _print(result)


def _ask_password() -> str:
    password: str = click.prompt("password of the signing key", hide_input=True, err=True)
    return password


def _read_option(text: str) -> tuple[str, int | float | str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


def _print(result: BuildResult) -> None:
    click.echo(f"bundle   {result.bundle}")
    click.echo(f"model    {result.variant} {result.precision}, {result.size_px} x {result.size_px} px")
    for engine in result.engines:
        verdict = "gate off" if engine.gate is None else f"gate {engine.gate} passed ({engine.evaluated})"
        click.echo(
            f"engine   {engine.target}: stored {engine.storage_dtype}, computes {engine.compute_dtype}, {verdict}"
        )
    for layer, reason in result.kept.items():
        click.echo(f"wider    {layer}: {reason}")
    for engine_name, reason in result.left_out.items():
        click.echo(f"left out {engine_name}: {reason}")
    for target, reason in result.skipped.items():
        click.echo(f"skipped  {target}: {reason}")
    if result.gate_report is not None:
        click.echo(f"report   {result.gate_report}")
