"""Write the published schema of ``report.json``: ``python -m unetx_bench.schema``."""

from __future__ import annotations

import json
from pathlib import Path

from unetx_bench.report import report_schema
from unetx_opt.files import write_file

__all__ = ["SCHEMA_PATH", "main", "schema_bytes"]

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


def schema_bytes() -> bytes:
    """Make the text of the file."""
    return (json.dumps(report_schema(), indent=1) + "\n").encode("ascii")


def main() -> None:
    """Write the file."""
    write_file(SCHEMA_PATH, schema_bytes())


if __name__ == "__main__":
    main()
