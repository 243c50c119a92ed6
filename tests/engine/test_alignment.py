"""The channel multiple: found on curves whose steps are known, under noise, and on real kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.fleet.alignment import WIDTHS, TooNoisyError, find, rounded_up
from engine.models import probes

Curve = Callable[[int], float]


def smooth(width: float) -> float:
    return 0.02 + 1e-4 * width**1.7


def staircase(step: int) -> Curve:
    return lambda width: smooth(rounded_up(width, step))


def penalty(step: int, factor: float = 1.6) -> Curve:
    return lambda width: smooth(width) * (1 if width % step == 0 else factor)


def avx512(width: int) -> float:
    """Steps of 16, and what is no multiple of 4 costs half as much again."""
    return smooth(rounded_up(width, 16)) * (1 if width % 4 == 0 else 1.5)


def blocks(
    curve: Curve, noise: float, seed: int, count: int = 5, spikes: float = 0.0
) -> list[dict[int, float]]:
    rng = np.random.default_rng(seed)
    return [
        {
            width: curve(width)
            * np.exp(noise * rng.standard_normal() + drift)
            * (2.5 if rng.random() < spikes else 1)
            for width in WIDTHS
        }
        for drift in 0.1 * rng.standard_normal(count)  # a block may be slower as a whole
    ]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(
    ("curve", "multiple"),
    [
        (smooth, 1), (staircase(2), 2), (staircase(4), 4), (staircase(8), 8), (staircase(16), 16),
        (staircase(32), 32), (penalty(4), 4), (penalty(8, 2.0), 8), (avx512, 16),
    ],
)  # fmt: skip
def test_known_steps_are_found_under_noise(curve: Curve, multiple: int, noise: float) -> None:
    found = [find(blocks(curve, noise, seed)) for seed in range(20)]
    # A step of two channels is worth two per cent: where noise is larger, either will do.
    good = {1, 2} if multiple <= 2 and noise > 0.02 else {multiple}
    assert sum(one.multiple in good for one in found) >= 18, [one.multiple for one in found]


def test_single_spikes_change_nothing() -> None:
    found = [find(blocks(avx512, 0.02, seed, spikes=0.04)).multiple for seed in range(20)]
    assert found.count(16) >= 18


def test_what_it_is_worth_is_what_other_widths_cost_more() -> None:
    assert find(blocks(smooth, 0.0, 1)).gain_percent == 0
    assert find(blocks(penalty(4, 1.6), 0.0, 1)).gain_percent == pytest.approx(60, abs=2)
    found = find(blocks(avx512, 0.01, 1))
    assert found.gain_percent > 50
    assert found.cost_percent[1] > 20
    assert found.cost_percent[32] > 30
    assert found.latency_ms[48] == pytest.approx(avx512(48), rel=0.3)


def test_pure_noise_is_refused_or_has_no_preference() -> None:
    def flat(_width: int) -> float:
        return 1.0

    with pytest.raises(TooNoisyError, match="differ by"):
        find(blocks(flat, 1.5, 3, count=3))


def test_blocks_that_lack_something_are_refused() -> None:
    whole = dict.fromkeys(WIDTHS, 1.0)
    with pytest.raises(ValueError, match="two blocks"):
        find([whole])
    with pytest.raises(ValueError, match="lacks a latency at 40"):
        find([whole, {**whole, 40: float("nan")}])
    with pytest.raises(ValueError, match="lacks a latency at 32"):
        find([whole, {}])


def test_the_probe_is_tiny_and_runs(tmp_path: Path) -> None:
    import onnxruntime

    data = probes.channels(36)
    assert len(data) < 2000
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": np.ones((1, 36, 16, 16), np.float32)})
    assert answer.shape == (1, 36, 1, 1)
    assert np.isfinite(answer).all()
    assert (answer > 0).all()
