"""The channel multiple at which a device's convolutions run fastest, from widths that were timed.

Kernels work on blocks of channels (16 with AVX-512, 8 with AVX2): latency is a staircase over the
width, and a width off the block may even cost more than the next full one. A network that is to be
made narrower should therefore stop at multiples. Which, is decided by what rounding up costs: the
policy "round every width up to a multiple of m" is tried on the measured curve for each m, and the
largest m wins whose mean latency is as good as that of the best, for it keeps the most channels at
no cost. Without any preference every rounding costs time, and the answer is 1.

    >>> curve = {width: 0.1 * -(-width // 16) for width in WIDTHS}  # a staircase of 16
    >>> find([curve] * 3).multiple
    16
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.latency import t_quantile

MULTIPLES = (1, 2, 4, 8, 16, 32)
_FIRST, _LAST = 33, 48
"""Widths that are rounded up: every remainder of 16 once, and none so small that calling the
operators is what takes the time."""
WIDTHS = (_FIRST - 1, *range(_FIRST, _LAST + 1), 64)
"""Widths to be timed: those, where they are rounded to, and where the trend begins."""
FREE = 0.25
"""A larger multiple counts as free where it costs less than this share of what the added channels
would cost on a smooth curve."""
DOUBT = 0.10
"""Half of an interval (in log latency) beyond which a curve may be too noisy to tell; wider ones do
where the next larger multiple costs more than twice as much."""


class TooNoisyError(ValueError):
    """The blocks contradict each other: nothing can be told from them."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """At which multiple of channels convolutions run fastest, and why."""

    multiple: int
    """1: there is no preference."""
    gain_percent: float
    """What widths that are no multiples take longer than multiples of their size would: the mean
    over the widths, 0 where there is no preference."""
    doubt_percent: float
    """Half the 95 % interval of what separates it from the next larger one, in per cent."""
    cost_percent: Mapping[int, float]
    """Of each multiple: how much longer the widths take, rounded up to it, than with the best."""
    latency_ms: Mapping[int, float]
    """Median latency of each width."""


def find(blocks: Sequence[Mapping[int, float]]) -> Alignment:
    """Return the multiple that the latencies of several blocks tell, each with all `WIDTHS`.

    Args:
        blocks: Latency in ms by width; at least two blocks, better more, in which all widths were
            timed in turn, so that what disturbs one disturbs all.

    Raises:
        ValueError: fewer than two blocks, or one that lacks a width.
        TooNoisyError: nothing can be told.
    """
    if len(blocks) < 2:
        raise ValueError("at least two blocks are needed to tell steps from noise")
    for block in blocks:
        wrong = [w for w in WIDTHS if not 0 < block.get(w, math.nan) < math.inf]
        if wrong:
            raise ValueError(f"the block lacks a latency at {wrong[0]} channels")
    logs = np.log([[block[width] for width in WIDTHS] for block in blocks])
    middle = np.median(logs, axis=0)
    costs = {m: float(_rounded_up(middle, m).mean()) for m in MULTIPLES}
    best = min(costs.values())
    multiple = max(m for m, cost in costs.items() if cost <= best + FREE * _growth(middle, m))
    larger = min((cost for m, cost in costs.items() if m > multiple), default=math.inf)
    doubt = _doubt(_calmed(logs), multiple)
    if doubt > max(DOUBT, (larger - costs[multiple]) / 2):
        told = f"the blocks differ by {_percent(doubt):.0f} %"
        raise TooNoisyError(f"{told}; measure again when the device is idle")
    return Alignment(
        multiple=multiple,
        gain_percent=max(0.0, _percent(_excess(middle, multiple))),
        doubt_percent=_percent(doubt),
        cost_percent={m: _percent(cost - best) for m, cost in costs.items()},
        latency_ms={w: float(ms) for w, ms in zip(WIDTHS, np.exp(middle), strict=True)},
    )


def rounded_up(width: int, multiple: int) -> int:
    """Return the next multiple that is not below a width."""
    return -(-width // multiple) * multiple


def _rounded_up(logs: NDArray[np.float64], multiple: int) -> NDArray[np.float64]:
    """Return the log latency of each width, were it rounded up."""
    places = [WIDTHS.index(rounded_up(w, multiple)) for w in range(_FIRST, _LAST + 1)]
    return logs[places]


def _calmed(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the blocks with single spikes cut, which the medians do not see either."""
    middle = np.median(logs, axis=0)
    apart = logs - middle
    apart -= np.median(apart, axis=1, keepdims=True)
    limit = 4 * 1.4826 * np.median(np.abs(apart))
    calmed: NDArray[np.float64] = middle + np.clip(apart, -limit, limit)
    return calmed


def _growth(logs: NDArray[np.float64], multiple: int) -> float:
    """Return what rounding up would cost (in log latency) if only the channels' number counted."""
    slope = (logs[-1] - logs[0]) / math.log(WIDTHS[-1] / WIDTHS[0])
    added = [math.log(rounded_up(w, multiple) / w) for w in range(_FIRST, _LAST + 1)]
    return max(0.0, float(slope)) * sum(added) / len(added)


def _doubt(logs: NDArray[np.float64], multiple: int) -> float:
    """Return half the 95 % interval of what rounding up to a multiple costs, or to the next."""
    other = 2 * multiple if multiple < MULTIPLES[-1] else 1
    differences = [
        _rounded_up(block, multiple).mean() - _rounded_up(block, other).mean() for block in logs
    ]
    n = len(differences)
    return float(t_quantile(n - 1) * np.std(differences, ddof=1) / math.sqrt(n))


def _excess(logs: NDArray[np.float64], multiple: int) -> float:
    """Return by how much widths that are no multiples lie above the line through the multiples."""
    widths = np.array(WIDTHS)
    is_multiple = widths % multiple == 0
    if is_multiple.all():
        return 0.0
    line = np.interp(np.log(widths), np.log(widths[is_multiple]), logs[is_multiple])
    return float((logs - line)[~is_multiple].mean())


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(min(log_ratio, 50.0))
