"""A journal, results, and an outbox of them in threads, for tests of what comes after segmentation."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from unetx_opt.node.audit import AuditTrail
from unetx_opt.node.deliveries import DELIVERIES_SCHEMA, count_deliveries
from unetx_opt.node.measures import MEASURES_SCHEMA, read_measures
from unetx_opt.node.outbox import OutboxPlan, run_outbox

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RECEIPTS_SCHEMA = """
CREATE TABLE receipts (
    receipt_id TEXT PRIMARY KEY, received_at REAL, calling_ae TEXT, peer_address TEXT, sop_class_uid TEXT,
    sop_instance_uid TEXT, transfer_syntax_uid TEXT, spool_name TEXT, size_bytes INTEGER, sha256 TEXT, state TEXT,
    attempts INTEGER DEFAULT 0, not_before REAL DEFAULT 0, reason TEXT, finished_at REAL
);
"""


class JournalledNode:
    """A journal, results, and an outbox of them in threads."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.sqlite"
        self.results = folder / "results"
        self.results.mkdir()
        self.trail = AuditTrail(folder)
        self._template = template
        with contextlib.closing(self.connect()) as journal:
            journal.executescript(RECEIPTS_SCHEMA + DELIVERIES_SCHEMA + MEASURES_SCHEMA)

    def connect(self):
        journal = sqlite3.connect(self.journal, timeout=30, isolation_level=None)
        journal.execute("PRAGMA journal_mode = WAL")
        return journal

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
                for name in destinations:
                    journal.execute(
                        "INSERT INTO deliveries (receipt_id, kind, sop_class_uid, sop_instance_uid, result_name, "
                        "destination, state) VALUES (?, 'seg', ?, ?, ?, ?, ?)",
                        (f"r{index}", SEG, uid, f"{index}.seg.dcm", name, state),
                    )
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
