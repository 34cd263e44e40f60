"""The process in which DICOM files are read: takes its limits, then serves; see `unetx_opt.dicom.sandbox`."""

from __future__ import annotations

import contextlib
import sys

from unetx_opt.dicom.sandbox import serve
from unetx_opt.errors import MissingPackageError
from unetx_opt.optional import require

__all__ = ["limit_process", "main"]


def limit_process(memory_mib: int) -> None:
    """Limit this process for good: its address space, no file written, no memory dump.

    Nothing is limited on a system without resource limits (Windows), where only the parent's clock watches.
    """
    try:
        import resource
    except ImportError:
        return
    for kind, value in (
        (resource.RLIMIT_AS, memory_mib * 1024**2),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))


def main() -> None:
    """Serve the parent process on standard input and output."""
    # Loaded before memory is limited: a library that cannot be loaded later would look like one that is missing.
    for module in ("pydicom", "pydicom.pixels"):
        with contextlib.suppress(MissingPackageError):
            require(module, purpose="reading a DICOM file")
    limit_process(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
