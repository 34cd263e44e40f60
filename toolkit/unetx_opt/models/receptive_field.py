"""How far a pixel of the mask looks: the receptive field of a spec, exactly, without building the model."""

from __future__ import annotations

from typing import NamedTuple

from unetx_opt.specs import Gate, ModelSpec, Upsampling

__all__ = ["receptive_field_px"]


class _Interval(NamedTuple):
    """First and last position along one axis, at one resolution."""

    first: int
    last: int

    def widen(self, reach: int) -> _Interval:
        return _Interval(self.first - reach, self.last + reach)

    def join(self, other: _Interval) -> _Interval:
        return _Interval(min(self.first, other.first), max(self.last, other.last))

    def before_pooling(self) -> _Interval:
        return _Interval(2 * self.first, 2 * self.last + 1)

    def before_transposed(self) -> _Interval:
        return _Interval(self.first // 2, self.last // 2)

    def before_bilinear(self) -> _Interval:
        # Half-pixel centres: an even pixel reads the coarse one before and its own, an odd one its own and the next.
        return _Interval((self.first - 1) // 2, (self.last + 1) // 2)


def receptive_field_px(spec: ModelSpec) -> int:
    """Side of the square of input pixels that can change one logit.

    Parameters
    ----------
    spec : ModelSpec
        The model.

    Returns
    -------
    int
        Pixels of the network's input along one axis, from the first to the last that takes part: the largest over
        the logits, which differ by their place between the poolings. Borders of the image are not considered, and
        what pooling happens to select neither: it is what the graph can read, not what trained weights use.

    Notes
    -----
    The positions that a logit needs are followed back through the graph as intervals: a 3 x 3 convolution of rate
    ``d`` adds ``d`` on both sides, pooling doubles, upsampling halves, and where two paths meet the intervals of
    both are joined.
    """
    reached = (_image_interval(spec, position) for position in range(spec.divisor))
    return max(interval.last - interval.first + 1 for interval in reached)


def _image_interval(spec: ModelSpec, position: int) -> _Interval:
    needed = _Interval(position, position)
    skips = []
    for level in range(spec.poolings):
        merged = needed.widen(2)
        gated = level in spec.gate_levels
        window = gated and spec.gate is Gate.NEIGHBOURHOOD
        skips.append(merged.widen(spec.gate_window // 2) if window else merged)
        bilinear = spec.upsampling is Upsampling.BILINEAR or (gated and spec.gate is Gate.ADDITIVE)
        needed = merged.before_bilinear() if bilinear else merged.before_transposed()
    for stage in reversed(range(spec.depth + 1)):
        needed = needed.widen(sum(_stage_rates(spec, stage)))
        if 0 < stage <= spec.poolings:
            needed = needed.before_pooling().join(skips[stage - 1])
    return needed


def _stage_rates(spec: ModelSpec, stage: int) -> tuple[int, ...]:
    start = 2 * (stage - (spec.depth + 1 - len(spec.dilations) // 2))
    return (1, 1) if start < 0 else spec.dilations[start : start + 2]
