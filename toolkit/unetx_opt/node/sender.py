"""The table of ways to send, and one open way to one destination."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from unetx_opt.lifetime import Closing
from unetx_opt.node.destinations import Destination, DicomPeer
from unetx_opt.node.outcome import Outcome

__all__ = ["Sender", "open_sender"]


class Sender(Closing):
    """A connection that is made when something is sent, and kept for what follows."""

    @abstractmethod
    def send(self, path: Path) -> Outcome:
        """Send one DICOM file, and say what became of it; a peer's failure is an outcome and no exception."""


def open_sender(destination: Destination) -> Sender:
    """Make the sender of a destination; nothing is connected yet.

    Raises
    ------
    SpecError
        A file of its TLS settings is unusable.
    MissingPackageError
        The package that speaks its protocol is not installed.
    """
    if isinstance(destination.peer, DicomPeer):
        from unetx_opt.node.dicom_sender import DicomSender

        return DicomSender(destination.peer, timeout_s=destination.timeout_s)
    from unetx_opt.node.stow_sender import StowSender

    return StowSender(destination.peer, timeout_s=destination.timeout_s)
