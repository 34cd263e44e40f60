"""What a search has measured, kept beside the output, so that an interrupted search goes on where it was."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from unetx_opt.files import write_file

__all__ = ["SearchState", "search_folder"]

_SCHEMA: Final = 1


def search_folder(output: Path) -> Path:
    """Folder of the search for a bundle: ``<output>.search`` beside it."""
    return output.with_name(f"{output.name}.search")


class SearchState:
    """Measurements by key, written after each; the search itself is a function of them.

    A search that is started again runs the same steps and finds every measurement that was made before, so that
    nothing about its position has to be stored.

    Parameters
    ----------
    path : pathlib.Path or None
        JSON file; None keeps nothing.
    fingerprint : str
        Identity of everything that the measurements depend on; a file with another one is not read.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._found: dict[str, Any] = {} if path is None else _read(path, fingerprint)
        self.resumed = len(self._found)

    def recall(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Give the measurement of a key; make and store it where there is none.

        Parameters
        ----------
        key : str
            What is measured.
        measure : callable
            Gives plain JSON types; floats that are not finite are kept.
        """
        if key not in self._found:
            self._found[key] = dict(measure())
            self._write()
        found: Mapping[str, Any] = self._found[key]
        return found

    def knows(self, key: str) -> bool:
        """Whether a key was measured before."""
        return key in self._found

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema_version": _SCHEMA, "fingerprint": self._fingerprint, "found": _encode(self._found)}
        write_file(self._path, json.dumps(content, allow_nan=False).encode())

    @staticmethod
    def discard(folder: Path) -> None:
        """Remove a search's folder; what is not there is no error."""
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path, fingerprint: str) -> dict[str, Any]:
    try:
        content = _decode(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}  # measured again: a state file saves time and decides nothing
    expected = {"schema_version": _SCHEMA, "fingerprint": fingerprint}
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in expected.items()):
        return {}
    found = content.get("found")
    return found if isinstance(found, dict) else {}


def _encode(value: Any) -> Any:
    """JSON has no number for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
