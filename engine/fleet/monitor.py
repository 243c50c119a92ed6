"""Watching one series of numbers for a change: CUSUM, jump rule and a chart of the spread.

The charts are Page's two-sided cumulative sum (Continuous inspection schemes, Biometrika 41,
1954) on standardised, winsorised deviations from a frozen baseline, and the same sum on the
square root of the absolute deviation, after Hawkins (Cumulative sum control charting, 1981).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.fleet.fits import RAMP_LEAST, Kind, gains
from engine.fleet.limits import (
    MAD,
    DriftSettings,
    median_error,
    midmean,
    midmean_error,
    robust_sigma,
    sigma_error,
)

Array = NDArray[np.float64]
Direction = Literal["up", "down"]

_KEPT = 60
"""Rounds always remembered, to tell a ramp from a step."""
_WINDOW = 180
"""Rounds remembered at most while something is brewing."""
_NOW_AND_THEN = 10
"""Samples after which a baseline's own noise is told again while it grows."""
_LATEST = 9
"""Values that the size of a change is told from."""
_ALLOWANCE = 4.0
"""How many standard errors the baseline may be off."""
_DOUBT = 3.0
"""Standard errors that a series must be nearer to its baseline than to the change."""
_LEVEL = 0.7
"""What a level is at least, against the scatter around it."""
_SPREAD_ROOM = 1.5
_FIT_CLIP = 9.0


@dataclass(frozen=True)
class Evidence:
    """What a change was told by."""

    rule: Literal["jump", "cusum", "spread", "learning"]
    """Learning: a jump while the baseline was still being learned."""
    height: float
    """What the rule counted: samples in a row, the sum of the chart, or the size by which the
    level moved while learning."""
    limit: float
    """What it had to reach."""
    noise: float
    """Standard deviation of one sample that was reckoned with."""
    samples: int
    """Samples that the baseline rests on."""


@dataclass(frozen=True)
class Change:
    """The series is no longer what it was."""

    index: int
    """Sample at which it was noticed, from 0."""
    onset_index: int
    """Sample at which it began."""
    kind: Kind
    direction: Direction
    size: float | None
    """Latest level minus baseline, in the unit of the series; None for a spread."""
    baseline: float
    """Level before."""
    relative: bool
    """The series are logarithms."""
    evidence: Evidence | None = None
    """What it was told by; None where a whole series was looked at."""

    @property
    def size_percent(self) -> float | None:
        """The size as a ratio, in per cent; None where that has no meaning."""
        if self.size is None or not self.relative:
            return None
        return 100 * math.expm1(min(self.size, 700.0))


@dataclass(frozen=True)
class Cleared:
    """The series is back."""

    index: int
    onset_index: int
    """Onset of the change that is over."""


@dataclass
class _State:
    seen: int = 0
    learned: list[float] = field(default_factory=list)
    samples: int = 0
    baseline: float | None = None
    own_sigma: float | None = None
    up: float = 0.0
    down: float = 0.0
    scale: float = 0.0
    up_since: int = 0
    down_since: int = 0
    scale_since: int = 0
    jumps: int = 0
    recent: list[float | None] = field(default_factory=list)
    active: str = ""
    direction: str = ""
    size: float = 0.0
    onset: int = 0

    def restart(self, index: int) -> None:
        """Set the charts to zero, with the next sample as the first."""
        self.up = self.down = self.scale = 0.0
        self.up_since = self.down_since = self.scale_since = index + 1
        self.jumps = 0


class Monitor:
    """Watches one series, sample by sample.

        >>> monitor = Monitor(DriftSettings(baseline=4, minimum=4))
        >>> noise = [0.0, 0.01, -0.01, 0.0, 0.01, 0.0]
        >>> changes = [monitor.update(v, sigma=0.01) for v in [*noise, 0.2, 0.2, 0.2]]
        >>> changes[-1].kind, changes[-1].onset_index
        ('step', 6)

    Args:
        settings: limits; the defaults are those of a fleet of thousands sampled hourly.
        relative: values are logarithms, so that per cent have a meaning; False leaves out all
            rules that speak of per cent.
        doubting: a series that looks noisier than it is told to be is given more room.
    """

    def __init__(
        self,
        settings: DriftSettings | None = None,
        relative: bool = True,
        doubting: bool = True,
    ) -> None:
        self.settings = settings or DriftSettings()
        self.relative = relative
        self._doubting = doubting
        self._s = _State()

    @classmethod
    def settled(
        cls, baseline: float, settings: DriftSettings | None = None, relative: bool = True
    ) -> Monitor:
        """Return a monitor that knows its baseline from the start."""
        monitor = cls(settings, relative)
        monitor._s.baseline, monitor._s.own_sigma = baseline, 0.0
        monitor._s.samples = monitor.settings.whole_baseline
        return monitor

    @property
    def learning(self) -> bool:
        """Whether there is no baseline to speak of yet."""
        return self._s.baseline is None

    @property
    def baseline(self) -> float | None:
        """The level that changes are told against; None while it is learned."""
        return self._s.baseline

    @property
    def own_sigma(self) -> float | None:
        """Standard deviation over the baseline samples (by the median absolute deviation)."""
        return self._s.own_sigma

    @property
    def samples(self) -> int:
        """How many samples the baseline rests on, or will."""
        return self._s.samples

    @property
    def active(self) -> bool:
        """Whether a change was told that is not over."""
        return bool(self._s.active)

    @property
    def kind(self) -> str:
        """Kind of the change that is not over; empty where there is none."""
        return self._s.active

    @property
    def direction(self) -> Direction:
        """Its direction."""
        return "down" if self._s.direction == "down" else "up"

    @property
    def brewing(self) -> tuple[Direction, int] | None:
        """Direction and first sample of what may become a change; None where nothing may.

        A chart is half-way to its alarm, or one more sample makes a jump, and the level is off by
        enough to be worth telling.
        """
        state, limits = self._s, self.settings
        least = max(1, limits.jump_consecutive - 1)
        quiet = max(state.up, state.down) <= limits.h / 2 and abs(state.jumps) < least
        if state.baseline is None or state.active or quiet:
            return None
        off = self.deviation
        gate = math.log1p(limits.effect_percent / 100) if self.relative else 0.0
        if off is None or abs(off) < gate:
            return None
        sign, direction = (1, self._up) if off > 0 else (-1, self._down)
        way, height, since = direction
        if sign * state.jumps >= least:
            return way, self._nth_last(abs(state.jumps))
        return (way, since) if height > limits.h / 2 else None

    @property
    def _up(self) -> tuple[Direction, float, int]:
        return "up", self._s.up, self._s.up_since

    @property
    def _down(self) -> tuple[Direction, float, int]:
        return "down", self._s.down, self._s.down_since

    @property
    def deviation(self) -> float | None:
        """Median of the last three values minus the baseline."""
        if self._s.baseline is None:
            return None
        latest = self._since(0)[-3:]
        return float(np.median(latest)) - self._s.baseline if len(latest) else None

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return asdict(self._s)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        settings: DriftSettings | None = None,
        relative: bool = True,
    ) -> Monitor:
        """Return a monitor that goes on exactly where `to_state` left off.

        Raises:
            ValueError: the state is not one of a monitor.
        """
        monitor = cls(settings, relative)
        known = {f.name for f in fields(_State)}
        if set(state) != known:
            raise ValueError(f"not the state of a monitor: {', '.join(sorted(state))[:80]}")
        values: dict[str, Any] = {
            name: list(value) if isinstance(value, list) else value for name, value in state.items()
        }
        monitor._s = _State(**values)
        return monitor

    def skip(self) -> None:
        """Count a round without a value; nothing else moves."""
        self._remember(None)

    def update(
        self, value: float, sigma: float | None = None, sigma_samples: int = 10_000
    ) -> Change | Cleared | None:
        """Take the next sample.

        Args:
            value: the sample.
            sigma: standard deviation of the noise where it is known better than from this
                series alone (pooled over a fleet); a series much noisier than that is given
                more room.
            sigma_samples: how many samples that standard deviation rests on.

        Returns:
            What has changed with this sample, if anything.
        """
        if not math.isfinite(value):
            self.skip()
            return None
        state, index = self._s, self._s.seen
        self._remember(value)
        if state.baseline is None:
            return self._learn(index, value, sigma)
        noise, error = self._noise(sigma, sigma_samples)
        if state.active:
            return self._back(index, noise)
        change = self._charts(index, value - state.baseline, noise, error)
        if change is not None:
            state.active, state.direction = change.kind, change.direction
            state.onset, state.size = change.onset_index, abs(change.size or 0.0)
            state.restart(index)
        elif (
            state.learned
            and state.samples < self.settings.whole_baseline
            and abs(value - state.baseline) <= self.settings.clip * noise
        ):
            self._settle([*state.learned, value])
        return change

    def _remember(self, value: float | None) -> None:
        state = self._s
        state.recent.append(value)
        state.seen += 1
        since = min(state.up_since, state.down_since, state.scale_since)
        wanted = min(max(_KEPT, state.seen - since + _KEPT), _WINDOW)
        del state.recent[:-wanted]

    def _since(self, onset: int) -> Array:
        """Return the remembered values from a sample on, missing ones left out."""
        first = max(onset - (self._s.seen - len(self._s.recent)), 0)
        return np.asarray([v for v in self._s.recent[first:] if v is not None])

    def _nth_last(self, n: int) -> int:
        """Return the sample that was the n-th last with a value."""
        start = self._s.seen - len(self._s.recent)
        return [start + i for i, v in enumerate(self._s.recent) if v is not None][-n]

    def _settle(self, learned: list[float]) -> None:
        """Take the baseline from these samples; once they are enough, for good."""
        state = self._s
        state.samples = len(learned)
        state.learned = learned
        if state.samples >= min(self.settings.minimum, self.settings.baseline):
            whole = state.samples >= self.settings.whole_baseline
            state.baseline = midmean(learned)
            if state.own_sigma is None or whole or not state.samples % _NOW_AND_THEN:
                few = math.sqrt(state.samples / max(state.samples - 1, 1))
                state.own_sigma = robust_sigma(np.asarray(learned) - state.baseline) * few
            if whole:
                state.learned = []

    def _learn(self, index: int, value: float, sigma: float | None) -> Change | None:
        state, lasting = self._s, self.settings.jump_consecutive
        before, now = [*state.learned, value][:-lasting], [*state.learned, value][-lasting:]
        limit = math.log1p(self.settings.learning_percent / 100)
        limit = max(limit, self.settings.jump_z * (sigma or 0.0))
        if self.relative and len(before) >= lasting and min(now) - min(before) > limit:
            level = midmean(before)
            if min(now) - level > limit:
                self._settle(before)
                state.baseline = level
                state.own_sigma = state.own_sigma or 0.0
                state.samples, state.learned = self.settings.whole_baseline, []
                state.active, state.direction = "step", "up"
                state.onset = self._nth_last(lasting)
                state.restart(index)
                state.size = size = float(np.median(now)) - level
                told = Evidence("learning", min(now) - level, limit, sigma or 0.0, len(before))
                return Change(index, state.onset, "step", "up", size, level, self.relative, told)
        self._settle([*state.learned, value])
        if state.baseline is not None:
            state.restart(index)
        return None

    def _noise(self, pooled: float | None, samples: int) -> tuple[float, float]:
        """Return the noise to reckon with, and its relative error.

        It is the pooled noise, drawn towards this series' own where that is larger, and its own
        where chance does not explain that.
        """
        own, mine = self._s.own_sigma or 0.0, max(self._s.samples, 1)
        error = sigma_error(mine)
        chance = own * (1 - 2 * error) <= (pooled or 0.0)
        if pooled is not None and (chance or not self._doubting):
            # Of an excess that may be chance, less the longer the baseline.
            share = 4 / (mine + 8) if self._doubting else 0.0
            own = math.sqrt(share * max(own, pooled) ** 2 + (1 - share) * pooled**2)
            error = sigma_error(max(samples, 1))
        return max(own * (1 + error), self.settings.sigma_floor), error

    def _charts(self, index: int, value: float, noise: float, error: float) -> Change | None:
        """Move all charts on by one deviation from the baseline."""
        state, limits, z = self._s, self.settings, value / noise
        off = midmean_error(limits.independent(state.samples))
        # A short baseline is off by more than the limits allow for: that much is taken off.
        allowance = _ALLOWANCE * max(0.0, off - midmean_error(60))
        above, below = z - allowance, -z - allowance
        state.up = max(0.0, state.up + max(min(above, limits.clip), -limits.clip) - limits.k)
        state.down = max(0.0, state.down + max(min(below, limits.clip), -limits.clip) - limits.k)
        # The chart of the spread has no slack to spare for a noise that is told from few samples.
        root = math.sqrt(abs(z) / (math.hypot(1.0, off) * (1 + _SPREAD_ROOM * error)))
        excess = min((root - 0.822) / 0.349, limits.scale_cap) - limits.scale_k
        state.scale = max(0.0, state.scale + excess)
        if not state.up:
            state.up_since = index + 1
        if not state.down:
            state.down_since = index + 1
        if not state.scale:
            state.scale_since = index + 1
        # Three in a row need no allowance: no baseline is off by that much.
        if z > limits.jump_z:
            state.jumps = max(state.jumps, 0) + 1
        elif -z > limits.jump_z:
            state.jumps = min(state.jumps, 0) - 1
        else:
            state.jumps = 0
        return self._alarm(index, noise)

    def _alarm(self, index: int, noise: float) -> Change | None:
        state, limits = self._s, self.settings
        if abs(state.jumps) >= limits.jump_consecutive:
            onset = self._nth_last(abs(state.jumps))
            change = self._change(index, onset, "up" if state.jumps > 0 else "down", "step")
            if change is not None:
                count = float(abs(state.jumps))
                told = Evidence("jump", count, limits.jump_consecutive, noise, state.samples)
                return replace(change, evidence=told)
        for direction, height, since in (self._up, self._down):
            if height > limits.h:
                kind, onset = self._kind(since, noise)
                change = self._change(index, onset, direction, kind)
                if change is not None:
                    told = Evidence("cusum", height, limits.h, noise, state.samples)
                    return replace(change, evidence=told)
        state.up, state.down = min(state.up, limits.h), min(state.down, limits.h)
        if state.scale > limits.scale_h:
            state.scale = limits.scale_h
            return self._spread(index, noise)
        return None

    def _change(self, index: int, onset: int, direction: Direction, kind: Kind) -> Change | None:
        """Return the change unless it is too small to matter."""
        assert self._s.baseline is not None
        latest = self._since(onset)[-3 if kind == "ramp" else -_LATEST :]
        size = float(np.median(latest)) - self._s.baseline
        scatter = MAD * float(np.median(np.abs(latest - np.median(latest))))
        # Values all over the place have no level: that is for the chart of the spread.
        if (size > 0) != (direction == "up") or abs(size) < _LEVEL * scatter:
            return None
        if self.relative and abs(size) < math.log1p(self.settings.effect_percent / 100):
            return None
        return Change(index, onset, kind, direction, size, self._s.baseline, self.relative)

    def _spread(self, index: int, noise: float) -> Change | None:
        """Return a change of the spread, unless the level explains it or it is too small."""
        assert self._s.baseline is not None
        values = self._since(self._s.scale_since) - self._s.baseline
        centre = float(np.median(values))
        spread = MAD * float(np.median(np.abs(values - centre)))
        least = math.log1p(self.settings.effect_percent / 200) if self.relative else 0.0
        if abs(centre) > _LEVEL * spread or spread < max(1.5 * noise, least):
            return None
        onset, level = self._s.scale_since, self._s.baseline
        told = Evidence("spread", spread / noise, 1.5, noise, self._s.samples)
        return Change(index, onset, "spread", "up", None, level, self.relative, told)

    def _kind(self, onset: int, noise: float) -> tuple[Kind, int]:
        """Fit a step and a ramp, each with a free start, and name what fits better, from when.

        A ramp began before the CUSUM left zero, so its onset is that of the fit.
        """
        assert self._s.baseline is not None
        values = self._since(0)
        steps, ramps = gains(np.clip((values - self._s.baseline) / noise, -_FIT_CLIP, _FIT_CLIP))
        if len(self._since(onset)) <= RAMP_LEAST or ramps.max() <= steps.max():
            return "step", onset
        return "ramp", min(onset, self._nth_last(len(values) - int(ramps.argmax())))

    def _back(self, index: int, noise: float) -> Cleared | None:
        """Tell whether the change is over."""
        state, limits = self._s, self.settings
        assert state.baseline is not None
        values = self._since(state.up_since) - state.baseline
        near = math.log1p(limits.clear_percent / 100) if self.relative else noise
        if state.active == "spread":
            over = (
                len(values) >= _KEPT
                and float(np.minimum(np.abs(values[-_KEPT:]) / noise, 3).mean()) < 1.1
            )
        else:
            # A few samples of a small change may look as if it were over.
            doubt = _DOUBT * median_error(1) * noise / max(state.size - near, noise / 4)
            wanted = max(limits.clear_consecutive, min(math.ceil(doubt**2), _KEPT))
            last = values[-wanted:] * (1 if state.direction == "up" else -1)
            over = (
                len(last) == wanted
                and float(np.median(last)) < near
                and float(last[-limits.clear_consecutive :].max()) < near + 3 * noise
            )
        if not over:
            return None
        state.active = ""
        state.restart(index)
        return Cleared(index, state.onset)
