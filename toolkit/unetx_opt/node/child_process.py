"""A process of the node: a worker, or the outbox. It ends when it is told to, and at once when the node is gone."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_opt.errors import UnetxError
from unetx_opt.node.audit import AuditTrail
from unetx_opt.node.config import NodeConfig, read_config
from unetx_opt.node.journal import JOURNAL_NAME, RESULTS_FOLDER, connect_journal
from unetx_opt.node.logs import configure_logs
from unetx_opt.node.receipts import recover_receipts

__all__ = ["MODULE", "ROLES", "ChildOrder", "main"]

MODULE: Final = "unetx_opt.node.child_process"


@dataclass(frozen=True, slots=True)
class ChildOrder:
    """What a process is started for, as JSON on its command line.

    Attributes
    ----------
    role : str
        Key of `ROLES`.
    bundle, config : str
        Paths.
    public_keys : tuple of str
        Paths of the keys that the bundle must be signed by one of; none where it need not be.
    number : int
        Among the processes of its role, from 0 on.
    """

    role: str
    bundle: str
    config: str
    public_keys: tuple[str, ...] = ()
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Start:
    """How a process is told to stop, and how it tells that it is ready."""

    stop: threading.Event
    answers: int

    def tell_ready(self) -> None:
        """Say so, once."""
        os.write(self.answers, b"ready\n")
        os.close(self.answers)


def main() -> None:
    """Do what the order on the command line says, until the parent says stop or is gone."""
    content = json.loads(sys.argv[1])
    order = ChildOrder(**content | {"public_keys": tuple(content["public_keys"])})
    configure_logs(order.role)
    # What native code prints goes to standard error: the pipe to the parent is for one word.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt reaches the whole group; the node decides
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        ROLES[order.role](order, read_config(Path(order.config)), _Start(stop, answers))
    except UnetxError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _watch_parent() -> None:
    """End with the parent, however it ended: what was being done is taken up again by the next node."""
    # Of the descriptor: a thread that waits in a buffered reader breaks the interpreter's end.
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    os._exit(0)


def _run_worker(order: ChildOrder, config: NodeConfig, start: _Start) -> None:
    from unetx_opt.bundle.sign import read_verifying_key
    from unetx_opt.dicom.sandbox import DicomReader, ReaderLimits
    from unetx_opt.node.worker import Worker, WorkerParts
    from unetx_opt.runtime import open_bundle

    trusted = tuple(read_verifying_key(Path(path)) for path in order.public_keys) or None
    limits = ReaderLimits(config.work.read_timeout_s, config.work.read_memory_mib)
    with (
        open_bundle(order.bundle, threads=config.work.threads, trusted=trusted) as segmenter,
        DicomReader(limits) as reader,
        closing(connect_journal(config.state / JOURNAL_NAME)) as journal,
    ):
        worker = Worker(WorkerParts(order.number, config, journal, segmenter, reader))
        worker.rehearse()
        # What is there by now stays: the collector need not go through all of it while an image waits.
        gc.collect()
        gc.freeze()
        # The process of this number that was there before is gone, and so is what it was doing.
        recover_receipts(journal, config.work.attempts, order.number)
        start.tell_ready()
        worker.work(start.stop)


def _run_outbox(order: ChildOrder, config: NodeConfig, start: _Start) -> None:
    from unetx_opt.node.outbox import OutboxPlan, run_outbox

    plan = OutboxPlan(
        lambda: connect_journal(config.state / JOURNAL_NAME),
        config.state / RESULTS_FOLDER,
        config.destination,
        AuditTrail(config.state),
    )
    start.tell_ready()
    run_outbox(plan, start.stop)


#: What a process may be.
ROLES: Final[Mapping[str, Callable[[ChildOrder, NodeConfig, _Start], None]]] = MappingProxyType(
    {"worker": _run_worker, "outbox": _run_outbox}
)

if __name__ == "__main__":
    main()
