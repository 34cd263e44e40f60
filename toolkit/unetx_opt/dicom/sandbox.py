"""DICOM files read in a process of their own: what crashes, hangs or eats memory there ends there.

Decoders are native code fed with bytes from anywhere. The reader process gets the bytes of a file on its standard
input and answers with the picture on its standard output; it needs no file, no network and no environment. Limits are
its own (memory, files: resource limits, on systems that have them) and its parent's (wall-clock time, on every
system). The process serves many files; one that breaks it costs a restart.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

import unetx_opt
from unetx_opt.dicom.read import DicomImage, ReadOptions, read_bytes, read_dicom_bytes
from unetx_opt.errors import ImageError, MissingPackageError, UnetxError
from unetx_opt.lifetime import Closing

__all__ = ["DicomReader", "ReaderLimits", "serve"]

MODULE: Final = "unetx_opt.dicom.reader_process"
_SIZE: Final = struct.Struct("<Q")
_REQUEST: Final = struct.Struct("<Q??")  # bytes of the file, and the fields of ReadOptions
_MAX_ANSWER_BYTES: Final = 1 << 21
_ERRORS: Final = {kind.__name__: kind for kind in (ImageError, MissingPackageError)}
_HEADER: Final = tuple(field.name for field in fields(DicomImage) if field.name != "pixels")


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """When reading a file is given up.

    Attributes
    ----------
    timeout_s : float
        Wall-clock seconds for one file, with the start of the process where one is needed.
    memory_mib : int
        Address space of the process in MiB, where the system can limit it (not on Windows).
    """

    timeout_s: float = 30.0
    memory_mib: int = 3072


class DicomReader(Closing):
    """Reads DICOM files in a process that it starts, watches and replaces; a context manager.

    `read` may be called from several threads: one file is read at a time.

    Parameters
    ----------
    limits : ReaderLimits
        For every file.
    """

    def __init__(self, limits: ReaderLimits | None = None) -> None:
        self.limits = limits or ReaderLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._closed = False

    def read(self, path: Path, options: ReadOptions | None = None) -> DicomImage:
        """Read one file as `unetx_opt.dicom.read.read_dicom` does.

        Raises
        ------
        ImageError
            As `read_dicom`; or reading it crashed, or reached a limit.
        MissingPackageError
            pydicom or a codec is not installed.
        UnetxError
            The reader is closed.
        """
        data = read_bytes(path)
        with self._turn:
            if self._closed:
                raise UnetxError("the DICOM reader is closed: open another")
            try:
                return self._ask(data, options or ReadOptions())
            except ImageError as error:
                raise ImageError(f"{path} cannot be used: {error}") from None

    def warm_up(self) -> None:
        """Start the process before the first file needs it; does not wait until it is ready.

        Raises
        ------
        UnetxError
            The reader is closed.
        """
        with self._turn:
            if self._closed:
                raise UnetxError("the DICOM reader is closed: open another")
            self._running()

    @property
    def process_id(self) -> int | None:
        """Of the process that reads; None where none runs."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """End the process."""
        self._closed = True
        process = self._process
        if process is not None:  # a read that waits for it then ends, too
            process.kill()
        with self._turn:
            self._discard()

    def _ask(self, data: bytes, options: ReadOptions) -> DicomImage:
        with self._watched() as (process, timed_out):
            try:
                return _exchange(process, data, options)
            except (OSError, EOFError, ValueError) as error:
                process.kill()
                code = process.wait()
                self._discard()
                if self._closed:
                    raise UnetxError("the DICOM reader was closed while it read: open another") from error
                self._running()  # so that the next file finds it warm
                if timed_out.is_set():
                    raise ImageError(f"reading it took more than {self.limits.timeout_s:g} s") from error
                reason = f"signal {-code}" if code < 0 else f"code {code}"
                raise ImageError(f"it broke the process that read it ({reason}): the file is damaged") from error

    @contextlib.contextmanager
    def _watched(self) -> Iterator[tuple[subprocess.Popen[bytes], threading.Event]]:
        process = self._running()
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        watchdog = threading.Timer(self.limits.timeout_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield process, timed_out
        finally:
            watchdog.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._discard()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, str(self.limits.memory_mib)],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Native decoders print what they like there, and it may quote the header.
            stderr=subprocess.DEVNULL,
        )
        return self._process

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


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer files with pictures until the source ends; what the reader process does."""
    while request := source.read(_REQUEST.size):
        size, force, with_source = _REQUEST.unpack(request)
        data = source.read(size)
        try:
            image = read_dicom_bytes(data, ReadOptions(force=force, with_source=with_source))
        except UnetxError as error:
            _send(sink, {"error": type(error).__name__, "message": str(error)}, b"")
            continue
        header = {name: getattr(image, name) for name in _HEADER}
        pixels = np.ascontiguousarray(image.pixels, dtype="<f4")
        _send(sink, {"header": header, "shape": pixels.shape}, pixels.data.cast("B"))


def _exchange(process: subprocess.Popen[bytes], data: bytes, options: ReadOptions) -> DicomImage:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(_REQUEST.pack(len(data), options.force, options.with_source))
    process.stdin.write(data)
    process.stdin.flush()
    (size,) = _SIZE.unpack(_read(process.stdout, _SIZE.size))
    if size > _MAX_ANSWER_BYTES:
        raise ValueError(f"an answer of {size} bytes")
    answer = json.loads(_read(process.stdout, size))
    if "error" in answer:
        raise _ERRORS.get(answer["error"], ImageError)(str(answer["message"]))
    height, width = (int(side) for side in answer["shape"])
    pixels = np.empty((height, width), dtype="<f4")
    _read_into(process.stdout, pixels.data.cast("B"))
    header: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in answer["header"].items()
    }
    return DicomImage(pixels=pixels.astype(np.float32, copy=False), **header)


def _send(sink: BinaryIO, answer: dict[str, Any], pixels: bytes | memoryview) -> None:
    text = json.dumps(answer).encode()
    sink.write(_SIZE.pack(len(text)) + text)
    sink.write(pixels)
    sink.flush()


def _read(source: Any, count: int) -> bytes:
    data: bytes = source.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _read_into(source: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = source.readinto(view[done:])
        if not count:
            raise EOFError
        done += count


def _environment() -> dict[str, str]:
    # Threads of a linear algebra package that nobody uses there would count against the address space.
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    root = str(Path(unetx_opt.__path__[0]).parent)
    return {**kept, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
