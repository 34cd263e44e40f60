"""The error of everything that stands between a kernel and its result."""

from __future__ import annotations

__all__ = ["KernelError"]


class KernelError(RuntimeError):
    """A kernel cannot be compiled, or not be run on this host; the message says why and what to do."""
