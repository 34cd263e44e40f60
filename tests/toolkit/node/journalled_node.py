"""A journal, results, and an outbox of them in threads, for tests of what comes after segmentation."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from unetx_opt.node.audit import AuditTrail
from unetx_opt.node.deliveries import QueuedResult, count_deliveries, queue_result
from unetx_opt.node.journal import RESULTS_FOLDER, connect_journal, create_journal
from unetx_opt.node.measures import read_measures
from unetx_opt.node.outbox import OutboxPlan, run_outbox

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


class JournalledNode:
    """A journal, results, and an outbox of them in threads."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.journal = create_journal(folder)
        self.results = folder / RESULTS_FOLDER
        self.results.mkdir()
        self.trail = AuditTrail(folder)
        self._template = template

    def connect(self):
        return connect_journal(self.journal)

    def queue(self, count, destinations=("pacs",), start=0, state="waiting"):
        """Make results and queue them for every destination; return their UIDs."""
        uids = []
        with contextlib.closing(self.connect()) as journal:
            for index in range(start, start + count):
                uid = f"2.25.{1000 + index}"
                dataset = pydicom.dcmread(self._template)
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
                dataset.save_as(self.results / f"{index}.seg.dcm")
                uids.append(uid)
                self.receive(journal, f"r{index}")
                queue_result(journal, QueuedResult(f"r{index}", "seg", SEG, uid, f"{index}.seg.dcm"), destinations)
                journal.execute("UPDATE deliveries SET state = ? WHERE receipt_id = ?", (state, f"r{index}"))
        return uids

    def receive(self, journal, receipt_id, state="done", age_s=0.0, **more):
        """Write the row of a received image."""
        now = time.time()
        values = {
            "receipt_id": receipt_id,
            "received_at": now - age_s - 1.5,
            "finished_at": now - age_s if state == "done" else None,
            "calling_ae": "CR1",
            "peer_address": "127.0.0.1",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1",
            "sop_instance_uid": f"1.2.3.{receipt_id[1:]}",
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "spool_name": f"{receipt_id}.dcm",
            "size_bytes": 1000,
            "sha256": "0" * 64,
            "state": state,
        } | more
        columns = ", ".join(values)
        marks = ", ".join("?" * len(values))
        journal.execute(f"INSERT INTO receipts ({columns}) VALUES ({marks})", tuple(values.values()))

    def states(self):
        with contextlib.closing(self.connect()) as journal:
            return dict(count_deliveries(journal))

    def rows(self):
        with contextlib.closing(self.connect()) as journal:
            return journal.execute("SELECT sop_instance_uid, state, attempts, error FROM deliveries").fetchall()

    def measures(self):
        with contextlib.closing(self.connect()) as journal:
            return read_measures(journal)

    @contextlib.contextmanager
    def outbox(self, *destinations):
        plan = OutboxPlan(self.connect, self.results, destinations, self.trail)
        stop = threading.Event()
        thread = threading.Thread(target=run_outbox, args=(plan, stop))
        thread.start()
        try:
            yield plan
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()
