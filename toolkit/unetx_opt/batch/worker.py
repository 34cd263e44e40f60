"""A worker process as its parent sees it: opened, asked, replaced where an input breaks it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import unetx_opt
from unetx_opt.batch.settings import BatchSettings, EngineFacts, Task, settings_to_json
from unetx_opt.errors import UnetxError
from unetx_opt.lifetime import Closing

__all__ = ["SegmentWorker"]

MODULE: Final = "unetx_opt.batch.worker_process"


class SegmentWorker(Closing):
    """Segments inputs in a process of its own; a context manager.

    Used by one thread at a time; only `close` may be called from another one, and ends a call that waits.

    Parameters
    ----------
    settings : BatchSettings
        What it does.
    expected : EngineFacts, optional
        What another worker of the batch has opened: this one must open the same.
    """

    def __init__(self, settings: BatchSettings, expected: EngineFacts | None = None) -> None:
        self.settings = settings
        self._expected = expected
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def open(self) -> EngineFacts:
        """Start the process and wait until it has opened the bundle.

        Raises
        ------
        UnetxError
            It cannot be opened, is not what another worker opened, or the worker is closed.
        """
        self._discard()
        self._check_open()
        environment = {**os.environ, "PYTHONPATH": str(Path(unetx_opt.__path__[0]).parent)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._check_open()  # again: whoever closes meanwhile has looked for a process before there was this one
        try:
            answer = self._ask(settings_to_json(self.settings))
        except EOFError as error:
            raise UnetxError(
                f"a worker process ended while it opened {self.settings.bundle} ({error}): run "
                "unetx-opt verify on it, or use fewer workers if the memory is short"
            ) from None
        if "error" in answer:
            raise UnetxError(answer["error"])
        facts = EngineFacts(**answer | {"label_names": tuple(answer["label_names"])})
        if self._expected is not None and facts.identity != self._expected.identity:
            raise UnetxError(
                f"a worker opened {facts.target} ({facts.compute_dtype}) of bundle {facts.bundle_sha256[:12]}, "
                f"another one {self._expected.target} ({self._expected.compute_dtype}) of "
                f"{self._expected.bundle_sha256[:12]}: their masks could differ, choose one --target"
            )
        self._expected = facts
        return facts

    def segment(self, task: Task) -> dict[str, Any]:
        """Segment one input and write its results.

        Returns
        -------
        dict
            "input", "stem", "status" ("segmented" or "failed") and "reason"; of a segmented one also what
            `unetx_opt.batch.outputs.segment_radiograph` tells, identity and files.

        Raises
        ------
        UnetxError
            The process broke before, and cannot be started again; or the worker is closed.
        """
        if self._process is None:
            self.open()
        try:
            answer = self._ask(json.dumps({"source": str(task.source), "stem": task.stem}))
        except EOFError as error:
            self._discard()
            self._check_open()
            answer = {"status": "failed", "reason": f"it broke the process that segmented it ({error})"}
        return {"input": str(task.source), "stem": task.stem, **answer}

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._discard()

    def _check_open(self) -> None:
        if self._closed:
            self._discard()
            raise UnetxError("the worker is closed: open another")

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError("closed")
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):  # it is gone, or was closed by another thread
            answer = b""
        if not answer.endswith(b"\n"):
            process.kill()
            code = process.wait()
            raise EOFError(f"signal {-code}" if code < 0 else f"code {code}")
        document: dict[str, Any] = json.loads(answer)
        return document

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more
                if pipe is not None:
                    pipe.close()
