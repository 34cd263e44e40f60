"""Writes the published JSON schema of the manifest anew; run it after a change of the manifest's fields."""

from __future__ import annotations

import json
from pathlib import Path

import unetx_opt.bundle.manifest as manifest_module

SCHEMA = Path(manifest_module.__file__).with_name("manifest.schema.json")


def schema_text() -> str:
    return json.dumps(manifest_module.manifest_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
