"""What samples of a latency say, and how surely: pure functions of arrays.

A sample is one call's duration in milliseconds. Samples are kept in the order in which they were taken, because calls
that follow one another are disturbed by the same things: an interval that takes them as independent is too narrow.

- `unetx_bench.quantiles`: medians and percentiles of one contender.
- `unetx_bench.ratios`: two contenders that took turns.
"""

from __future__ import annotations

from unetx_bench.estimates import Estimate
from unetx_bench.quantiles import dependence_time, minimum_count, quantile_interval
from unetx_bench.ratios import (
    DECISION_CONFIDENCE,
    DECISION_MARGIN,
    Comparison,
    ratio_interval,
    same_or_different,
)

__all__ = [
    "DECISION_CONFIDENCE",
    "DECISION_MARGIN",
    "Comparison",
    "Estimate",
    "dependence_time",
    "minimum_count",
    "quantile_interval",
    "ratio_interval",
    "same_or_different",
]
