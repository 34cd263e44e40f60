"""The one family of errors that the toolkit raises on purpose.

Each message is one line that says what went wrong, what was found, what was expected and what to do next.
The command line prints it as it is and exits with the class's ``exit_code``; anything else that escapes is a
defect and shows a traceback.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "EngineError",
    "ExportError",
    "GateError",
    "ImageError",
    "MissingPackageError",
    "SpecError",
    "UnetxError",
]


class UnetxError(Exception):
    """Base of every error that a user can cause or mend.

    Attributes
    ----------
    exit_code : int
        What the command line exits with: 1, or 3 for a gate that fails.
    """

    exit_code: int = 1


class MissingPackageError(UnetxError):
    """An optional package is not installed; the message names the extra that brings it."""


class SpecError(UnetxError):
    """A model, input or build specification is out of range or contradicts itself."""


class CheckpointError(UnetxError):
    """A checkpoint is unreadable, hostile, or does not fit the model it is meant for."""


class DataError(UnetxError):
    """A data folder, an image list or a mask is missing or malformed."""


class ImageError(UnetxError):
    """An input image cannot be read as a chest radiograph."""


class ExportError(UnetxError):
    """A graph or an engine could not be made, or is not what was asked for."""


class EngineError(UnetxError):
    """An engine cannot be opened or run on this host."""


class BundleError(UnetxError):
    """A bundle is incomplete, altered, unsafe, or of an unknown schema version."""


class GateError(UnetxError):
    """A drift gate fails, or too few images were given to decide it."""

    exit_code = 3
