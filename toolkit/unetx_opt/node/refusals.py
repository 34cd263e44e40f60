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

    def take(self, address: str) -> tuple[bool, int]:
        """Count one refusal.

        Returns
        -------
        tuple of bool and int
            Whether it is to be recorded, and how many of the address's period before were not.
        """
        now_s = self.clock()
        with self._lock:
            if address not in self._periods and len(self._periods) >= _MOST_ADDRESSES:
                self._forget_quiet(now_s)
            key = address if address in self._periods or len(self._periods) < _MOST_ADDRESSES else _OTHERS
            period = self._periods.setdefault(key, _Period(now_s))
            left_out = 0
            if now_s - period.begun_s >= PERIOD_S:
                left_out = _beyond(period)
                period.begun_s, period.count = now_s, 0
            period.count += 1
            return period.count <= MOST_RECORDED, left_out

    def left_out(self) -> dict[str, int]:
        """Return how many refusals of each address have not been recorded, and forget them; "" is all others."""
        with self._lock:
            found = {address: _beyond(period) for address, period in self._periods.items() if _beyond(period)}
            self._periods.clear()
        return found

    def _forget_quiet(self, now_s: float) -> None:
        """Make room: an address whose period is over with nothing left out has nothing to be told."""
        for address, period in list(self._periods.items()):
            if now_s - period.begun_s >= PERIOD_S and not _beyond(period):
                del self._periods[address]


def _beyond(period: _Period) -> int:
    return max(0, period.count - MOST_RECORDED)
