"""A worker: reads an image in a sandbox, segments it, writes its results, and queues them."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import unetx_opt
from unetx_opt.errors import ImageError, UnetxError
from unetx_opt.files import scratch_directory, write_file
from unetx_opt.imaging.files import render_overlay
from unetx_opt.node.audit import AuditEvent, AuditTrail
from unetx_opt.node.config import NodeConfig
from unetx_opt.node.deliveries import QueuedResult, transaction
from unetx_opt.node.journal import RESULTS_FOLDER, SPOOL_FOLDER, THUMBNAILS_FOLDER
from unetx_opt.node.measures import count, observe
from unetx_opt.node.receipts import Receipt, claim_receipt, mark_done, mark_failed, mark_hindered, mark_refused
from unetx_opt.node.rehearsal import make_rehearsal_image
from unetx_opt.node.thumbnails import write_thumbnail

if TYPE_CHECKING:
    from unetx_opt.dicom.read import DicomImage
    from unetx_opt.dicom.sandbox import DicomReader
    from unetx_opt.runtime import Segmentation, Segmenter

__all__ = ["Worker", "WorkerParts"]

_LOG: Final = logging.getLogger(__name__)
#: How soon a receipt is seen; a look at the version of the journal takes some microseconds.
_POLL_S: Final = 0.005
_RETRY_S: Final = 5.0
_HINDERED_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What a worker works with.

    Attributes
    ----------
    number : int
        Of the worker, from 0 on.
    config : NodeConfig
        Of the node.
    journal : sqlite3.Connection
        Its own.
    segmenter : Segmenter
        The bundle, open.
    reader : DicomReader
        Its own.
    """

    number: int
    config: NodeConfig
    journal: sqlite3.Connection
    segmenter: Segmenter
    reader: DicomReader


class Worker:
    """Works on one image after the other.

    Parameters
    ----------
    parts : WorkerParts
        What it works with.
    """

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._audit = AuditTrail(parts.config.state)

    def rehearse(self) -> None:
        """Take an image of nobody through everything: the first real one shall not wait for what loads late.

        Raises
        ------
        UnetxError
            Results of the configured kinds cannot be made here at all.
        """
        from unetx_opt.dicom.read import ReadOptions

        config = self._parts.config
        with scratch_directory(config.state / "rehearsal") as folder:
            path = folder / "image.dcm"
            path.write_bytes(make_rehearsal_image())
            image = self._parts.reader.read(path, ReadOptions(force=True, with_source=True))
        segmentation = self._parts.segmenter.segment(image.pixels, image.spacing_mm, pixel_aspect=image.pixel_aspect)
        for data in self._encode(image, segmentation).values():
            read_identity(data)
        if config.http.page:
            render_overlay(image.pixels, segmentation.labels)

    def work(self, stop: threading.Event) -> None:
        """Work until told to stop; an image that was begun is finished."""
        journal = self._parts.journal
        while not stop.is_set():
            receipt = claim_receipt(journal, self._parts.number, time.time())
            if receipt is not None:
                self._finish(receipt)
                continue
            version, until = self._version(), time.monotonic() + 1.0
            while not stop.wait(_POLL_S) and self._version() == version and time.monotonic() < until:
                pass

    def _version(self) -> int:
        return int(self._parts.journal.execute("PRAGMA data_version").fetchone()[0])

    def _finish(self, receipt: Receipt) -> None:
        journal, started = self._parts.journal, time.monotonic()
        try:
            results, timings_ms = self._make_results(receipt)
        except ImageError as error:
            self._refuse(receipt, str(error))
            return
        except (UnetxError, OSError) as error:
            mark_hindered(journal, receipt, str(error), again_at=time.time() + _HINDERED_S)
            _LOG.error("%s waits: %s", receipt.receipt_id, error)
            return
        except Exception as error:
            # The message of an unknown error may quote what it was raised for.
            self._fail(receipt, f"a defect: {type(error).__name__}")
            return
        with transaction(journal):
            queued = [(result, self._destinations(result.kind)) for result in results]
            mark_done(journal, receipt, queued, time.time())
            observe(journal, "unetx_processing_seconds", time.monotonic() - started)
        stages = ", ".join(f"{stage} {took_ms:.0f}" for stage, took_ms in timings_ms.items())
        _LOG.info("segmented %s in %.0f ms: %s", receipt.receipt_id, (time.monotonic() - started) * 1e3, stages)

    def _make_results(self, receipt: Receipt) -> tuple[list[QueuedResult], dict[str, float]]:
        """Give the results, whose files are on the disk, and how long the stages took, in ms."""
        from unetx_opt.dicom.read import ReadOptions

        parts, config = self._parts, self._parts.config
        begun = time.monotonic()
        options = ReadOptions(force=config.work.force, with_source=True)
        image = parts.reader.read(config.state / SPOOL_FOLDER / receipt.spool_name, options)
        if image.sop_instance_uid != receipt.sop_instance_uid:
            raise ImageError("its SOP Instance UID is not the one that it was sent under")
        timings_ms = {"read": (time.monotonic() - begun) * 1e3}
        segmentation = parts.segmenter.segment(image.pixels, image.spacing_mm, pixel_aspect=image.pixel_aspect)
        timings_ms |= {stage: took_ms for stage, took_ms in segmentation.timings_ms.items() if stage != "total"}
        begun = time.monotonic()
        results = []
        for kind, data in self._encode(image, segmentation).items():
            name = f"{receipt.receipt_id}.{kind}.dcm"
            write_file(config.state / RESULTS_FOLDER / name, data)
            results.append(QueuedResult(receipt.receipt_id, kind, *read_identity(data), name))
        if config.http.page:
            thumbnails = config.state / THUMBNAILS_FOLDER
            write_thumbnail(thumbnails, receipt.receipt_id, image.pixels, segmentation.labels)
        timings_ms["results"] = (time.monotonic() - begun) * 1e3
        return results, timings_ms

    def _encode(self, image: DicomImage, segmentation: Segmentation) -> Mapping[str, bytes]:
        from unetx_opt.dicom.results.request import Algorithm, Findings, ResultOptions
        from unetx_opt.dicom.results.write import encode_results

        config = self._parts.config
        kind = config.results.segmentation_kind
        findings = Findings(
            labels=segmentation.labels,
            label_names=segmentation.label_names,
            spacing_mm=image.spacing_mm,
            probabilities_khw=segmentation.probabilities if kind == "FRACTIONAL" else None,
            overlay_rgb=render_overlay(image.pixels, segmentation.labels) if "sc" in config.kinds else None,
        )
        algorithm = Algorithm(unetx_opt.__version__, self._parts.segmenter.manifest_sha256, udi=config.results.udi)
        # The same image is the same result, however often it is sent or worked on: no archive stores it twice.
        options = ResultOptions(segmentation_kind=kind, stable_uids=True)
        return encode_results(config.kinds, image.source_json or "", findings, algorithm, options)

    def _destinations(self, kind: str) -> list[str]:
        return [one.name for one in self._parts.config.destination if kind in one.results]

    def _refuse(self, receipt: Receipt, reason: str) -> None:
        journal = self._parts.journal
        reason = reason.replace(str(self._parts.config.state / SPOOL_FOLDER / receipt.spool_name), "it")
        with transaction(journal):
            mark_refused(journal, receipt, reason, time.time())
            count(journal, "unetx_refusals", "image")
            self._audit.append(
                AuditEvent(
                    "refused",
                    4,
                    sop_class_uid=receipt.sop_class_uid,
                    sop_instance_uid=receipt.sop_instance_uid,
                    subject=receipt.receipt_id,
                    detail=reason,
                )
            )
        _LOG.warning("refused %s: %s", receipt.receipt_id, reason)

    def _fail(self, receipt: Receipt, reason: str) -> None:
        config = self._parts.config
        again_at = time.time() + _RETRY_S * receipt.attempts
        state = mark_failed(self._parts.journal, receipt, reason, attempts=config.work.attempts, again_at=again_at)
        _LOG.error("%s failed at attempt %d, %s: %s", receipt.receipt_id, receipt.attempts, state, reason)


def read_identity(data: bytes) -> tuple[str, str]:
    """SOP Class and SOP Instance UID of a result that was just made."""
    import io

    from unetx_opt.optional import require

    pydicom: Any = require("pydicom", purpose="queueing results")
    dataset = pydicom.dcmread(
        io.BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"]
    )
    return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)
