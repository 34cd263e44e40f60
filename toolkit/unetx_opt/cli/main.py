"""Entry point of `unetx-opt`: finds the command in the table, runs it, and turns errors into exit codes.

======  ====================================================================
code    meaning
======  ====================================================================
0       done
1       an error that the user can mend, as one line on stderr
2       bad usage
3       a drift gate fails
130     interrupted by the keyboard
141     the reader of stdout has gone away
======  ====================================================================
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from unetx_opt import __version__
from unetx_opt.cli.table import COMMANDS
from unetx_opt.errors import UnetxError

__all__ = ["command_line", "main"]

_PROGRAM: Final = "unetx-opt"
_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141


class _TableGroup(click.Group):
    """A click group whose commands are the rows of the table, imported when one is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None where the table has no such row."""
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{row.target} is a {type(command).__name__}, expected a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's summaries, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.summary) for name, row in COMMANDS.items()])


@click.group(cls=_TableGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name=_PROGRAM, message="%(prog)s %(version)s")
def command_line(debug: bool) -> None:
    """Turn a trained chest-radiograph U-Net into verified engines, and run them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; those of the process by default.

    Returns
    -------
    int
        The exit code, as listed at the top of this module. An exception that is neither an `UnetxError` nor
        about a file of the operating system is a defect and escapes with its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        exit_code = _dispatch(arguments)
        # Here and not at the interpreter's end, where a reader that has gone away can no longer be handled.
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return _report("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        if _stdout_is_gone():
            return _BROKEN_PIPE
        raise  # a pipe of the command's own: a defect
    return exit_code


def _dispatch(arguments: list[str]) -> int:
    try:
        # A command may record how it was called: the whole line is the context's object.
        with command_line.make_context(_PROGRAM, list(arguments), obj=(_PROGRAM, *arguments)) as context:
            return _run(context, debug=context.params["debug"])
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _report(error.format_message(), error.exit_code)


def _run(context: click.Context, *, debug: bool) -> int:
    try:
        command_line.invoke(context)
    except UnetxError as error:
        return _report(str(error), error.exit_code, debug=debug)
    except OSError as error:
        # A full disk or a forbidden path is the user's to mend, and names a file; anything else is a defect.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        return _report(str(error), UnetxError.exit_code, debug=debug)
    return 0


def _report(message: str, exit_code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return exit_code


def _stdout_is_gone() -> bool:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object that is no file, or closed
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, 0)
        if not poll.poll(0):  # neither an error nor a hang-up: the pipe that broke was another one
            return False
    # The interpreter flushes once more when it ends; let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


if __name__ == "__main__":
    sys.exit(main())
