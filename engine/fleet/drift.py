"""Finding changes: in a whole series at once, and (re-exported) round by round as they happen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.limits import MAD, DriftSettings
from engine.fleet.monitor import Change, Cleared, Direction, Kind, Monitor
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
_TELLING = 40
"""A shorter series does not tell correlated noise from a change."""
_INTEGRATED = 0.9
"""Lag-1 correlation from which a series has no level to return to."""
_NATS = 5.0
"""How much likelier (natural logarithm) another onset must be than that of the chart."""
_RAMP_LEAST = 5
"""Samples that a ramp needs."""
_STRETCH = 9
"""Samples from which is told how far a ramp has got."""
_AROUND = 21
"""Differences from which the noise at one place is told."""
_EFFECT = 1.0
"""Smallest change, in standard deviations, of a series that knows no per cent."""
_SLOPE = 2.0
"""The same for the slope of a series that wanders."""
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
    if not _wanders(series):
        return sorted(_Search(series, limits, relative).changes(), key=lambda c: c.onset_index)
    slopes = _Search(np.diff(series), limits, relative=False, least=_SLOPE).changes()
    ramps = [replace(c, kind="ramp", relative=relative) for c in slopes if c.kind == "step"]
    return [_risen(change, ramps[i + 1 :], series) for i, change in enumerate(ramps)]


def _risen(change: Change, later: list[Change], series: Array) -> Change:
    """Turn a change of slope into the ramp that it begins, as high as it gets."""
    end = later[0].onset_index if later else len(series) - 1
    size = float(series[end] - series[change.onset_index])
    agrees = (size > 0) == (change.direction == "up")
    return replace(change, index=change.index + 1, size=size if agrees else None)


def _noise(series: Array) -> tuple[float, float]:
    """Return standard deviation and lag-1 correlation of what is not level or trend."""
    # What a short series shows of correlation may be chance.
    most = 0.97 if len(series) >= _TELLING else 0.5
    rho = min(max(_correlation(series) - 2 / math.sqrt(len(series)), 0.0), most)
    return _deviation(series) / math.sqrt(2 * (1 - rho)), rho


def _wanders(series: Array) -> bool:
    """Tell whether a series has no level to return to."""
    return len(series) >= _TELLING and _correlation(series) > _INTEGRATED


def _correlation(series: Array) -> float:
    """Return the lag-1 correlation of what is not level or trend.

    For AR(1) noise with correlation r, differences have variance 2 s^2 (1 - r) and correlate by
    (r - 1) / 2 with the next; changes of level are outliers among them, and are left out.
    """
    steps, scale = _differences(series)
    usual = np.abs(steps) <= 3 * scale
    # In units of the noise around them, so that a change of spread is none of correlation.
    steps = steps / np.where(scale > 0, scale, 1.0)
    pairs = usual[1:] & usual[:-1]
    first, second = steps[:-1][pairs], steps[1:][pairs]
    power = float(first @ first + second @ second) / 2
    if not power > 0:
        return 0.0
    return 1 + 2 * float(first @ second) / power


def _differences(series: Array) -> tuple[Array, Array]:
    """Return a series' differences without its trend, and the standard deviation around each."""
    steps = np.diff(series)
    steps = steps - np.median(steps)
    width = min(_AROUND, len(steps))
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(steps), width)
    scale = MAD * np.median(windows, axis=1)
    missing = len(steps) - len(scale)
    return steps, np.pad(scale, (missing // 2, missing - missing // 2), mode="edge")


def _deviation(series: Array) -> float:
    steps, scale = _differences(series)
    return float(np.sqrt(np.mean(steps[np.abs(steps) <= 3 * scale] ** 2))) / 0.987


class _Search:
    """The changes of one series."""

    def __init__(
        self, series: Array, settings: DriftSettings, relative: bool, least: float = _EFFECT
    ) -> None:
        self._x = series
        self._relative = relative
        self._sigma, rho = _noise(series)
        self._whiteness = 2 * (1 - rho)
        self._inflation = (1 + rho) / (1 - rho)
        baseline = min(settings.baseline, max(6, len(series) // 4))
        floor = settings.sigma_floor if relative else max(0.005 * float(np.ptp(series)), 1e-300)
        self._sigma = max(self._sigma, floor)
        # Without per cent, what counts as small is told by the noise.
        gate = math.log1p(settings.effect_percent / 100)
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
            monitor, sigma = Monitor(self._settings, self._relative), self._local_sigma(start)
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
        local = self._x[start : start + max(2 * self._settings.baseline, _AROUND)]
        if len(local) < _LEAST:
            return self._sigma
        own = _deviation(local) / math.sqrt(self._whiteness)
        weight = len(local) / (len(local) + 10)
        return math.sqrt(weight * own**2 + (1 - weight) * self._sigma**2)

    def _moved(self, found: list[Change]) -> list[Change]:
        """Look at each change from both sides: kind and onset."""
        moved: list[Change] = []
        for position, change in enumerate(found):
            first = moved[-1].onset_index if moved else 0
            last = found[position + 1].onset_index if position + 1 < len(found) else len(self._x)
            last = min(max(last, change.index + 1), 2 * change.index - change.onset_index + 10)
            moved.append(self._fitted(change, first, last))
        return moved

    def _fitted(self, change: Change, first: int, last: int) -> Change:
        """Tell step or ramp, and since when, by the samples from first to last."""
        if change.kind == "spread":
            return change
        z = np.clip((self._x[first:last] - change.baseline) / self._sigma, -9.0, 9.0)
        steps, ramps = _gains(z)
        margin = 2 * _NATS * self._inflation
        if ramps.max() > steps.max() + margin and not _jumps(z, int(steps.argmax())):
            return replace(change, kind="ramp", onset_index=first + int(ramps.argmax()))
        onset, best = change.onset_index - first, int(steps.argmax())
        # The chart knows when it began, unless another start is much likelier.
        if 0 <= onset < len(z) and steps[onset] > steps[best] - margin:
            best = onset
        return replace(change, kind="step", onset_index=first + best)

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
        blip = len(after) < _RAMP_LEAST and position + 1 < len(kept)
        if blip or not len(before) or not len(after):
            return 0.0
        if change.kind == "ramp":
            after = after[-_STRETCH:]
        gap = abs(float(np.median(after) - np.median(before)))
        error = 1.2533 * self._sigma * math.sqrt(1 / len(before) + 1 / len(after))
        return gap / max(_SURE * error * math.sqrt(self._inflation), self._gate)

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
        after = self._sides(kept, position + 1)[1][: max(two.index - two.onset_index, _STRETCH)]
        level = float(np.median(before)) if len(before) else one.baseline
        whole = np.concatenate([before, own, after]) - level
        ramps = _gains(whole)[1]
        apart = float(((before - level) ** 2).sum())
        apart += _misfit(own, one.kind) + _misfit(after, two.kind)
        margin = 2 * _NATS * self._inflation * self._sigma**2
        if float(whole @ whole) - float(ramps.max()) > apart + margin:
            return None
        onset = one.onset_index - len(before) + int(ramps.argmax())
        return replace(one, kind="ramp", onset_index=onset)

    def _plateau(self, kept: list[Change], position: int) -> bool:
        """Tell whether a step is no more than where a ramp comes to rest."""
        ramp, level = self._sides(kept, position)
        if kept[position].kind != "step" or len(ramp) < _RAMP_LEAST:
            return False
        slope, start = np.polyfit(np.arange(len(ramp)), ramp, 1)
        reached = start + slope * len(ramp)
        error = self._sigma * math.sqrt(4 / len(ramp) + 1.6 / len(level))
        gap = abs(float(np.median(level)) - reached)
        return bool(gap < max(_SURE * error * math.sqrt(self._inflation), self._gate))

    def _sized(self, kept: list[Change], position: int) -> Change:
        """Size a change by all that lies on its two sides."""
        change, (before, after) = kept[position], self._sides(kept, position)
        if change.kind == "spread" or not len(before) or not len(after):
            return change
        # A ramp has got as far as its last stretch.
        reached = np.median(after if change.kind == "step" else after[-_STRETCH:])
        size = float(reached - np.median(before))
        return replace(change, size=size, direction="up" if size > 0 else "down")


def _jumps(z: Array, at: int) -> bool:
    """Tell whether most of a rise from 0 happens at one place."""
    before, after = z[max(at - _STRETCH, 0) : at], z[at : at + _STRETCH]
    if not len(before):
        return False
    jump = abs(float(np.median(after) - np.median(before)))
    return jump > 0.5 * abs(float(np.median(z[-_STRETCH:])))


def _misfit(values: Array, kind: Kind) -> float:
    """Return the sum of squares around a level (step) or a line (ramp)."""
    if kind == "step" or len(values) < 3:
        return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    at = np.arange(len(values), dtype=float)
    at -= at.mean()
    centred = values - values.mean()
    return float(centred @ centred - (at @ centred) ** 2 / (at @ at))


def _gains(z: Array) -> tuple[Array, Array]:
    """Return how much of the sum of squares a step and a ramp up from 0 explain, by start."""
    at, count = np.arange(len(z)), np.arange(len(z), 0, -1)
    left = np.cumsum(z[::-1])[::-1]
    steps = left**2 / count
    moment = np.cumsum((at * z)[::-1])[::-1] - (at - 1) * left
    ramps = moment**2 / (count * (count + 1) * (2 * count + 1) / 6)
    steps[-2:], ramps[-_RAMP_LEAST:] = 0.0, 0.0
    return steps, ramps
