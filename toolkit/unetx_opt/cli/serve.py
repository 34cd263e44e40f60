"""`unetx-opt serve`: a DICOM node that segments what it is sent."""

from __future__ import annotations

import signal
import threading
from importlib import resources
from pathlib import Path

import click

from unetx_opt.cli.output import note
from unetx_opt.cli.trust import public_key_option

__all__ = ["serve"]


def _print_example(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(resources.files("unetx_opt.node").joinpath("node.example.toml").read_text("utf-8"), nl=False)
        context.exit()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--config", "config_path", required=True, type=click.Path(path_type=Path), help="The node's configuration, TOML."
)
@click.option(
    "--example",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_example,
    help="Print a configuration with comments, and exit.",
)
@public_key_option
def serve(bundle: Path, config_path: Path, public_keys: tuple[Path, ...]) -> None:
    """Receive radiographs, segment them with BUNDLE, and send the results on, until SIGTERM or SIGINT.

    What was acknowledged is not lost, whatever ends: it is taken up at the next start. Logs are JSON lines on stderr.
    """
    from unetx_opt.cli.trust import read_trusted_keys
    from unetx_opt.node.child_process import ChildOrder
    from unetx_opt.node.config import read_config
    from unetx_opt.node.lifecycle import run_node
    from unetx_opt.node.logs import configure_logs

    config = read_config(config_path)
    read_trusted_keys(public_keys)
    configure_logs("node")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: stop.set())
    order = ChildOrder("node", str(bundle), str(config_path), tuple(map(str, public_keys)))
    run_node(order, config, stop, on_ready=lambda: note("ready"))
