"""Writes the published JSON schema of table.json anew; run it after a change of its fields."""

from __future__ import annotations

import json
from pathlib import Path

import unetx_bench.reproduce.record as record_module

if __name__ == "__main__":
    schema = Path(record_module.__file__).with_name(record_module.SCHEMA_NAME)
    schema.write_text(json.dumps(record_module.table_schema(), indent=1) + "\n", encoding="utf-8")
