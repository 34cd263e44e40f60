"""Another program and the harness in turns of a fraction of a second, although that program times by itself.

It is stopped and continued by signals. Its clock runs on while it is stopped, so that one of its calls in each turn
seems long: turns hold so many calls that its median does not feel one of them. Turns of whole programs, some seconds
each, do not do: on a processor that a neighbour shares, speeds change by half for seconds at a time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from unetx_bench.errors import MeasurementError

__all__ = ["ToolTurns"]

_TIMEOUT_S: Final = 300.0


class ToolTurns:
    """A monitor (see `unetx_bench.measurement.Monitor`) that lets a program run between rounds.

    Parameters
    ----------
    command : sequence of str
        The program.
    folder : pathlib.Path
        Its working directory.
    begins : re.Pattern
        Found in the line of its output after which it times calls.
    turn_s : float
        Seconds of a turn, of either.
    tool_first : bool
        Who begins.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, begins: re.Pattern[str], *, turn_s: float, tool_first: bool
    ) -> None:
        self._command, self._folder, self._begins = command, folder, begins
        self._turn_s, self._tool_first = turn_s, tool_first
        self._process: subprocess.Popen[str] | None = None
        self._since = 0.0
        #: What the program printed, once `stop` was called.
        self.text = ""
        #: Turns that it was given.
        self.turns = 0

    def start(self) -> None:
        """Start the program, and stop it where its timing begins.

        Raises
        ------
        MeasurementError
            It ends before it times anything, or this system cannot stop programs.
        """
        if sys.platform == "win32":
            raise MeasurementError("programs cannot be stopped and continued on Windows: run this on Linux or macOS")
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            start_new_session=True,
        )
        lines = []
        for line in _output(self._process):
            lines.append(line)
            if self._begins.search(line):
                break
        else:
            self._process.communicate()
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
            raise MeasurementError(f"{Path(self._command[0]).name} timed no call; its last line is: {last}")
        self.text = "".join(lines)
        self._signal(signal.SIGSTOP)
        if self._tool_first:
            self._give_turn()
        self._since = time.perf_counter()

    def between_rounds(self) -> None:
        """Let the program run for a turn, where the harness had its own."""
        if time.perf_counter() - self._since >= self._turn_s:
            self._give_turn()
            self._since = time.perf_counter()

    def stop(self) -> tuple[str, ...]:
        """Let the program come to its end."""
        if self._process is None:
            return ()
        self._signal(signal.SIGCONT)
        try:
            rest, _ = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            rest, _ = self._process.communicate()
        self.text += rest
        return ()

    def _give_turn(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._signal(signal.SIGCONT)
        time.sleep(self._turn_s)
        self._signal(signal.SIGSTOP)
        self.turns += 1

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)


def _output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None  # noqa: S101  (it was asked for)
    return process.stdout
