"""JSON from an unknown hand: one object, no key twice, no NaN, no more values than a manifest needs."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from unetx_opt.errors import BundleError

__all__ = ["MAX_VALUES", "parse_object"]

#: A file of a few megabytes can hold millions of empty lists, each of which takes 64 bytes of memory.
MAX_VALUES: Final = 100_000


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    data : bytes
        UTF-8 text without a byte order mark.
    source : str
        What to call it in messages.

    Raises
    ------
    BundleError
        The text is not such an object, or has more than `MAX_VALUES` values.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise BundleError(f"{source} holds about {values} values, expected at most {MAX_VALUES}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except RecursionError:
        raise BundleError(f"{source} is nested too deeply to be a manifest") from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, integers of thousands of digits
        reason = str(error).splitlines()[0][:200]
        raise BundleError(f"{source} is not JSON as this program writes it: {reason}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{source} holds a JSON {type(value).__name__}, expected an object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take different ones of two equal keys: what was checked would not be what is used.
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} appears twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
