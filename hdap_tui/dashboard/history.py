"""A device's latencies as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median

from hdap_tui.dashboard.widgets.chart import Plot, Series
from hdap_tui.figures import count
from hdap_tui.store.records import FleetSnapshot, Point, Span
from hdap_tui.store.rollups import SECONDS
from hdap_tui.store.values import moment

_GAP = 20
"""A gap is so many times as long as it usually takes from one measurement to the next."""
MARKS = 8
"""Changes of the model that are marked in the chart, the latest ones."""


def history_plot(
    points: Sequence[Point], snapshot: FleetSnapshot, baseline: float | None, now: datetime
) -> Plot:
    """Return the chart of the deployed models' latencies; probes are left out."""
    probes = {model.name for model in snapshot.models if model.kind == "probe"}
    timed = [(moment(p.at), p) for p in points if p.model not in probes or p.error]
    known = [((t - now).total_seconds(), p) for t, p in timed if t is not None]
    if not known:
        return Plot(title="latency, ms")
    unit, length = _unit(-known[0][0])
    xs = [seconds / length for seconds, _ in known]
    ys = [math.nan if p.error else p.median_ms for _, p in known]
    return Plot(
        title="latency, ms",
        notes=(_counted([p for _, p in known]),),
        series=(Series(*_with_gaps(xs, ys, [p.span for _, p in known], length)),),
        marks=tuple(_changes(xs, [p for _, p in known])[-MARKS:]),
        crosses=tuple(x for x, (_, p) in zip(xs, known, strict=True) if p.error),
        levels=((baseline, "baseline"),) if baseline is not None else (),
        x_text=lambda value: "now" if abs(value) < 1e-9 else f"{value:g} {unit}",
        least=0.1 * max((y for y in ys if math.isfinite(y)), default=1.0),
    )


def _with_gaps(
    xs: Sequence[float], ys: Sequence[float], spans: Sequence[Span], length: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the line interrupted where nothing was measured for much longer than usual."""
    if len(xs) < 3:
        return xs, ys
    usual = median(after - before for before, after in pairwise(xs))
    new_xs, new_ys = [xs[0]], [ys[0]]
    for before, after, y, span in zip(xs, xs[1:], ys[1:], spans, strict=False):
        # An hour or a day that was rolled up lasts until the next.
        if after - before > max(_GAP * usual, 2 * SECONDS[span] / length):
            new_xs.append((before + after) / 2)
            new_ys.append(math.nan)
        new_xs.append(after)
        new_ys.append(y)
    return new_xs, new_ys


def _counted(points: Sequence[Point]) -> str:
    """Return how many measurements are shown, and how many of the points are rolled up."""
    rolled = sum(bool(point.span) for point in points)
    measured = sum(point.count + point.failed if point.span else 1 for point in points)
    return count(measured, "measurement") + (
        f", the oldest as {count(rolled, 'point')}" if rolled else ""
    )


def _changes(xs: Sequence[float], points: Sequence[Point]) -> list[tuple[float, str]]:
    """Return where the model changed: its place and the first letter of "model"."""
    good = [(x, p.model) for x, p in zip(xs, points, strict=True) if p.model and not p.error]
    return [(x, "M") for (_, before), (x, after) in pairwise(good) if before != after]


def _unit(seconds: float) -> tuple[str, float]:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds > 2 * length:
            return unit, length
    return "s", 1.0
