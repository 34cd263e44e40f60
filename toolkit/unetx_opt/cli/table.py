"""The commands of `unetx-opt`, named by string so that the command line imports only the one that is run.

`build` lives in a package above the toolkit; naming it here as text keeps the import graph acyclic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["COMMANDS", "CommandRow"]


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command.

    Attributes
    ----------
    target : str
        ``module:attribute`` of a `click.Command` that has the row's name.
    summary : str
        What ``unetx-opt --help`` prints beside it.
    """

    target: str
    summary: str


#: Command name -> row, in the order in which ``unetx-opt --help`` lists them.
COMMANDS: Mapping[str, CommandRow] = MappingProxyType(
    {
        "train": CommandRow("unetx_opt.cli.train:train", "Train a variant on a folder of images and masks."),
        "evaluate": CommandRow("unetx_opt.cli.evaluate:evaluate", "Compare masks with those of a data set."),
        "build": CommandRow("unetx_exporters.cli:build", "Turn a checkpoint into a bundle of engines."),
        "inspect": CommandRow("unetx_opt.cli.inspect:inspect", "Show what a bundle holds."),
        "verify": CommandRow("unetx_opt.cli.verify:verify", "Check every byte of a bundle and run it."),
        "segment": CommandRow("unetx_opt.cli.segment:segment", "Segment radiographs with a bundle."),
        "bench": CommandRow("unetx_bench.cli:bench", "Measure latency and drift of bundles on this machine."),
        "compare": CommandRow("unetx_bench.compare_cli:compare", "Say what changed between two benchmarks."),
        "history": CommandRow("unetx_bench.history_cli:history", "Follow one machine over many benchmarks."),
        "fleet": CommandRow("unetx_bench.history_cli:fleet", "Put the benchmarks of workstations side by side."),
        "reproduce": CommandRow(
            "unetx_bench.reproduce.cli:reproduce", "Measure the article's table here, and answer its claims."
        ),
        "serve": CommandRow("unetx_opt.cli.serve:serve", "Segment what is sent to a DICOM node."),
        "queue": CommandRow("unetx_opt.cli.queue:queue", "Look at a DICOM node's queue, and change it."),
        "doctor": CommandRow("unetx_opt.cli.doctor:doctor", "Say what this machine can build and run."),
    }
)
