"""How long a whole node takes from a received radiograph to its result in the PACS, beside the engine alone.

    python -m unetx_bench.node_latency BUNDLE -o node-latency.json

starts ``unetx-opt serve`` and an Orthanc on loopback, sends CRs of 1955 x 1841 pixels one at a time, and reads from
the node's own journal when each was received (before it is acknowledged) and when Orthanc had its segmentation, and
from its log what its stages took, the engine's call among them. After each send, while the node rests, the engine is
timed in this process on the same image, too.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

import unetx_opt
from unetx_bench.environment import capture_environment, capture_state, state_changes
from unetx_bench.errors import MeasurementError
from unetx_bench.quantiles import quantile_interval
from unetx_opt.files import scratch_directory, write_file
from unetx_opt.node.journal import JOURNAL_NAME
from unetx_opt.optional import require
from unetx_opt.runtime import Segmenter, open_bundle

__all__ = ["SHAPE", "main", "make_radiograph", "measure"]

#: Rows and columns of the image.
SHAPE: Final = (1955, 1841)
WARM_UPS: Final = 3
_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.02
_TIMES: Final = ("received_to_stored_ms", "send_ms", "engine_ms")
_CR: Final = "1.2.840.10008.5.1.4.1.1.1"


def make_radiograph(index: int, shape: tuple[int, int] = SHAPE) -> Any:
    """Make a CR in 12 of 16 bits, as a pydicom dataset; of no patient.

    Parameters
    ----------
    index : int
        Of the phantom, and in the UIDs.
    shape : tuple of int
        Rows and columns.
    """
    from unetx_opt.imaging.phantom import chest_phantom

    pydicom = require("pydicom", purpose="making a radiograph")
    grey = chest_phantom(seed=index)[0]
    rows, columns = (np.arange(length) * side // length for length, side in zip(shape, grey.shape, strict=True))
    pixels = (grey[np.ix_(rows, columns)].astype(np.uint32) * 4095 // int(grey.max())).astype(np.uint16)
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = _CR, f"1.2.826.0.1.3680043.10.543.1.{index}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        "1.2.826.0.1.3680043.10.543.2",
        "1.2.826.0.1.3680043.10.543.3",
    )
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Phantom", "phantom", "CR"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = "", "", "20260101", "120000"
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientOrientation = "CHEST", "PA", ["L", "F"]
    dataset.PixelSpacing, dataset.PhotometricInterpretation = [0.2, 0.2], "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.Rows, dataset.Columns = shape
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        _CR,
        dataset.SOPInstanceUID,
    )
    return dataset


def measure(bundle: Path, folder: Path, sends: int) -> dict[str, Any]:
    """Send radiographs through a node, one at a time.

    Parameters
    ----------
    bundle : pathlib.Path
        What the node segments with.
    folder : pathlib.Path
        For the state of both programs.
    sends : int
        That count, after `WARM_UPS` that do not.

    Returns
    -------
    dict
        Milliseconds of every send: from received to stored, from the begin of the send to its acknowledgement, of the
        engine alone, and of the stages within the node; the engine's target and arithmetic, and versions.

    Raises
    ------
    MeasurementError
        A program is not there, does not start, or does not store a result in time.
    """
    found: dict[str, Any] = {"received_to_stored_ms": [], "send_ms": [], "engine_ms": []}
    port, pacs_port, pacs_http = (_free_port() for _ in range(3))
    with (
        open_bundle(bundle) as segmenter,
        _orthanc(folder, pacs_port, pacs_http, port),
        _node(bundle, folder, port, pacs_port),
    ):
        found |= {"target": segmenter.target, "arithmetic": segmenter.compute_dtype}
        found["versions"] = {"unetx-opt": unetx_opt.__version__, "orthanc": _pacs_version(pacs_http)}
        segmenter.warm_up()
        for index in range(-WARM_UPS, sends):
            dataset = make_radiograph(index + WARM_UPS)
            sent_ms = _send(dataset, port)
            stored = functools.partial(_stored_ms, folder, str(dataset.SOPInstanceUID))
            stored_ms = _wait_for(stored, "the result is stored")
            engine_ms = _engine_ms(segmenter, dataset)
            if index >= 0:
                for name, value in zip(found, (stored_ms, sent_ms, engine_ms), strict=False):
                    found[name].append(value)
        found["node_stages_ms"] = _read_stages(folder / "node.log")[-sends:]
    return found


def _read_stages(log: Path) -> list[dict[str, float]]:
    """Read what the stages of every image took, in the order in which they were done."""
    messages = (json.loads(line)["message"] for line in log.read_text().splitlines() if line.startswith("{"))
    rows = (message.partition(" ms: ")[2] for message in messages if message.startswith("segmented "))
    return [{name: float(took_ms) for name, took_ms in re.findall(r"(\w+) (\d+)", row)} for row in rows]


@contextlib.contextmanager
def _orthanc(folder: Path, port: int, http_port: int, node_port: int) -> Iterator[None]:
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise MeasurementError("Orthanc is not installed: apt-get install orthanc")
    settings = {
        "StorageDirectory": str(folder / "pacs"),
        "IndexDirectory": str(folder / "pacs"),
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "PACS",
        "DicomPort": port,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"NODE": {"AET": "NODE", "Host": "127.0.0.1", "Port": node_port}},
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings), encoding="ascii")
    with _program([program, str(path)], folder / "orthanc.log"):
        _wait_for(lambda: _pacs_version(http_port), "Orthanc answers")
        yield


@contextlib.contextmanager
def _node(bundle: Path, folder: Path, port: int, pacs_port: int) -> Iterator[None]:
    config = folder / "node.toml"
    config.write_text(
        f'state = "state"\nae_title = "NODE"\nport = {port}\ncalling_ae_titles = ["CR1"]\n'
        f'peer_addresses = ["127.0.0.1"]\n[[destination]]\nname = "pacs"\nresults = ["seg"]\n'
        f'dicom = {{ host = "127.0.0.1", port = {pacs_port}, ae_title = "PACS", calling_ae_title = "NODE" }}\n',
        encoding="ascii",
    )
    command = [sys.executable, "-m", "unetx_opt.cli.main", "serve", str(bundle), "--config", str(config)]
    with _program(command, folder / "node.log"):
        log = folder / "node.log"
        _wait_for(lambda: '"message": "NODE listens' in log.read_text(errors="replace"), "the node listens")
        yield


@contextlib.contextmanager
def _program(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _send(dataset: Any, port: int) -> float:
    pynetdicom = require("pynetdicom", purpose="sending a radiograph")
    entity = pynetdicom.AE("CR1")
    entity.add_requested_context(_CR, dataset.file_meta.TransferSyntaxUID)
    begin = time.perf_counter()
    association = entity.associate("127.0.0.1", port, ae_title="NODE")
    if not association.is_established:
        raise MeasurementError("the node took no association: see its log")
    status = association.send_c_store(dataset)
    took_ms = 1e3 * (time.perf_counter() - begin)
    association.release()
    if getattr(status, "Status", None) != 0:
        raise MeasurementError(f"the node answered {status or 'nothing'}, expected status 0")
    return took_ms


def _stored_ms(folder: Path, uid: str) -> float | None:
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'state' / JOURNAL_NAME}?mode=ro", uri=True)) as journal:
        row = journal.execute(
            "SELECT stored_at - received_at FROM receipts JOIN deliveries USING (receipt_id) "
            "WHERE receipts.sop_instance_uid = ? AND stored_at IS NOT NULL",
            (uid,),
        ).fetchone()
    return None if row is None else 1e3 * float(row[0])


def _engine_ms(segmenter: Segmenter, dataset: Any) -> float:
    from unetx_opt.dicom.read import read_dicom_bytes

    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    image = read_dicom_bytes(buffer.getvalue())
    return float(segmenter.segment(image.pixels, image.spacing_mm).timings_ms["infer"])


def _pacs_version(http_port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/system", timeout=5) as answer:
            return str(json.load(answer)["Version"])
    except (urllib.error.URLError, OSError):
        return None


def _wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(_POLL_S)
    raise MeasurementError(f"not within {_PATIENCE_S:.0f} s: {what}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file.")
@click.option("--sends", default=20, show_default=True, type=click.IntRange(1), help="Radiographs that count.")
def main(bundle: Path, output: Path, sends: int) -> None:
    """Time a node with BUNDLE from a received radiograph to its stored result."""
    before = capture_state()
    with scratch_directory(output.parent / f"{output.name}.work") as folder:
        found = measure(bundle.resolve(), folder, sends)
    in_node = [stages["infer"] for stages in found["node_stages_ms"]]
    over = {
        name: [all_ - own for all_, own in zip(found["received_to_stored_ms"], engine, strict=True)]
        for name, engine in (("over_engine_ms", found["engine_ms"]), ("over_engine_in_node_ms", in_node))
    }
    environment = capture_environment()
    rows = {name: found[name] for name in _TIMES} | {"engine_in_node_ms": in_node} | over
    summary = {name: _summarize(samples) for name, samples in rows.items()}
    record = {
        "what": f"a CR of {SHAPE[0]} x {SHAPE[1]} pixels, from received to stored in Orthanc, and the engine alone",
        "environment": asdict(environment),
        "state_before": asdict(before),
        "disturbances": state_changes(before, environment.state),
        "samples": found,
        "summary": summary,
    }
    write_file(output, json.dumps(record, indent=1).encode())
    for name, row in summary.items():
        click.echo(f"{name}: median {row['median']:.0f}, most {row['most']:.0f}, 95 % interval {row['median_ci95']}")
    for disturbance in record["disturbances"]:
        click.echo(f"disturbed: {disturbance}")


def _summarize(samples: list[float]) -> dict[str, Any]:
    """Median, its interval (None where there are too few samples for one), least and most."""
    interval = quantile_interval(samples)
    return {
        "n": len(samples),
        "median": statistics.median(samples),
        "median_ci95": None if interval is None else [interval.low, interval.high],
        "least": min(samples),
        "most": max(samples),
    }


if __name__ == "__main__":
    main()
