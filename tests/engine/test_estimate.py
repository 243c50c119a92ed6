"""The fleet's mean from few devices: exact cases, coverage, how many are needed."""

import json
import math

import numpy as np
import pytest

from engine.fleet.estimate import LEAST, Stratum, document, draw, estimate, plan, strata_of


def fleet(rng, devices):
    """Three clusters 2 to 4 % wide, and a few devices anywhere."""
    labels = rng.choice(4, devices, p=[0.03, 0.57, 0.25, 0.15]) - 1
    labels[:4] = [-1, 0, 1, 2]
    level = np.array([12.0, 10.0, 12.5, 16.0])[labels + 1]
    width = np.array([0.3, 0.02, 0.03, 0.04])[labels + 1]
    return labels, level * np.exp(rng.normal(0, 1, devices) * width)


def sampled(level, labels, rng, within=1.5):
    planned = plan(strata_of(level, labels, np.ones(len(level), dtype=bool)), within)
    rows = list(draw(labels, planned.allocation, rng))
    values = np.full(len(level), np.nan)
    values[rows] = level[rows]
    return planned, values


def test_a_stratified_mean_is_what_the_textbook_says():
    labels = np.repeat([0, 1], [60, 40])
    values = np.full(100, np.nan)
    values[[3, 20, 41, 70, 80, 90]] = 10.1, 10.0, 9.9, 15.2, 15.0, 14.8
    found = estimate(values, labels)
    assert found.mean_ms == pytest.approx(0.6 * 10 + 0.4 * 15)
    one, two = 0.6**2 * 0.01 / 3 * (1 - 3 / 60), 0.4**2 * 0.04 / 3 * (1 - 3 / 40)
    assert found.freedom == pytest.approx((one + two) ** 2 / (one**2 / 2 + two**2 / 2))
    half = 2.8577 * math.sqrt(one + two)  # Student's t at 3.73 degrees of freedom
    assert found.high_ms - found.mean_ms == pytest.approx(half, rel=1e-3)
    assert found.within_percent == pytest.approx(100 * half / 12, rel=1e-3)
    assert [(s.id, s.devices, s.measured) for s in found.strata] == [(0, 60, 3), (1, 40, 3)]


def test_the_interval_holds_the_mean_in_95_of_100_samples():
    for devices in (30, 1000):
        held = 0
        for seed in range(600):
            rng = np.random.default_rng([seed, devices])
            labels, level = fleet(rng, devices)
            _, values = sampled(level, labels, rng)
            found = estimate(values, labels)
            held += found.low_ms <= level.mean() <= found.high_ms
        assert 0.93 <= held / 600 <= 0.98


def test_the_interval_is_about_as_wide_as_planned():
    rng = np.random.default_rng(0)
    labels, level = fleet(rng, 3000)
    for within in (0.5, 1.0, 2.0):
        widths = []
        for seed in range(30):
            planned, values = sampled(level, labels, np.random.default_rng(seed), within)
            widths.append(estimate(values, labels).within_percent)
        assert planned.within_percent <= within
        assert np.mean(widths) == pytest.approx(planned.within_percent, rel=0.25)


def test_strata_need_far_fewer_devices_than_a_plain_sample():
    rng = np.random.default_rng(0)
    labels, level = fleet(rng, 3000)
    level, labels = level[labels >= 0], labels[labels >= 0]
    everything = np.ones(len(level), dtype=bool)
    clustered = plan(strata_of(level, labels, everything), 0.5).devices
    plain = plan(strata_of(level, np.zeros_like(labels), everything), 0.5).devices
    assert clustered < plain / 5


def test_where_every_device_was_measured_only_the_measurement_is_unsure():
    labels, values = np.array([0, 0, 0, 1, 1]), np.array([10.0, 10.2, 9.9, 14.0, 14.2])
    exact = estimate(values, labels)
    assert exact.low_ms == exact.mean_ms == exact.high_ms == pytest.approx(values.mean())
    noisy = estimate(values, labels, repeatability=0.02)
    assert noisy.within_percent == pytest.approx(1.96 * 2 / math.sqrt(5), rel=0.05)


def test_a_plan_reckons_with_what_measuring_itself_leaves_open():
    labels, level = fleet(np.random.default_rng(0), 60)
    found = estimate(level, labels, repeatability=0.02)
    (needed,) = document(found, (0.01,))["needed"]
    assert needed["devices"] == 60
    assert needed["expected_percent"] == pytest.approx(found.within_percent)
    assert found.within_percent > 0.4


def test_noise_is_a_stratum_of_its_own():
    labels = np.array([0] * 50 + [-1] * 4)
    values = np.full(54, np.nan)
    values[[0, 1, 2]] = 10.0, 10.1, 9.9
    values[50:] = 5.0, 30.0, 18.0, 12.0
    found = estimate(values, labels)
    assert [s.id for s in found.strata] == [0, -1]
    assert found.mean_ms == pytest.approx((50 * 10 + 65) / 54)
    assert found.within_percent < 3  # all of the noise was measured


def test_one_device_of_a_stratum_is_taken_to_spread_as_all_do():
    labels = np.repeat([0, 1], 20)
    values = np.full(40, np.nan)
    values[[0, 1, 2, 20]] = 10.0, 10.1, 9.9, 13.0
    alone = estimate(values, labels)
    values[21] = 13.1
    two = estimate(values, labels)
    assert alone.within_percent > 3 * two.within_percent
    assert alone.low_ms < two.mean_ms < alone.high_ms


def test_a_stratum_that_nobody_measured_is_left_out_and_said():
    labels = np.repeat([0, 1], [30, 10])
    values = np.full(40, np.nan)
    values[:3] = 10.0, 10.1, 9.9
    found = estimate(values, labels)
    assert found.covered == 0.75
    assert found.mean_ms == pytest.approx(10)
    assert found.strata[1].measured == 0


def test_devices_without_a_place_widen_the_interval():
    labels = np.repeat([0, 1, -1], [12, 8, 80])
    values = np.full(100, np.nan)
    values[:12] = np.linspace(9.9, 10.1, 12)
    values[12:20] = np.linspace(14.9, 15.1, 8)
    placed = np.arange(100) < 20
    found = estimate(values, labels, placed)
    assert [(s.id, s.devices) for s in found.strata] == [(0, 60), (1, 40)]
    assert found.mean_ms == pytest.approx(12)
    assert (
        found.within_percent
        > 5 * estimate(values[:20], labels[:20], repeatability=0.005).within_percent
    )
    # The strata tell nothing here that a plain sample of twenty would not.
    plain = estimate(values, np.zeros(100, dtype=int))
    assert found.within_percent == pytest.approx(plain.within_percent, rel=0.15)


def test_more_is_measured_where_more_devices_differ_more():
    strata = (
        Stratum(0, 1000, 50, 10.0, 0.2),
        Stratum(1, 1000, 50, 10.0, 0.8),
        Stratum(2, 2, 0, math.nan, math.nan),
        Stratum(-1, 5, 5, 20.0, 8.0),
    )
    found = plan(strata, 0.5)
    assert found.allocation[1] == pytest.approx(4 * found.allocation[0], rel=0.1)
    assert found.allocation[2] == 2
    assert LEAST <= found.allocation[-1] <= 5
    assert found.within_percent <= 0.5
    assert plan(strata, 50).allocation == {0: LEAST, 1: LEAST, 2: 2, -1: LEAST}
    assert plan(strata, 1e-9).devices == 2007


def test_what_is_drawn_is_as_many_of_each_and_never_one_twice():
    labels = np.array([0] * 10 + [1] * 5 + [-1] * 2)
    rows = draw(labels, {0: 4, 1: 5, -1: 3}, np.random.default_rng(0))
    assert len(set(rows)) == len(rows) == 11
    assert np.bincount(labels[list(rows)] + 1).tolist() == [2, 4, 5]
    seen = {draw(labels, {0: 1}, np.random.default_rng(s)) for s in range(60)}
    assert seen == {(row,) for row in range(10)}


def test_the_document_is_plain_json():
    rng = np.random.default_rng(0)
    labels, level = fleet(rng, 200)
    _, values = sampled(level, labels, rng)
    data = document(estimate(values, labels), (1.0, 3.0))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [needed["within_percent"] for needed in data["needed"]] == [1.0, 3.0]
    assert data["needed"][0]["devices"] == sum(data["needed"][0]["allocation"].values())


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        ([np.nan, np.nan], [0, 0], "no device was measured"),
        ([1.0, np.nan], [0, 0], "one device alone was measured"),
        ([1.0, -1.0], [0, 0], "positive"),
        ([1.0, np.inf], [0, 0], "positive and finite"),
        ([1.0, 2.0], [0], "labels"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(values, labels, words):
    with pytest.raises(ValueError, match=words):
        estimate(values, labels)


def test_a_width_that_makes_no_sense_is_refused():
    for within in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="width"):
            plan((Stratum(0, 5, 5, 1.0, 0.1),), within)
    with pytest.raises(ValueError, match="nothing was measured"):
        plan((Stratum(0, 5, 0, math.nan, math.nan),), 1)
