"""Errors of a measurement: members of the one family that the command line prints in one line."""

from __future__ import annotations

from unetx_opt.errors import UnetxError

__all__ = ["MeasurementError"]


class MeasurementError(UnetxError):
    """A measurement was asked for that cannot be made, or what was measured is not what was asked for."""
