"""The process that segments: opens the bundle once, then answers tasks until its input ends.

One JSON document a line in either direction; see `unetx_opt.batch.worker` for the other end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unetx_opt.batch.outputs import OutputPlan, read_radiograph, segment_radiograph
from unetx_opt.batch.settings import BatchSettings, EngineFacts, Task, settings_from_json
from unetx_opt.errors import ImageError, UnetxError

if TYPE_CHECKING:
    from unetx_opt.dicom.sandbox import DicomReader
    from unetx_opt.runtime import Segmenter

__all__ = ["main"]


def main() -> None:
    """Serve the parent process on standard input and output."""
    # The terminal's interrupt reaches the whole group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: nobody wants the answer
        _serve(sys.stdin.buffer, _take_stdout())


def _take_stdout() -> BinaryIO:
    """Keep the pipe to the parent for answers: what native code prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    from unetx_opt.dicom.sandbox import DicomReader

    line = source.readline()
    if not line:  # the parent is gone
        return
    settings = settings_from_json(line)
    try:
        segmenter = _open(settings)
    except (UnetxError, OSError) as error:
        _send(sink, {"error": str(error)})
        return
    with segmenter, DicomReader() as reader:
        _send(sink, dataclasses.asdict(_facts(segmenter)))
        for line in source:
            task = json.loads(line)
            _send(sink, _answer(Task(Path(task["source"]), task["stem"]), settings.plan, segmenter, reader))


def _open(settings: BatchSettings) -> Segmenter:
    from unetx_opt.bundle.sign import read_verifying_key
    from unetx_opt.runtime import open_bundle

    trusted = tuple(read_verifying_key(path) for path in settings.public_keys) or None
    return open_bundle(settings.bundle, settings.target, settings.threads, trusted=trusted)


def _facts(segmenter: Segmenter) -> EngineFacts:
    return EngineFacts(
        target=segmenter.target,
        compute_dtype=segmenter.compute_dtype,
        bundle_sha256=segmenter.manifest_sha256,
        label_names=segmenter.label_names,
        passed_over=dict(segmenter.passed_over),
    )


def _answer(task: Task, plan: OutputPlan, segmenter: Segmenter, reader: DicomReader) -> dict[str, Any]:
    identity: dict[str, Any] = {}
    try:
        identity = _identify(task.source)
        image = read_radiograph(task.source, reader, plan)
        facts, files = segment_radiograph(segmenter, image, plan, task.stem)
    except (UnetxError, OSError) as error:
        return {"status": "failed", "reason": " ".join(str(error).split()), **identity}
    written = {
        key: {"name": file.path.relative_to(plan.folder).as_posix(), "bytes": file.size, "sha256": file.sha256}
        for key, file in files.items()
    }
    return {"status": "segmented", "reason": None, **facts, **identity, "files": written}


def _identify(source: Path) -> dict[str, Any]:
    """What tells whether an input is still the same, taken before it is read; nothing of what is no file."""
    if source.is_dir():
        raise ImageError(f"{source} is a folder that cannot be listed, or a link to one: pass the folder itself")
    if not source.is_file():
        return {}
    stat = source.stat()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"input_bytes": stat.st_size, "input_mtime_ns": stat.st_mtime_ns, "input_sha256": digest}


def _send(sink: BinaryIO, answer: dict[str, Any]) -> None:
    # Bare JSON has neither NaN nor infinity: what has one is a defect, and ends this process with a traceback.
    sink.write(json.dumps(answer, allow_nan=False, default=_plain).encode() + b"\n")
    sink.flush()


def _plain(value: Any) -> Any:
    return value.item()  # numpy's scalars


if __name__ == "__main__":
    main()
