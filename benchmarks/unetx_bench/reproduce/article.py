"""What the article prints: a row of its table for each variant, and its claims in its own figures.

The data set is "NIH CXR 2017". The article names no device, batch size, image size, width or number of parameters,
so that its milliseconds are quoted beside measured ones and never divided by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from unetx_bench.ratios import DECISION_MARGIN
from unetx_bench.reproduce.verdicts import LEAST_IMAGES, LESS, SIGNIFICANCE

__all__ = ["BASELINE", "CLAIMS", "PRINTED", "PrintedClaim", "PrintedRow", "printed_error_share"]

#: The variant that every other one is compared with.
BASELINE: Final = "unet"


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A row of the printed table.

    Attributes
    ----------
    model : str
        What the article calls it.
    accuracy, accuracy_spread, miou, miou_spread : float
        Mean and what is printed behind the plus-minus sign, which the article does not explain.
    latency_ms : float
        Inference time, of an unnamed device.
    """

    model: str
    accuracy: float
    accuracy_spread: float
    miou: float
    miou_spread: float
    latency_ms: float


#: Variant -> its printed row. ``combined`` has none: the article only speaks of it.
PRINTED: Final[Mapping[str, PrintedRow]] = MappingProxyType(
    {
        "unet": PrintedRow("baseline U-Net", 0.763, 0.032, 0.715, 0.022, 11.4),
        "focal": PrintedRow("U-Net with focal loss", 0.800, 0.029, 0.766, 0.020, 10.7),
        "attention": PrintedRow("U-Net with Attention Block", 0.778, 0.028, 0.739, 0.018, 10.8),
        "dilated": PrintedRow("U-Net with dilation", 0.813, 0.028, 0.780, 0.018, 11.5),
        "crf": PrintedRow("U-Net with CRF", 0.816, 0.027, 0.783, 0.017, 12.6),
    }
)


@dataclass(frozen=True, slots=True)
class PrintedClaim:
    """One claim.

    Attributes
    ----------
    id : str
        C1 to C5.
    text : str
        The claim with its printed figures.
    remark : str
        What the article's own figures say about it.
    rule : str
        How it is decided here.
    """

    id: str
    text: str
    remark: str
    rule: str


_EFFECT_RULE: Final = (
    "Reproduced where the whole 95 % interval lies on the claimed side of no effect; not reproduced where it reaches "
    "no effect and excludes the printed effect, or lies on the other side; otherwise not decidable. "
)
_SHARE: Final = (
    "The printed effect is carried over as a share of the baseline's errors, because a baseline that is nearly right "
    "leaves less to gain. "
)
_FOUND: Final = (
    "A difference in accuracy counts where its interval excludes 0 and its p-value, adjusted for the number of "
    f"comparisons (Holm), is below {SIGNIFICANCE:g}; otherwise the interval is taken to hold 0. From fewer than "
    f"{LEAST_IMAGES} images, and from phantoms, no accuracy is claimed: not decidable. "
)
_FLOOR: Final = (
    f"A ratio counts as less below {LESS:.3f}, as two copies of one engine may differ by {100 * DECISION_MARGIN:.1f} "
    "%. Before it is judged, its interval is widened by the ratios that engines of one and the same graph show in "
    "the same run. "
)
_ALL: Final = "A claim of several parts is reproduced where all are, and not where one is not."

_ROWS: Final = (
    PrintedClaim(
        "C1",
        "Focal loss raises mean accuracy by 0.032 (95 % CI -0.011 to 0.075).",
        "The printed table's own difference is 0.037, and the printed interval contains 0.",
        "Difference in pixel accuracy, paired by image. "
        + _EFFECT_RULE
        + _FOUND
        + _SHARE
        + "Where several seeds were trained, every seed of one variant must also lie above every seed of the other.",
    ),
    PrintedClaim(
        "C2",
        "The Attention Block cuts inference time from 11.4 to 10.8 ms (95 % CI 10.4 to 11.2).",
        "A cut that is more than noise needs fewer operations, and not only fewer milliseconds.",
        "Two parts: operations counted from the graph, which must be fewer, and the ratio of times on every engine "
        "of this device, paired by round. " + _EFFECT_RULE + _FLOOR + _ALL,
    ),
    PrintedClaim(
        "C3",
        "U-Net with focal loss runs in 10.7 ms, the baseline in 11.4.",
        "A loss is used in training only: it changes weights and no inference graph.",
        "Answered by the graphs. Where the SHA-256 of both graphs without their weights is one and the same, both "
        "engines have the same work to do, any difference in milliseconds is noise, and the claim is not reproduced. "
        "Where the hashes differ, the networks differ in more than their loss, and it is not decidable. "
        "The measured ratios are shown and decide nothing.",
    ),
    PrintedClaim(
        "C4",
        "Dilation and CRF do not raise accuracy significantly, but raise speed.",
        "The printed table says the opposite on both counts: 0.050 and 0.053 more accuracy, 0.1 and 1.2 ms more.",
        "Four parts. Accuracy, for each of the two: reproduced where the paired interval excludes the gain of the "
        "printed table, not reproduced where it lies above 0, otherwise not decidable. "
        + _FOUND
        + _SHARE
        + "Speed, for each "
        "of the two, on every engine: reproduced where the whole interval of the ratio of times, the CRF step "
        "included, counts as less, not reproduced where none of it does, otherwise not decidable. " + _FLOOR + _ALL,
    ),
    PrintedClaim(
        "C5",
        "The techniques work together.",
        "The article prints no row for the combination.",
        "The combined variant's pixel accuracy against the baseline's and against each single technique's, paired by "
        "image: reproduced where every interval lies above 0, not reproduced where one reaches no higher than 0, "
        "otherwise not decidable. " + _FOUND.rstrip(),
    ),
)

#: Id -> claim.
CLAIMS: Final[Mapping[str, PrintedClaim]] = MappingProxyType({row.id: row for row in _ROWS})

# C1 prints its own figure; for the others the table's differences are all there is.
_PRINTED_GAIN: Final[Mapping[str, float]] = MappingProxyType({"focal": 0.032})


def printed_error_share(variant: str) -> float:
    """Return the share of the baseline's errors that a variant's printed gain in accuracy takes away.

    Parameters
    ----------
    variant : str
        A key of `PRINTED`.

    Returns
    -------
    float
        For ``focal``, 0.032 / (1 - 0.763) = 0.135.
    """
    gain = _PRINTED_GAIN.get(variant, PRINTED[variant].accuracy - PRINTED[BASELINE].accuracy)
    return gain / (1.0 - PRINTED[BASELINE].accuracy)
