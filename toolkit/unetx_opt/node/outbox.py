"""The outbox: a thread for each destination that sends what waits for it, so that none waits for another."""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from unetx_opt.errors import UnetxError
from unetx_opt.files import relative_name
from unetx_opt.node.audit import AuditEvent, AuditTrail
from unetx_opt.node.commitment import (
    CommitmentReport,
    apply_report,
    new_transaction_uid,
    report_handler,
    request_commitment,
)
from unetx_opt.node.deliveries import (
    Delivery,
    claim_delivery,
    claim_for_commitment,
    has_urgent,
    mark_again,
    mark_dead,
    mark_stored,
    next_due,
    postpone_commitment,
    reclaim_interrupted,
    transaction,
)
from unetx_opt.node.destinations import Destination, DicomPeer, RetryPolicy
from unetx_opt.node.measures import count, observe
from unetx_opt.node.outcome import Outcome, Verdict
from unetx_opt.node.sender import Sender, open_sender

__all__ = ["OutboxPlan", "delay_before_retry", "run_outbox", "take_report"]

_LOG: Final = logging.getLogger(__name__)
#: How soon a thread sees what was queued or that it shall stop.
_POLL_S: Final = 0.01
#: A connection that nothing was sent over for this long is closed.
_IDLE_S: Final = 2.0
#: Results are asked for together: no more often than this, for each destination.
_COMMITMENT_INTERVAL_S: Final = 1.0
_RESTART_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class OutboxPlan:
    """What an outbox works on.

    Attributes
    ----------
    connect : callable
        f() -> a connection of its own to the journal, in autocommit mode; called in every thread.
    results : pathlib.Path
        Folder of the results' files.
    destinations : tuple of Destination
        All of them.
    audit : AuditTrail or None
        Where transfers are recorded.
    """

    connect: Callable[[], sqlite3.Connection]
    results: Path
    destinations: Sequence[Destination]
    audit: AuditTrail | None = None


def run_outbox(plan: OutboxPlan, stop: threading.Event) -> None:
    """Send until `stop` is set; transfers that have begun are brought to their end.

    A thread that fails, by a full disk or a defect, begins again after a moment; what it was sending waits again.
    One process runs this at a time.

    Parameters
    ----------
    plan : OutboxPlan
        What to send from where to whom.
    stop : threading.Event
        Set by the caller, also from a signal's handler.
    """
    threads = [
        threading.Thread(target=_keep_serving, args=(plan, destination, stop), name=f"outbox-{destination.name}")
        for destination in plan.destinations
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def delay_before_retry(policy: RetryPolicy, attempts: int, chance: float) -> float:
    """How long to wait after an attempt, in seconds.

    Parameters
    ----------
    policy : RetryPolicy
        Of the destination.
    attempts : int
        How many there were, from 1 on.
    chance : float
        In [0, 1): takes off up to a half.
    """
    doubled: float = policy.first_delay_s * 2.0 ** min(attempts - 1, 40)
    return min(doubled, policy.max_delay_s) * (1.0 - chance / 2.0)


def take_report(plan: OutboxPlan, report: CommitmentReport) -> bool:
    """Write a report of storage commitment into the journal and the audit trail.

    The node's receiver calls this for ``evt.EVT_N_EVENT_REPORT``, through `report_handler`.

    Returns
    -------
    bool
        Whether this node asked for it.
    """
    peers = {destination.name: destination for destination in plan.destinations}
    with contextlib.closing(plan.connect()) as journal, transaction(journal):
        committed, lost = apply_report(journal, report)
        for kind, result, deliveries in (("committed", "committed", committed), ("not-committed", "lost", lost)):
            for delivery in deliveries:
                count(journal, "unetx_commitments", delivery.destination, result)
                event = AuditEvent(kind, 8 if deliveries is lost else 0)
                _record(plan, peers.get(delivery.destination), delivery, event)
                _LOG.info("storage commitment: %s %s: %s", delivery.destination, delivery.sop_instance_uid, kind)
    return bool(committed or lost)


def _keep_serving(plan: OutboxPlan, destination: Destination, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with (
                contextlib.closing(plan.connect()) as journal,
                open_sender(destination) as sender,
            ):
                _Lane(plan, destination, journal, sender).serve(stop)
        except (UnetxError, sqlite3.Error, OSError) as error:
            _LOG.error("outbox of %s: %s", destination.name, error)
        except Exception as error:
            # The message of an unknown error may quote what it was raised for.
            _LOG.error("outbox of %s ended by a defect: %s", destination.name, type(error).__name__)
        else:
            return
        _count_restart(plan)
        stop.wait(_RESTART_S)


def _count_restart(plan: OutboxPlan) -> None:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(plan.connect()) as journal:
        count(journal, "unetx_worker_restarts", "outbox")


class _Lane:
    """The way to one destination, within its thread."""

    def __init__(
        self, plan: OutboxPlan, destination: Destination, journal: sqlite3.Connection, sender: Sender
    ) -> None:
        self._plan, self._destination, self._journal, self._sender = plan, destination, journal, sender
        self._absences = 0
        self._paused_until = 0.0
        self._commitment_at = 0.0
        self._random = random.Random()  # noqa: S311 - spreads load, protects nothing

    def serve(self, stop: threading.Event) -> None:
        """Send until told to stop."""
        reclaim_interrupted(self._journal, self._destination.name)
        idle_since = time.monotonic()
        while not stop.is_set():
            delivery = None
            if time.monotonic() >= self._paused_until or has_urgent(self._journal, self._destination.name):
                delivery = claim_delivery(self._journal, self._destination.name, time.time())
            if delivery is not None:
                self._deliver(delivery)
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_S:
                self._sender.close()
            self._ask_for_commitment()
            if delivery is None:
                self._wait_for_work(stop)

    def _wait_for_work(self, stop: threading.Event) -> None:
        """Wait until the journal changes or something is due; a look at its version costs no query."""
        version = self._version()
        due = next_due(self._journal, self._destination.name)
        wait_s = 0.0 if due is None else max(due - time.time(), self._paused_until - time.monotonic())
        until = time.monotonic() + (_IDLE_S if due is None else min(wait_s, _IDLE_S))
        while not stop.wait(_POLL_S) and self._version() == version and time.monotonic() < until:
            pass

    def _version(self) -> int:
        return int(self._journal.execute("PRAGMA data_version").fetchone()[0])

    def _deliver(self, delivery: Delivery) -> None:
        name = relative_name(delivery.result_name)
        started = time.monotonic()
        if name is None:
            outcome = Outcome(Verdict.REFUSED, "its name in the journal is unsafe")
        else:
            outcome = self._sender.send(self._plan.results / name)
        self._settle(delivery, outcome, time.monotonic() - started)
        self._absences = self._absences + 1 if outcome.verdict is Verdict.ABSENT else 0
        if self._absences:
            # The destination's own pause: what else waits for it would fare the same.
            pause_s = delay_before_retry(self._destination.retry, self._absences, self._random.random())
            self._paused_until = time.monotonic() + max(pause_s, outcome.not_before_s)

    def _settle(self, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        policy, journal, now = self._destination.retry, self._journal, time.time()
        last = delivery.attempts >= policy.max_attempts
        dead = outcome.verdict is Verdict.REFUSED or (outcome.verdict is not Verdict.STORED and last)
        with transaction(journal):
            count(journal, "unetx_delivery_attempts", delivery.destination, outcome.verdict.value)
            if outcome.verdict is Verdict.STORED:
                mark_stored(journal, delivery, now)
                observe(journal, "unetx_delivery_transfer_seconds", seconds, delivery.destination)
                self._observe_latency(delivery, now)
            elif dead:
                mark_dead(journal, delivery, outcome.detail)
            else:
                delay_s = delay_before_retry(policy, delivery.attempts, self._random.random())
                mark_again(journal, delivery, now + max(delay_s, outcome.not_before_s), outcome.detail)
            if outcome.verdict is Verdict.STORED or dead:
                # Before the change is made: nothing happens that is not recorded, and what is recorded twice because
                # of a crash in between was sent twice.
                event = AuditEvent("not-stored" if dead else "stored", 8 if dead else 0, detail=outcome.detail)
                _record(self._plan, self._destination, delivery, event)
        state = "stored" if outcome.verdict is Verdict.STORED else "dead" if dead else "waits"
        log = _LOG.info if outcome.verdict is Verdict.STORED else _LOG.warning
        log(
            *("%s: %s attempt %d, %s: %s", delivery.destination, delivery.sop_instance_uid),
            *(delivery.attempts, state, outcome.detail),
        )

    def _observe_latency(self, delivery: Delivery, now: float) -> None:
        row = self._journal.execute(
            "SELECT received_at FROM receipts WHERE receipt_id = ?", (delivery.receipt_id,)
        ).fetchone()
        if row is not None:
            observe(self._journal, "unetx_received_to_stored_seconds", max(0.0, now - row[0]), delivery.destination)

    def _ask_for_commitment(self) -> None:
        destination, now = self._destination, time.time()
        if not destination.commitment or time.monotonic() < self._commitment_at:
            return
        self._commitment_at = time.monotonic() + _COMMITMENT_INTERVAL_S
        uid = new_transaction_uid()
        # The row has the transaction before the request is sent: the report may come before the answer.
        asked = claim_for_commitment(
            self._journal, destination.name, uid, now=now, again_at=now + destination.commitment_timeout_s
        )
        if not asked:
            return
        handler = report_handler(lambda report: take_report(self._plan, report))
        outcome = request_commitment(destination, uid, asked, handler)
        if outcome.verdict is not Verdict.STORED:
            self._commitment_at += delay_before_retry(destination.retry, 1, self._random.random())
            postpone_commitment(self._journal, uid, time.time() + destination.retry.first_delay_s, outcome.detail)
            _LOG.warning("%s: storage commitment not asked for: %s", destination.name, outcome.detail)


def _record(plan: OutboxPlan, destination: Destination | None, delivery: Delivery, event: AuditEvent) -> None:
    if plan.audit is None:
        return
    peer = None if destination is None else destination.peer
    title, address = (peer.ae_title, peer.host) if isinstance(peer, DicomPeer) else (delivery.destination, "")
    plan.audit.append(
        replace(
            event,
            peer_ae_title=title,
            peer_address=address,
            sop_class_uid=delivery.sop_class_uid,
            sop_instance_uid=delivery.sop_instance_uid,
            subject=str(delivery.delivery_id),
        )
    )
