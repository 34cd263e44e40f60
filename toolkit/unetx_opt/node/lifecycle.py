"""A node from its start to its end: one for each folder of state, and everything in it in order."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from unetx_opt.errors import UnetxError
from unetx_opt.node.audit import AuditEvent, AuditTrail
from unetx_opt.node.audit_message import AuditSource
from unetx_opt.node.audit_syslog import forward_audit
from unetx_opt.node.child_process import ChildOrder
from unetx_opt.node.config import NodeConfig
from unetx_opt.node.destinations import client_tls
from unetx_opt.node.http_server import HttpPlan, serve_http
from unetx_opt.node.journal import (
    RESULTS_FOLDER,
    SPOOL_FOLDER,
    THUMBNAILS_FOLDER,
    connect_journal,
    create_journal,
)
from unetx_opt.node.measures import count
from unetx_opt.node.outbox import OutboxPlan, take_report
from unetx_opt.node.receipts import forget_finished, recover_receipts, remove_strays
from unetx_opt.node.receiver import ReceiverPlan, receiving
from unetx_opt.node.status import StatusSource
from unetx_opt.node.supervisor import Supervisor

__all__ = ["run_node"]

_LOG: Final = logging.getLogger(__name__)
_LOCK_NAME: Final = "node.lock"
_PATIENCE_S: Final = 60.0
_FORGET_EVERY_S: Final = 600.0


def run_node(
    order: ChildOrder, config: NodeConfig, stop: threading.Event, on_ready: Callable[[], None] | None = None
) -> None:
    """Run a node until `stop` is set.

    Parameters
    ----------
    order : ChildOrder
        Bundle, configuration file and keys; its role is of no account.
    config : NodeConfig
        As the file says.
    stop : threading.Event
        Set by the caller, also from a signal's handler. Images that are being received or segmented, and results
        that are being sent, are brought to their end.
    on_ready : callable, optional
        Called once images are taken.

    Raises
    ------
    UnetxError
        Another node runs on the same state, the bundle cannot be opened, a file of the settings is unusable, or a
        port is taken.
    """
    peers = [destination.peer for destination in config.destination]
    for tls in [peer.tls for peer in peers] + ([] if config.audit.syslog is None else [config.audit.syslog.tls]):
        if tls is not None:
            client_tls(tls)  # before anything begins
    _make_folders(config.state)
    with _only_one(config.state):
        journal_path = create_journal(config.state)

        def connect() -> sqlite3.Connection:
            return connect_journal(journal_path)

        audit = AuditTrail(config.state)
        audit.repair()
        with closing(connect()) as journal:
            recover_receipts(journal, config.work.attempts)
            remove_strays(journal, config.state)
        _serve(_Node(order, config, connect, audit), stop, on_ready)


@dataclass(frozen=True, slots=True)
class _Node:
    """What all parts of a running node share."""

    order: ChildOrder
    config: NodeConfig
    connect: Callable[[], sqlite3.Connection]
    audit: AuditTrail

    def count_restart(self, role: str) -> None:
        """One of its processes ended by itself."""
        with contextlib.suppress(sqlite3.Error, UnetxError), closing(self.connect()) as journal:
            count(journal, "unetx_worker_restarts", role)


def _serve(node: _Node, stop: threading.Event, on_ready: Callable[[], None] | None) -> None:
    order, config, audit = node.order, node.config, node.audit
    orders = [replace(order, role="outbox")]
    orders += [replace(order, role="worker", number=number) for number in range(config.work.processes)]
    outbox = OutboxPlan(node.connect, config.state / RESULTS_FOLDER, config.destination, audit)
    receiver = ReceiverPlan(config, node.connect, audit, lambda report: take_report(outbox, report))
    with Supervisor(orders, node.count_restart) as supervisor:
        supervisor.start()
        with _beside(node, supervisor):
            audit.append(AuditEvent("node-start"))
            with receiving(receiver):
                _LOG.info("%s listens on %s port %d", config.ae_title, config.address, config.port)
                if on_ready is not None:
                    on_ready()
                supervisor.watch(stop)
            _LOG.info("stopping")
            supervisor.stop(_PATIENCE_S)
    audit.append(AuditEvent("node-stop"))


@contextlib.contextmanager
def _beside(node: _Node, supervisor: Supervisor) -> Iterator[None]:
    """What runs in threads of its own: health, metrics and page, the audit trail's way out, and tidying."""
    config, state, ended = node.config, node.config.state, threading.Event()
    http = HttpPlan(
        config.http,
        node.connect,
        StatusSource(config.ae_title, state / THUMBNAILS_FOLDER),
        {"state": state},
        (supervisor.missing, lambda: _why_full(config)),
    )
    listening = threading.Event()
    failures: list[OSError] = []

    def serve() -> None:
        try:
            serve_http(http, ended, lambda port: listening.set())
        except OSError as error:
            failures.append(error)
            listening.set()

    threads = [
        threading.Thread(target=serve, name="http"),
        threading.Thread(target=_forget_now_and_then, args=(node, ended), name="tidying"),
    ]
    if config.audit.syslog is not None:
        source = AuditSource(config.ae_title, socket.gethostname(), os.getpid())
        arguments = (state, config.audit.syslog, source, ended)
        threads.append(threading.Thread(target=forward_audit, args=arguments, name="audit"))
    for thread in threads:
        thread.start()
    try:
        listening.wait()
        if failures:
            where = f"http port {config.http.port} of {config.http.address}"
            raise UnetxError(f"{where} cannot be listened to ({failures[0].strerror}): choose another")
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _why_full(config: NodeConfig) -> str | None:
    free = shutil.disk_usage(config.state).free
    return f"{free} bytes are free, {config.limits.free_bytes} are kept" if free < config.limits.free_bytes else None


def _forget_now_and_then(node: _Node, ended: threading.Event) -> None:
    config = node.config
    while not ended.wait(_FORGET_EVERY_S):
        try:
            with closing(node.connect()) as journal:
                before = time.time() - config.results.keep_hours * 3600.0
                committing = [one.name for one in config.destination if one.commitment]
                forget_finished(journal, config.state, before, committing)
        except (sqlite3.Error, OSError, UnetxError) as error:
            _LOG.warning("finished images were not removed: %s", type(error).__name__)


def _make_folders(state: Path) -> None:
    for name in ("", SPOOL_FOLDER, RESULTS_FOLDER, THUMBNAILS_FOLDER):
        (state / name).mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as error:
        raise UnetxError("a node needs file locks of POSIX: run it on Linux") from error
    descriptor = os.open(state / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UnetxError(f"another node runs on {state}: stop it, or name another folder of state") from error
        yield
    finally:
        os.close(descriptor)
