"""Finding changes: in a whole series at once, and (re-exported) round by round as they happen."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.fits import RAMP_LEAST, STRETCH, Kind, gains, jumps, misfit
from engine.fleet.limits import DriftSettings
from engine.fleet.monitor import Change, Cleared, Direction, Monitor
from engine.fleet.noise import deviation, noise_of, wanders
from engine.fleet.peers import fleet_round
from engine.fleet.rounds import Clearance, FleetMonitor, Signal, Standing

__all__ = [
    "Change",
    "Clearance",
    "Cleared",
    "Direction",
    "DriftSettings",
    "FleetMonitor",
    "Kind",
    "Monitor",
    "Signal",
    "Standing",
    "detect",
    "fleet_round",
]

Array = NDArray[np.float64]


_LEAST = 8
"""A shorter series tells nothing."""
_NATS = 5.0
"""How much likelier (natural logarithm) another onset must be than that of the chart."""
_EFFECT = 1.0
"""Smallest change, in standard deviations, of a series that knows no per cent."""
_SLOPE = 2.0
"""The same for the slope of a series that wanders."""
_TRENDING = 6.0
"""Standard errors by which a slope must differ from 0 to be a ramp from the start."""
_SURE = 4.0
"""Standard errors by which the levels of two neighbouring segments must differ."""


def detect(values: ArrayLike, settings: DriftSettings | None = None) -> list[Change]:
    """Find the changes of a whole series.

    The charts of :class:`Monitor` run over it; after a change the baseline is learned anew, and
    a short series has a short baseline (a quarter of it, 60 samples at most). Then each change
    is looked at again from both sides: where it began, whether it is a step or a ramp, and
    whether it is one at all. Correlated noise raises the limits; a series that only wanders
    (population, a price) has no level to leave, so there a change is one of its slope, a ramp.

    Args:
        values: the series, any numbers; where all are positive, their logarithms are used.
        settings: limits of the charts; per cent rules hold for positive series only.

    Returns:
        The changes in the order of their onset.

    Raises:
        ValueError: a value is not finite, or the series is not one-dimensional.
    """
    series = np.asarray(values, dtype=float)
    if series.ndim != 1:
        raise ValueError(f"a series has one dimension, this one has {series.ndim}")
    if not np.all(np.isfinite(series)):
        raise ValueError("a series must hold finite numbers only; leave missing samples out")
    if len(series) < _LEAST:
        return []
    limits = settings or DriftSettings()
    relative = bool(np.all(series > 0))
    # Without a sign to forbid it logarithms; else a scale that no sum of squares overflows.
    series = np.log(series) if relative else series / max(float(np.abs(series).max()), 1e-300)
    if not wanders(series):
        return sorted(_Search(series, limits, relative).changes(), key=_by_onset)
    return _slopes(series, limits, relative)


def _by_onset(change: Change) -> int:
    return change.onset_index


def _slopes(series: Array, limits: DriftSettings, relative: bool) -> list[Change]:
    """Find the ramps of a series that has a slope rather than a level."""
    search = _Search(np.diff(series), limits, relative=False, least=_SLOPE)
    found = sorted((c for c in search.changes() if c.kind == "step"), key=_by_onset)
    edges = [0, *(c.onset_index for c in found), len(series) - 1]
    levels = [float(np.median(np.diff(series)[a:b])) for a, b in pairwise(edges) if a < b]
    if len(levels) != len(found) + 1:
        return []
    ramps = []
    if abs(levels[0]) * math.sqrt(edges[1]) > _TRENDING * search.error:
        direction: Direction = "up" if levels[0] > 0 else "down"
        index = min(limits.baseline, edges[1])
        size = float(series[edges[1]] - series[0])
        ramps.append(Change(index, 0, "ramp", direction, size, float(series[0]), relative))
    for place, change in enumerate(found):
        old, new = levels[place : place + 2]
        # A ramp begins where the slope grows or turns, not where it lessens.
        if abs(new) > 1.5 * abs(old) or old * new < 0:
            start, end = edges[place + 1 : place + 3]
            ramps.append(
                replace(
                    change,
                    index=change.index + 1,
                    kind="ramp",
                    direction="up" if new > 0 else "down",
                    size=float(series[end] - series[start]),
                    relative=relative,
                )
            )
    return ramps


class _Search:
    """The changes of one series."""

    def __init__(
        self, series: Array, settings: DriftSettings, relative: bool, least: float = _EFFECT
    ) -> None:
        self._x = series
        self._relative = relative
        self._sigma, rho = noise_of(series)
        self._whiteness = 2 * (1 - rho)
        self._inflation = (1 + rho) / (1 - rho)
        baseline = min(settings.baseline, max(6, len(series) // 4))
        floor = settings.sigma_floor if relative else max(0.005 * float(np.ptp(series)), 1e-300)
        self._sigma = max(self._sigma, floor)
        # Without per cent, what counts as small is told by the noise.
        gate = math.log1p(settings.effect_percent / 100)
        self.error = 1.2533 * self._sigma * math.sqrt(self._inflation)
        """Standard error of a median, times the root of the samples in it."""
        self._gate = gate if relative else least * self._sigma
        self._settings = replace(
            settings,
            baseline=baseline,
            minimum=min(settings.minimum, max(5, baseline // 3)),
            h=settings.h * self._inflation,
            scale_h=settings.scale_h * self._inflation,
            jump_z=settings.jump_z * math.sqrt(self._inflation),
            sigma_floor=floor,
        )

    def changes(self) -> list[Change]:
        kept = self._sure(self._joined(self._moved(self._found())))
        return [self._sized(kept, i) for i in range(len(kept))]

    def _found(self) -> list[Change]:
        """Run the charts, learning anew after each change."""
        found: list[Change] = []
        start = 0
        while start < len(self._x):
            sigma = self._local_sigma(start)
            monitor = Monitor(self._settings, self._relative, doubting=False)
            for index in range(start, len(self._x)):
                told = monitor.update(float(self._x[index]), sigma, len(self._x))
                if isinstance(told, Change):
                    onset = told.onset_index + start
                    found.append(replace(told, index=index, onset_index=onset))
                    start = index if told.kind == "ramp" else max(onset, start + 1)
                    break
            else:
                break
        return found

    def _local_sigma(self, start: int) -> float:
        """Return the noise from here on: after a change of spread it is another."""
        local = self._x[start : start + max(2 * self._settings.baseline, 21)]
        if len(local) < _LEAST:
            return self._sigma
        own = deviation(local) / math.sqrt(self._whiteness)
        weight = len(local) / (len(local) + 10)
        return math.sqrt(weight * own**2 + (1 - weight) * self._sigma**2)

    def _moved(self, found: list[Change]) -> list[Change]:
        """Look at each change from both sides: kind and onset."""
        moved: list[Change] = []
        for position, change in enumerate(found):
            first = moved[-1].onset_index if moved else 0
            last = found[position + 1].onset_index if position + 1 < len(found) else len(self._x)
            last = min(max(last, change.index + 1), 2 * change.index - change.onset_index + 10)
            fitted = self._fitted(change, min(first, change.onset_index), last)
            moved.append(replace(fitted, index=max(fitted.index, fitted.onset_index)))
        return sorted(moved, key=_by_onset)

    def _fitted(self, change: Change, first: int, last: int) -> Change:
        """Tell step or ramp, and since when, by the samples from first to last."""
        if change.kind == "spread" or self._turbulent(change):
            return replace(change, kind="spread", direction="up", size=None)
        z = np.clip((self._x[first:last] - change.baseline) / self._sigma, -9.0, 9.0)
        steps, ramps = gains(z)
        margin = 2 * _NATS * self._inflation
        if ramps.max() > steps.max() + margin and not jumps(z, int(steps.argmax())):
            return replace(change, kind="ramp", onset_index=first + int(ramps.argmax()))
        onset, best = change.onset_index - first, int(steps.argmax())
        # The chart knows when it began, unless another start is much likelier.
        if 0 <= onset < len(z) and steps[onset] > steps[best] - margin:
            best = onset
        return replace(change, kind="step", onset_index=first + best)

    def _turbulent(self, change: Change) -> bool:
        """Tell whether it is the noise that changed, and with it the level by chance."""
        after = self._x[change.onset_index :][: 2 * self._settings.baseline]
        if len(after) < 15:
            return False
        noise = deviation(after) / math.sqrt(self._whiteness)
        gap = abs(float(np.median(after)) - change.baseline)
        before = self._local_sigma(max(change.onset_index - 2 * self._settings.baseline, 0))
        level = gap > _SURE * self.error * noise / self._sigma / math.sqrt(len(after))
        return bool(noise > 1.8 * before and not level)

    def _sure(self, found: list[Change]) -> list[Change]:
        """Leave out changes whose two sides do not differ after all, the least likely first."""
        kept = list(found)
        while kept:
            doubts = [self._doubt(kept, i) for i in range(len(kept))]
            worst = int(np.argmin(doubts))
            if doubts[worst] >= 1:
                break
            del kept[worst]
        return kept

    def _doubt(self, kept: list[Change], position: int) -> float:
        """Return how far a change is above what is needed of it; below 1 is too little."""
        change = kept[position]
        if change.kind == "spread":
            return math.inf
        before, after = self._sides(kept, position)
        blip = len(after) < RAMP_LEAST and position + 1 < len(kept)
        if blip or not len(before) or not len(after):
            return 0.0
        if change.kind == "ramp":
            after = after[-STRETCH:]
        gap = abs(float(np.median(after) - np.median(before)))
        error = self.error * math.sqrt(1 / len(before) + 1 / len(after))
        return gap / max(_SURE * error, self._gate)

    def _sides(self, kept: list[Change], position: int) -> tuple[Array, Array]:
        here = kept[position].onset_index
        first = kept[position - 1].onset_index if position else 0
        last = kept[position + 1].onset_index if position + 1 < len(kept) else len(self._x)
        return self._x[first:here], self._x[here:last]

    def _joined(self, found: list[Change]) -> list[Change]:
        """Count steps that one line explains as well as one ramp, and the end of a ramp as none."""
        kept = list(found)
        position = 0
        while position + 1 < len(kept):
            ramp = self._as_ramp(kept, position)
            if ramp is not None:
                kept[position : position + 2] = [ramp]
                position = max(position - 1, 0)
            elif kept[position].kind == "ramp" and self._plateau(kept, position + 1):
                del kept[position + 1]
            else:
                position += 1
        return kept

    def _as_ramp(self, kept: list[Change], position: int) -> Change | None:
        """Return the one ramp that two changes are, if they are."""
        one, two = kept[position : position + 2]
        if one.direction != two.direction or "spread" in (one.kind, two.kind):
            return None
        before, own = self._sides(kept, position)
        # What follows may have come to rest: only what led to the second is looked at.
        after = self._sides(kept, position + 1)[1][: max(two.index - two.onset_index, STRETCH)]
        level = float(np.median(before)) if len(before) else one.baseline
        whole = np.concatenate([before, own, after]) - level
        ramps = gains(whole)[1]
        apart = float(((before - level) ** 2).sum())
        apart += misfit(own, one.kind) + misfit(after, two.kind)
        margin = 2 * _NATS * self._inflation * self._sigma**2
        if float(whole @ whole) - float(ramps.max()) > apart + margin:
            return None
        onset = one.onset_index - len(before) + int(ramps.argmax())
        return replace(one, index=max(one.index, onset), kind="ramp", onset_index=onset)

    def _plateau(self, kept: list[Change], position: int) -> bool:
        """Tell whether a step is no more than where a ramp comes to rest."""
        ramp, level = self._sides(kept, position)
        if kept[position].kind != "step" or len(ramp) < RAMP_LEAST or not len(level):
            return False
        slope, start = np.polyfit(np.arange(len(ramp)), ramp, 1)
        reached = start + slope * len(ramp)
        error = self.error * math.sqrt(4 / len(ramp) + 1 / len(level))
        gap = abs(float(np.median(level)) - reached)
        return bool(gap < max(_SURE * error, self._gate))

    def _sized(self, kept: list[Change], position: int) -> Change:
        """Size a change by all that lies on its two sides."""
        change, (before, after) = kept[position], self._sides(kept, position)
        if change.kind == "spread" or not len(before) or not len(after):
            return change
        # A ramp has got as far as its last stretch.
        reached = np.median(after if change.kind == "step" else after[-STRETCH:])
        size = float(reached - np.median(before))
        return replace(change, size=size, direction="up" if size > 0 else "down")
