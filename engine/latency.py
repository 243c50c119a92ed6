"""A measured latency: the record, and the comparison of two.

Latencies are milliseconds as float. A device that failed is a value, never an exception: its
record says what went wrong, and its numbers are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

# Student's t, 97.5 %, by degrees of freedom from 1; beyond the table the normal is close enough.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How a model is run: the same file gives another latency for each."""

    batch: int = 1
    threads: int = 1
    provider: str = "CPUExecutionProvider"

    def __str__(self) -> str:
        """Return it in words."""
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        provider = self.provider.removesuffix("ExecutionProvider")
        return f"batch {self.batch}, {threads}, {provider}"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one model takes on one device, under which conditions, or why nobody knows."""

    device: str
    """The device's name in the fleet."""
    model: str
    """SHA-256 of the ONNX file, lower-case hex."""
    median_ms: float = math.nan
    """Median over the medians of the blocks."""
    low_ms: float = math.nan
    """Lower end of the median's 95 % interval."""
    high_ms: float = math.nan
    """Upper end of the median's 95 % interval."""
    p90_ms: float = math.nan
    p95_ms: float = math.nan
    mean_ms: float = math.nan
    cpu_ms: float = math.nan
    """Median CPU time of the process for one inference."""
    n: int = 0
    """Timed inferences, all blocks together."""
    block_medians_ms: tuple[float, ...] = ()
    """One median a block; every block is a fresh process."""
    contended: float = 0.0
    """Share of the inferences whose wall time was well above their CPU time."""
    batch: int = 1
    """Images in one inference, as asked; every time is that of the whole inference."""
    threads: int = 1
    """Threads of one inference, as asked."""
    provider: str = "CPUExecutionProvider"
    """ONNX Runtime's execution provider, as asked; the conditions hold what was used."""
    energy_mj: float | None = None
    """Energy of one inference where a sensor exists, idle power included; never guessed. What
    the inference takes above idle is `conditions["energy"]["dynamic_mj"]`."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Clock, governor, temperature, load, runtime version, threads, … as the device told them."""
    emulated: bool = False
    """The device only pretends to be slower."""
    at: str = ""
    """UTC on the controller's clock when the result arrived, ISO 8601."""
    clock_offset_s: float | None = None
    """The device's clock minus the controller's."""
    error: str = ""
    """Class of what went wrong ("unreachable", "timeout", …); empty when nothing did."""
    detail: str = ""
    """One sentence about the error."""

    @property
    def ok(self) -> bool:
        """Whether there is a number."""
        return not self.error

    @property
    def configuration(self) -> Configuration:
        """How the model was asked to be run."""
        return Configuration(batch=self.batch, threads=self.threads, provider=self.provider)

    @property
    def per_image_ms(self) -> float:
        """Median latency divided by the images of one inference."""
        return self.median_ms / int(self.conditions.get("images", self.batch))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was off while it was measured, in words; empty where nothing was."""
        return tuple(map(str, self.conditions.get("dirty", ())))


@dataclass(frozen=True, kw_only=True)
class Answered(Latency):
    """How long a model takes for test images, and what it answers."""

    answers: tuple[int, ...] = ()
    """The class that each image was given, in their order; empty where it failed."""


class Measure(Protocol):
    """What the engine asks of whoever knows the devices.

    Yields one :class:`Latency` for every (model, device) pair, in the order in which they come
    back. `cancelled` is asked between devices; once it says yes, the iterator ends early.
    """

    def __call__(
        self,
        requests: Sequence[tuple[Path, str]],
        cancelled: Callable[[], bool] = ...,
    ) -> Iterator[Latency]:
        """Time every model on its device."""
        ...


Verdict = Literal["faster", "slower", "no difference", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on one device, measured in the same blocks."""

    device: str
    speedup: float
    """Old latency divided by new latency (geometric mean over blocks); above 1 is faster."""
    low: float
    high: float
    """95 % interval of the speed-up."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FleetComparison:
    """Two models over a fleet."""

    speedup: float
    """Mean over the devices of old latency / new latency."""
    low: float
    high: float
    """95 % interval of that mean, devices taken as a sample of the fleet."""
    mean_before_ms: float
    mean_after_ms: float
    devices: int
    faster: int
    slower: int
    verdict: Verdict


def t_quantile(degrees: int) -> float:
    """Return Student's t at 97.5 % for that many degrees of freedom (at least 1)."""
    return _T975[degrees - 1] if degrees <= len(_T975) else 1.96


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % interval (Student's t); one value has an infinite interval."""
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) < 2:
        return mean, -math.inf, math.inf
    half = t_quantile(len(data) - 1) * float(data.std(ddof=1)) / math.sqrt(len(data))
    return mean, mean - half, mean + half


def judge(low: float, high: float, margin: float) -> Verdict:
    """Name what an interval of a speed-up says.

    Faster or slower only where the whole interval lies beyond 1 and its middle beyond the
    margin of practical size; "no difference" where it reaches no further than the margin on
    either side of 1, or holds 1 with its middle inside the margin.
    """
    middle = math.sqrt(max(low, 1e-12) * high) if math.isfinite(high) else math.inf
    if low > 1 and middle > 1 + margin:
        return "faster"
    if high < 1 and middle < 1 / (1 + margin):
        return "slower"
    return "no difference" if 1 / (1 + margin) <= middle <= 1 + margin else "inconclusive"


def compare(old: Latency, new: Latency, margin: float = 0.02) -> Comparison:
    """Compare two models timed in the same blocks of one device.

    Blocks are paired (the old and the new model ran in the same fresh process), so what
    disturbs a block disturbs both. `margin` is the smallest change of practical interest.

    Raises:
        ValueError: a measurement failed, or the two share fewer than two blocks.
    """
    for side in (old, new):
        if not side.ok:
            raise ValueError(f"{side.device}: nothing to compare: {side.error}: {side.detail}")
    blocks = min(len(old.block_medians_ms), len(new.block_medians_ms))
    if blocks < 2:
        raise ValueError(f"{old.device}: two blocks at least are needed, there are {blocks}")
    ratios = np.log(old.block_medians_ms[:blocks]) - np.log(new.block_medians_ms[:blocks])
    mean, low, high = (math.exp(v) for v in interval(list(ratios)))
    return Comparison(
        device=old.device, speedup=mean, low=low, high=high, verdict=judge(low, high, margin)
    )


def compare_fleet(
    pairs: Sequence[tuple[Latency, Latency]], margin: float = 0.02
) -> FleetComparison:
    """Compare old and new over all devices that measured both.

    Raises:
        ValueError: no device measured both models.
    """
    whole = [(old, new) for old, new in pairs if old.ok and new.ok]
    if not whole:
        raise ValueError("no device measured both models")
    single = [compare(old, new, margin) for old, new in whole]
    mean, low, high = interval([c.speedup for c in single])
    if len(single) == 1:
        low, high = single[0].low, single[0].high
    return FleetComparison(
        speedup=mean,
        low=low,
        high=high,
        mean_before_ms=float(np.mean([old.median_ms for old, _ in whole])),
        mean_after_ms=float(np.mean([new.median_ms for _, new in whole])),
        devices=len(single),
        faster=sum(c.verdict == "faster" for c in single),
        slower=sum(c.verdict == "slower" for c in single),
        verdict=judge(low, high, margin),
    )
