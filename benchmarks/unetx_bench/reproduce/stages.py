"""Results of finished stages, kept beside the output so that a run that was stopped does not begin anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_opt.files import write_file

__all__ = ["WORK_NAME", "Workplace"]

#: Folder of the stage results, the bundles and the trained weights inside an output.
WORK_NAME: Final = "work"


@dataclass(frozen=True, slots=True)
class Workplace:
    """A folder of stage results.

    Attributes
    ----------
    root : pathlib.Path
        The folder; made when something is kept.
    """

    root: Path

    def recall(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return a kept result that was made under the same key, or make and keep it.

        Parameters
        ----------
        name : str
            Of the file, without its ending.
        key : mapping
            Everything that the result depends on, as JSON types.
        make : callable
            Gives the result, as JSON types.

        Returns
        -------
        object
            The result as JSON gives it back, whether it was kept or made. A file that is damaged counts as none.
        """
        path = self.root / f"{name}.json"
        wanted = json.loads(json.dumps(key, sort_keys=True))
        kept = _read(path)
        if kept is not None and kept["key"] == wanted:
            return kept["value"]
        text = json.dumps({"key": wanted, "value": make()}, allow_nan=False)
        write_file(path, text.encode("utf-8"))
        return json.loads(text)["value"]

    def discard(self) -> None:
        """Remove every kept result; a file that `recall` did not write stays."""
        for path in self.root.glob("*.json"):
            if _read(path) is not None:
                path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Read a kept result, or None where the file is none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) and set(kept) == {"key", "value"} else None
