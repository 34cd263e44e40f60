"""What is checked of a file's bytes before anything parses them: how large it becomes, how many parts it has.

A megabyte can inflate to a gigabyte, and a few bytes each can ask for millions of elements or items; parsing those
takes far longer than counting them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np

from unetx_opt.errors import ImageError

__all__ = ["MAX_FILE_BYTES", "check_deflated", "check_items", "count_elements"]

#: Of a file, and of what a deflated one inflates to.
MAX_FILE_BYTES: Final = 1 << 28
#: Radiographs have some hundred elements, private ones included, and some dozen items.
_MAX_ELEMENTS: Final = 1 << 16
_MAX_ITEMS: Final = 1 << 16
_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little endian, big endian
_ITEM_GROUPS: Final = (0xFFFE, 0xFEFF)
_CHUNK: Final = 1 << 16


def check_items(data: bytes) -> None:
    """Count what could begin an item, in all sequences together.

    Raises
    ------
    ImageError
        There are more than any radiograph has.
    """
    if _most_items(data) > _MAX_ITEMS and sum(data.count(tag) for tag in _ITEM_TAGS) > _MAX_ITEMS:
        raise ImageError(f"it has more than {_MAX_ITEMS} items in sequences")


def _most_items(data: bytes) -> int:
    """Count the first halves of item tags, at even and at odd places: a bound that takes less time than the tags."""
    count = 0
    for first in range(min(2, len(data))):
        words = np.frombuffer(data, "<u2", (len(data) - first) // 2, first)
        for start in range(0, len(words), _CHUNK):
            chunk = words[start : start + _CHUNK]
            count += sum(int(np.count_nonzero(chunk == half)) for half in _ITEM_GROUPS)
    return count


def check_deflated(data: bytes) -> None:
    """Inflate without keeping anything, and count.

    Raises
    ------
    ImageError
        It inflates to more than `MAX_FILE_BYTES`, or as `check_items`.
    zlib.error
        It is damaged.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = items = 0
    for start in range(0, len(data), _CHUNK):
        waiting = data[start : start + _CHUNK]
        while waiting and not inflater.eof:
            inflated = inflater.decompress(waiting, _CHUNK)
            waiting = inflater.unconsumed_tail
            total += len(inflated)
            items += sum(inflated.count(tag) for tag in _ITEM_TAGS)
            if total > MAX_FILE_BYTES:
                raise ImageError(f"it inflates to more than {MAX_FILE_BYTES} bytes")
            if items > _MAX_ITEMS:
                raise ImageError(f"it has more than {_MAX_ITEMS} items in sequences")


def count_elements() -> Callable[[int, str | None, int], bool]:
    """Make a condition to stop reading at that never stops, but raises an `ImageError` at too many elements."""
    count = itertools.count(1)

    def count_one(tag: int, vr: str | None, length: int) -> bool:
        if next(count) > _MAX_ELEMENTS:
            raise ImageError(f"its header has more than {_MAX_ELEMENTS} elements")
        return False

    return count_one
