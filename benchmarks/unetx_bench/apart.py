"""A step of a long run in a process of its own: what hangs, dies or breaks a device takes nothing with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from unetx_bench.errors import MeasurementError

__all__ = ["run_apart"]


def run_apart(module: str, order: Mapping[str, Any], limit_s: float, what: str) -> None:
    """Run a module with an order in another process, and wait for it.

    Parameters
    ----------
    module : str
        Takes the order as its only argument, in JSON.
    order : mapping of str to object
        What it shall do.
    limit_s : float
        Most time, in seconds.
    what : str
        What is done to the order, for the message: "built".

    Raises
    ------
    MeasurementError
        It failed, with its last line, was killed, or took too long.
    """
    command = [sys.executable, "-m", module, json.dumps(order)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"not {what} within {limit_s:.0f} s") from error
    if done.returncode < 0:
        raise MeasurementError(f"its process was ended by signal {-done.returncode}")
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise MeasurementError(" ".join(last.split())[:500])
