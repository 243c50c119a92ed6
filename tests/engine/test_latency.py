import math

import numpy as np
import pytest

from engine.latency import Latency, compare, compare_fleet, interval, judge


def measured(device: str, blocks: list[float], model: str = "m") -> Latency:
    return Latency(
        device=device,
        model=model,
        median_ms=float(np.median(blocks)),
        block_medians_ms=tuple(blocks),
        n=30 * len(blocks),
    )


def failed(device: str) -> Latency:
    return Latency(device=device, model="m", error="timeout", detail="no answer in 10 s")


def test_the_interval_of_a_mean_is_students() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    # t(3, 97.5 %) = 3.182, s = 1.2910, n = 4
    assert high - mean == pytest.approx(3.182 * 1.29099 / 2, rel=1e-4)
    assert mean - low == pytest.approx(high - mean)


def test_one_value_alone_has_an_infinite_interval() -> None:
    assert interval([3.0]) == (3.0, -math.inf, math.inf)


def test_a_model_twice_as_fast_is_faster_with_its_interval() -> None:
    result = compare(measured("a", [2.0, 2.02, 1.99, 2.01]), measured("a", [1.0, 1.01, 0.995, 1.0]))
    assert result.verdict == "faster"
    assert result.low < 2.0 < result.high
    assert result.speedup == pytest.approx(2.0, rel=0.02)


def test_the_other_way_round_it_is_slower() -> None:
    result = compare(measured("a", [1.0, 1.01, 0.99]), measured("a", [1.5, 1.52, 1.49]))
    assert result.verdict == "slower"


def test_blocks_are_paired_so_what_disturbs_a_block_disturbs_both() -> None:
    disturbed = [1.0, 1.6, 1.2, 2.5]
    result = compare(measured("a", disturbed), measured("a", [v / 1.1 for v in disturbed]))
    assert result.verdict == "faster"
    assert result.speedup == pytest.approx(1.1)


def test_noise_around_one_is_no_difference() -> None:
    result = compare(measured("a", [1.0, 1.01, 0.99, 1.0]), measured("a", [1.0, 1.0, 1.0, 0.99]))
    assert result.verdict == "no difference"


def test_a_significant_but_tiny_difference_is_none_of_practical_size() -> None:
    assert judge(1.005, 1.011, margin=0.02) == "no difference"


def test_a_wide_interval_with_its_middle_off_one_is_inconclusive() -> None:
    assert judge(0.8, 1.6, margin=0.02) == "inconclusive"


@pytest.mark.parametrize("side", [0, 1])
def test_a_failed_side_cannot_be_compared(side: int) -> None:
    pair = [measured("a", [1.0, 1.0]), measured("a", [1.0, 1.0])]
    pair[side] = failed("a")
    with pytest.raises(ValueError, match="timeout"):
        compare(*pair)


def test_one_block_is_too_few_to_compare() -> None:
    with pytest.raises(ValueError, match="two blocks"):
        compare(measured("a", [1.0]), measured("a", [1.0, 2.0]))


def test_the_fleets_speedup_is_the_mean_over_devices_and_leaves_failures_out() -> None:
    pairs = [
        (measured("a", [2.0, 2.0, 2.0]), measured("a", [1.0, 1.0, 1.0])),
        (measured("b", [3.0, 3.0, 3.0]), measured("b", [1.0, 1.0, 1.0])),
        (measured("c", [3.0, 3.0, 3.0]), failed("c")),
    ]
    result = compare_fleet(pairs)
    assert result.speedup == pytest.approx(2.5)
    assert result.devices == 2
    assert result.faster == 2
    assert result.mean_before_ms == pytest.approx(2.5)


def test_a_fleet_where_every_device_failed_says_so() -> None:
    with pytest.raises(ValueError, match="no device"):
        compare_fleet([(failed("a"), failed("a"))])
