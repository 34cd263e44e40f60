"""Structured logs: one JSON document a line on standard error, without anything of a patient."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from unetx_opt.node.dicom_sender import quiet_dicom_logs

__all__ = ["configure_logs"]

_OWN: Final = "unetx_opt"


class _JsonFormatter(logging.Formatter):
    """Time, level, part and message; tracebacks quote values, and are left out."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """Make one line of a record."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "part": self._part, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=True)


def configure_logs(part: str) -> None:
    """Log what this program says itself; libraries quote what they read, and are silent.

    Parameters
    ----------
    part : str
        Of the node: what this process does.
    """
    quiet_dicom_logs()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(part))
    logger = logging.getLogger(_OWN)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]
