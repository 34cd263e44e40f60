"""Which refusals are recorded one by one: a peer that knocks without end must not fill the disk with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["MOST_RECORDED", "PERIOD_S", "Refusals"]

#: Refusals of one address that are recorded within a period.
MOST_RECORDED: Final = 10
PERIOD_S: Final = 60.0
#: Addresses that are told apart; a flood may come from any number of them.
_MOST_ADDRESSES: Final = 1024
#: All others together.
_OTHERS: Final = ""


@dataclass(slots=True)
class _Period:
    begun_s: float
    count: int = 0


@dataclass(frozen=True, slots=True)
class Refusals:
    """Counts refusals of every address; safe in several threads.

    Attributes
    ----------
    clock : callable
        Gives seconds that never go back.
    """

    clock: Callable[[], float] = time.monotonic
    _periods: dict[str, _Period] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, address: str) -> tuple[bool, dict[str, int]]:
        """Count one refusal.

        Returns
        -------
        tuple of bool and dict
            Whether it is to be recorded; and of every address whose period has ended, how many were not ("" is all
            others).
        """
        now_s = self.clock()
        with self._lock:
            ended = [key for key, period in self._periods.items() if now_s - period.begun_s >= PERIOD_S]
            beyond = {key: _beyond(self._periods.pop(key)) for key in ended}
            is_known = address in self._periods or len(self._periods) < _MOST_ADDRESSES
            period = self._periods.setdefault(address if is_known else _OTHERS, _Period(now_s))
            period.count += 1
            return period.count <= MOST_RECORDED, {key: number for key, number in beyond.items() if number}

    def left_out(self) -> dict[str, int]:
        """Return how many refusals of each address have not been recorded, and forget them; "" is all others."""
        with self._lock:
            found = {address: _beyond(period) for address, period in self._periods.items() if _beyond(period)}
            self._periods.clear()
        return found


def _beyond(period: _Period) -> int:
    return max(0, period.count - MOST_RECORDED)
