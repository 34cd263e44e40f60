"""The inner loops as machine code: compiled at first use, kept on disk for the next process.

Compiled code is written beside the source like Python's own byte code, or to the user's cache folder where that
is read-only; ``NUMBA_CACHE_DIR`` names another place. Entries appear by renaming, and are keyed by the source
file's time and size, the processor and the compiler's version, so processes may share them. Like byte code they
are executed as found: keep the folder writable to its owner only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from unetx_opt.imaging.dense_crf import loops
from unetx_opt.optional import require

__all__ = ["Loops", "compiled_loops"]

# No assumption about NaN or infinity is among these: the inputs are checked, but a wrong guess would be silent.
_MATHEMATICS = frozenset({"contract", "reassoc", "nsz", "arcp"})

Loop = Callable[..., None]


class Loops(NamedTuple):
    """The functions of `unetx_opt.imaging.dense_crf.loops`, under their names."""

    tanh_half: Loop
    smooth_rows: Loop
    smooth_columns: Loop
    splat: Loop
    add_slice: Loop
    blur_levels: Loop
    blur_nodes: Loop


@functools.cache
def compiled_loops() -> Loops:
    """Return the compiled loops; each is compiled, or read from disk, when it is first called.

    Raises
    ------
    MissingPackageError
        The compiler is not installed.
    """
    numba = require("numba", purpose="the CRF's grid backend")

    def compiled(name: str) -> Loop:
        settings = {"nogil": True, "error_model": "numpy", "fastmath": set(_MATHEMATICS)}
        source = getattr(loops, name)
        try:
            loop: Loop = numba.njit(cache=True, **settings)(source)
        except RuntimeError:  # no folder can be written to: compile in every process
            loop = numba.njit(**settings)(source)
        return loop

    return Loops(*(compiled(name) for name in Loops._fields))
