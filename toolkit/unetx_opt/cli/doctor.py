"""`unetx-opt doctor`: what this machine can build and run, and why not."""

from __future__ import annotations

import importlib
import platform
from typing import TYPE_CHECKING, Any, Final

import click

from unetx_opt import __version__
from unetx_opt.cli.output import echo_json

if TYPE_CHECKING:
    from rich.table import Table

    from unetx_opt.specs import Host

__all__ = ["doctor"]

#: CPU features that decide how fast an engine runs; the others are noise for a reader.
_NOTEWORTHY: Final = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimddp",
    "asimdhp",
    "i8mm",
    "sve",
    "svebf16",
    "bf16",
    "fp16",
)
#: Above the toolkit, so that it is named as text.
_BUILD_TABLE: Final = "unetx_exporters.targets"


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run, and what stands against the rest."""
    from unetx_opt.runtime.host import probe_host

    host = probe_host()
    targets = _targets(host)
    if as_json:
        echo_json({"host": _describe_host(host), "packages": host.packages, "targets": targets})
        return
    _print(host, targets)


def _describe_host(host: Host) -> dict[str, Any]:
    return {
        "unetx_opt": __version__,
        "python": platform.python_version(),
        "system": host.system,
        "machine": host.machine,
        "cpu_features": sorted(host.cpu_features),
        "onnxruntime_providers": list(host.onnxruntime_providers),
        "gpu": host.gpu,
        "compute_capability": host.compute_capability,
        "cuda_driver": host.driver,
    }


def _targets(host: Host) -> list[dict[str, Any]]:
    from unetx_opt.runtime.sessions.table import SESSIONS
    from unetx_opt.specs import Precision

    build_rows = importlib.import_module(_BUILD_TABLE).TARGETS
    rows = []
    for name, row in SESSIONS.items():
        why_not_run, why_not_build = row.why_not(host), build_rows[name].why_not(host)
        why_not_int8 = build_rows[name].why_not(host, Precision.INT8)
        rows.append(
            {
                "name": name,
                "can_run": why_not_run is None,
                "why_not_run": why_not_run,
                "can_build": why_not_build is None,
                "why_not_build": why_not_build,
                "can_build_int8": why_not_int8 is None,
                "why_not_build_int8": why_not_int8,
            }
        )
    return rows


def _print(host: Host, targets: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    facts = {
        "unetx-opt": f"{__version__}, Python {platform.python_version()}",
        "system": f"{host.system} {host.machine}",
        "CPU arithmetic": ", ".join(name for name in _NOTEWORTHY if name in host.cpu_features) or "unknown",
        "GPU": _describe_gpu(host),
        "packages": ", ".join(f"{name} {version}" for name, version in host.packages.items()) or "none",
    }
    machine = Table(title="This machine", show_header=False, title_justify="left")
    for name, value in facts.items():
        machine.add_row(name, Text(value))
    console = Console()
    console.print(machine)
    console.print(_target_table(targets))


def _describe_gpu(host: Host) -> str:
    if host.driver is None:
        return "no CUDA driver"
    if host.gpu is None:
        return f"no usable CUDA device (driver for CUDA {host.driver})"
    return f"{host.gpu}, compute capability {host.compute_capability}, driver for CUDA {host.driver}"


def _describe_build(row: dict[str, Any]) -> str:
    if row["why_not_build"] is None and row["why_not_build_int8"] is not None:
        return f"yes, but not int8: {row['why_not_build_int8']}"
    return row["why_not_build"] or "yes"


def _target_table(targets: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Targets, the preferred one first", title_justify="left")
    for heading in ("target", "runs here", "builds here"):
        table.add_column(heading, overflow="fold")
    for row in targets:
        cells = (row["name"], row["why_not_run"] or "yes", _describe_build(row))
        table.add_row(*(Text(cell) for cell in cells))  # not as markup: the names of extras stand in brackets
    return table
