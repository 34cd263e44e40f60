"""What became of one transfer, and what the answers of peers mean for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Outcome", "Verdict", "judge_status"]


class Verdict(Enum):
    """What is to be done with a result now.

    Attributes
    ----------
    STORED
        The peer has it.
    AGAIN
        The peer did not take it this time.
    ABSENT
        The peer was not reached or spoke to nobody: whatever waits for it waits, too.
    REFUSED
        The peer will never take this object.
    """

    STORED = "stored"
    AGAIN = "again"
    ABSENT = "absent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One transfer's end.

    Attributes
    ----------
    verdict : Verdict
        What is to be done now.
    detail : str
        Why, without a value of the object: nothing of a patient.
    not_before_s : float
        The peer asked to be left alone this long.
    """

    verdict: Verdict
    detail: str = ""
    not_before_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    last: int
    verdict: Verdict
    meaning: str


#: Status of C-STORE (PS3.7 C, PS3.4 B.2.3) and Failure Reason of STOW-RS (PS3.18 I.2.2), most particular first.
_STATUSES: Final = (
    _Range(0x0000, 0x0000, Verdict.STORED, "stored"),
    # Stored by an earlier attempt whose answer was lost: the same UID is the same object.
    _Range(0x0111, 0x0111, Verdict.STORED, "stored before"),
    _Range(0xB000, 0xBFFF, Verdict.STORED, "stored with a warning"),
    _Range(0xA700, 0xA7FF, Verdict.AGAIN, "out of resources"),
    _Range(0xA900, 0xA9FF, Verdict.REFUSED, "data set does not match its SOP class"),
    _Range(0xC000, 0xCFFF, Verdict.REFUSED, "cannot understand"),
    _Range(0x0122, 0x0122, Verdict.REFUSED, "SOP class not supported"),
    _Range(0x0117, 0x0117, Verdict.REFUSED, "invalid SOP instance"),
    _Range(0x0106, 0x0106, Verdict.REFUSED, "invalid attribute value"),
    _Range(0x0120, 0x0121, Verdict.REFUSED, "attribute missing"),
    _Range(0x0211, 0x0212, Verdict.REFUSED, "operation not recognised"),
    # Rights are of the peer's configuration, which a person mends while results wait.
    _Range(0x0124, 0x0124, Verdict.AGAIN, "not authorised"),
    _Range(0x0110, 0x0110, Verdict.AGAIN, "processing failure"),
)


def judge_status(status: int) -> Outcome:
    """Turn a status into an outcome; one that no standard names is tried again.

    Parameters
    ----------
    status : int
        Of C-STORE, or a Failure Reason.
    """
    for row in _STATUSES:
        if row.first <= status <= row.last:
            return Outcome(row.verdict, f"status 0x{status:04X}, {row.meaning}")
    return Outcome(Verdict.AGAIN, f"status 0x{status:04X}")
