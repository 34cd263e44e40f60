"""The corpus by number: every file follows from a seed and its place, so that one can be made again alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from unetx_bench.bad_input.hostile import HOSTILE
from unetx_bench.bad_input.mutations import MUTATIONS
from unetx_bench.bad_input.valid import VALID, valid_bytes

__all__ = ["BadFile", "make_file"]

#: Every so many files are damaged twice.
_TWICE: Final = 5


@dataclass(frozen=True, slots=True)
class BadFile:
    """One file.

    Attributes
    ----------
    name : str
        Its place, what it was and what was done to it: unique, and a file name.
    kind : str
        Name of the hostile case, or of the mutation.
    data : bytes
        All of it.
    """

    name: str
    kind: str
    data: bytes


def make_file(place: int, seed: int = 0) -> BadFile:
    """Make one file: the hostile cases come first, then mutations of every valid file in turn."""
    hostile = list(HOSTILE)
    if place < len(hostile):
        return BadFile(f"{place:06}-{hostile[place]}.dcm", hostile[place], HOSTILE[hostile[place]]())
    random = np.random.default_rng([seed, place])
    valid = list(VALID)[place % len(VALID)]
    mutation = list(MUTATIONS)[int(random.integers(len(MUTATIONS)))]
    data = MUTATIONS[mutation](valid_bytes(valid), random)
    if place % _TWICE == 0:
        data = MUTATIONS["flip-bytes"](data, random) if len(data) > 200 else data
    return BadFile(f"{place:06}-{valid}-{mutation}.dcm", mutation, data)
