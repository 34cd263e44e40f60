"""The node's processes: started, watched, started again when they end, and stopped in order."""

from __future__ import annotations

import dataclasses
import json
import logging
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from unetx_opt.errors import UnetxError
from unetx_opt.lifetime import Closing
from unetx_opt.node.child_process import MODULE, ChildOrder

__all__ = ["Child", "Supervisor"]

_LOG: Final = logging.getLogger(__name__)
_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
#: A process that lived this long did not fail at its start.
_SETTLED_S: Final = 30.0
_LOOK_S: Final = 0.1


class Child(Closing):
    """One process, and when it may be started again.

    Parameters
    ----------
    order : ChildOrder
        What it is started for.
    """

    def __init__(self, order: ChildOrder) -> None:
        self.order = order
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failures = 0

    @property
    def process_id(self) -> int | None:
        """Of the process that runs; None where none does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it; it opens what it needs meanwhile."""
        self.close()
        self.starts += 1
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, json.dumps(dataclasses.asdict(self.order))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def await_ready(self, patience_s: float) -> None:
        """Wait until it says that it is ready.

        Raises
        ------
        UnetxError
            It ended before, or said nothing in time; why is on its standard error.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise UnetxError(f"the {self.order.role} was not started")
        readable, _, _ = select.select([process.stdout], [], [], patience_s)
        if not readable or process.stdout.readline() != b"ready\n":
            self.close()
            raise UnetxError(f"the {self.order.role} did not start: see above")

    def restart_delay_s(self) -> float | None:
        """How long to wait before it is started again; None while it runs."""
        if self.process_id is not None:
            return None
        settled = time.monotonic() - self._started_at > _SETTLED_S
        self._failures = 1 if settled else self._failures + 1
        return float(min(_FIRST_DELAY_S * 2.0 ** (self._failures - 1), _MAX_DELAY_S))

    def ask_to_stop(self) -> None:
        """Let it finish what it has begun, and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, patience_s: float) -> bool:
        """Wait for its end; whether it came in time."""
        if self._process is not None:
            try:
                self._process.wait(max(0.0, patience_s))
            except subprocess.TimeoutExpired:
                return False
        return True

    def close(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Supervisor(Closing):
    """All processes of a node.

    Parameters
    ----------
    orders : list of ChildOrder
        One for each process.
    on_restart : callable
        f(role), when one ended by itself.
    """

    def __init__(self, orders: list[ChildOrder], on_restart: Callable[[str], None]) -> None:
        self.children = [Child(order) for order in orders]
        self._on_restart = on_restart

    def start(self, patience_s: float = 300.0) -> None:
        """Start every process and wait until all are ready.

        Raises
        ------
        UnetxError
            One of them did not become so.
        """
        for child in self.children:
            child.start()
        deadline = time.monotonic() + patience_s
        for child in self.children:
            child.await_ready(max(0.0, deadline - time.monotonic()))

    def watch(self, stop: threading.Event) -> None:
        """Start again what ends, until told to stop."""
        due: dict[int, float] = {}
        while not stop.wait(_LOOK_S):
            for index, child in enumerate(self.children):
                if index in due:
                    if time.monotonic() >= due[index]:
                        del due[index]
                        child.start()
                    continue
                delay_s = child.restart_delay_s()
                if delay_s is not None:
                    _LOG.error("the %s ended by itself; it is started again in %.1f s", child.order.role, delay_s)
                    self._on_restart(child.order.role)
                    due[index] = time.monotonic() + delay_s

    def missing(self) -> str | None:
        """Say which kind of process does not run; None where all do."""
        gone = sorted({child.order.role for child in self.children if child.process_id is None})
        return f"no {' and no '.join(gone)} runs" if gone else None

    def stop(self, patience_s: float) -> None:
        """Let every process finish what it has begun; end those that take longer."""
        for child in self.children:
            child.ask_to_stop()
        deadline = time.monotonic() + patience_s
        for child in self.children:
            if not child.wait(deadline - time.monotonic()):
                _LOG.warning("the %s did not end within %.0f s", child.order.role, patience_s)
        self.close()

    def close(self) -> None:
        """End every process at once."""
        for child in self.children:
            child.close()
