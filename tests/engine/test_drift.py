"""Changes in one series, over a fleet round by round, and in whole series from elsewhere."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import f1, first_change, noisy, watch_fleet
from engine.fleet.drift import (
    Change,
    Cleared,
    DriftSettings,
    FleetMonitor,
    Monitor,
    detect,
    fleet_round,
)
from engine.fleet.peers import own_change

TCPD = Path(__file__).resolve().parents[3] / "shared" / "data" / "tcpd"
SHORT = DriftSettings(baseline=8)


def rng_of(seed):
    return np.random.default_rng(seed)


def told(values, settings=None, sigma=0.01, monitor=None):
    """Return what a monitor says, in order."""
    monitor = monitor or Monitor(settings)
    said = [monitor.update(float(v), sigma) for v in values]
    return [s for s in said if s is not None]


# One series


def test_flat_noise_with_outliers_raises_next_to_nothing():
    false = sum(first_change(noisy(rng_of(s), 500), DriftSettings()) is not None for s in range(80))
    assert false <= 1  # in 40 000 samples


def test_flat_noise_raises_next_to_nothing_on_a_short_baseline_either():
    false = sum(first_change(noisy(rng_of(s), 300), SHORT) is not None for s in range(80))
    assert false <= 1


@pytest.mark.parametrize(
    ("percent", "mean", "most"), [(5, 16, 60), (10, 7, 15), (20, 5, 8), (-10, 7, 15)]
)
def test_a_step_is_noticed_as_soon_as_the_noise_allows(percent, mean, most):
    delays, onsets = [], []
    for seed in range(30):
        values = noisy(rng_of(seed), 300)
        values[100:] += math.log1p(percent / 100)
        change = first_change(values, DriftSettings())
        assert change is not None
        assert change.direction == ("up" if percent > 0 else "down")
        delays.append(change.index - 99)
        onsets.append(change.onset_index - 100)
    assert 0 < np.mean(delays) <= mean
    assert max(delays) <= most
    assert abs(np.median(onsets)) <= 1


def test_a_jump_is_a_step_with_its_size_and_its_onset():
    values = rng_of(1).normal(0, 0.01, 100)
    values[80:] += math.log(1.25)
    (change, *_) = told(values)
    assert (change.kind, change.direction, change.index, change.onset_index) == (
        "step",
        "up",
        82,
        80,
    )
    assert change.size_percent == pytest.approx(25, abs=3)


def test_slow_ageing_is_a_ramp_and_caught_near_the_effect_that_matters():
    ramps, reached = 0, []
    for seed in range(20):
        values = rng_of(seed).normal(0, 0.01, 600)
        values[150:] += np.log1p(0.0002 * np.arange(450))
        (change, *_) = told(values)
        ramps += change.kind == "ramp" and change.direction == "up"
        reached.append(0.02 * (change.index - 150))
    assert ramps >= 16
    assert np.mean(reached) < 4.5  # per cent


def test_noise_that_grows_is_a_spread_without_a_size():
    spreads = 0
    for seed in range(10):
        values = rng_of(seed).normal(0, 0.01, 500)
        values[200:] *= 4
        (change, *_) = told(values)
        spreads += change.kind == "spread"
        assert change.index >= 200
        assert change.size_percent is None or change.kind != "spread"
    assert spreads >= 9


def test_a_change_too_small_to_matter_is_not_told():
    values = rng_of(0).normal(0, 0.001, 400)
    values[100:] += math.log(1.02)
    assert told(values, sigma=0.001) == []
    assert told(values, DriftSettings(effect_percent=1), sigma=0.001)


def test_a_change_is_over_when_the_series_is_back_and_stays_back():
    values = rng_of(0).normal(0, 0.01, 200)
    values[80:100] += math.log(1.25)
    opened, over = told(values)
    assert isinstance(opened, Change)
    assert isinstance(over, Cleared)
    assert over.onset_index == opened.onset_index == 80
    assert 104 <= over.index <= 112


def test_a_change_that_only_dips_is_not_over():
    values = rng_of(0).normal(0, 0.005, 120)
    values[80:] += math.log(1.25)
    values[90:93] = 0
    assert len(told(values, sigma=0.005)) == 1


def test_a_second_change_after_the_first_is_over_is_told_again():
    values = rng_of(0).normal(0, 0.01, 300)
    values[80:120] += math.log(1.25)
    values[200:] -= math.log(1.25)
    said = told(values)
    assert [type(s).__name__ for s in said] == ["Change", "Cleared", "Change"]
    assert said[2].direction == "down"
    assert abs(said[2].onset_index - 200) <= 1


def test_while_learning_only_a_large_jump_up_is_told():
    values = rng_of(0).normal(0, 0.01, 25)
    assert told(values) == []
    assert told([*values[:10], *(values[10:] + math.log(1.1))]) == []
    (change,) = told([*values[:10], *(values[10:] + math.log(1.3))])
    assert (change.kind, change.onset_index, change.index) == ("step", 10, 12)
    monitor = Monitor()
    told(values, monitor=monitor)
    assert monitor.learning
    assert monitor.baseline is None


def test_the_baseline_is_the_median_and_stays_as_it_was():
    monitor = Monitor(SHORT)
    first = [0.0, 0.01, -0.02, 0.03, 0.0, 0.01, 0.02, -0.01]
    told(first, monitor=monitor)
    assert monitor.baseline == np.median(first)
    told(np.linspace(0, 0.025, 200), monitor=monitor)
    assert monitor.baseline == np.median(first)


def test_a_missing_sample_counts_as_a_round_and_moves_nothing():
    values = rng_of(3).normal(0, 0.01, 100)
    values[80:] += math.log(1.25)
    monitor = Monitor()
    changes = []
    for place, value in enumerate(values):
        changes.append(monitor.update(float(value), 0.01))
        if place in (10, 79, 80):
            monitor.skip()
            assert monitor.update(math.nan) is None
    (change,) = [c for c in changes if c is not None]
    assert (change.onset_index, change.index) == (84, 88)


@pytest.mark.parametrize("settings", [DriftSettings(), SHORT])
def test_a_monitor_goes_on_from_its_state_to_the_last_bit(settings):
    values = rng_of(5).normal(0, 0.02, 260)
    values[100:140] += 0.1
    values[200:] *= 5
    values[50] = math.nan
    whole, pieces = Monitor(settings), Monitor(settings)
    said = 0
    for value in values:
        state = json.loads(json.dumps(pieces.to_state()))
        pieces = Monitor.from_state(state, settings)
        expected = whole.update(float(value), 0.02)
        assert pieces.update(float(value), 0.02) == expected
        said += expected is not None
    assert said >= 3
    assert pieces.to_state() == whole.to_state()


def test_a_state_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not the state"):
        Monitor.from_state({"up": 1})
    with pytest.raises(ValueError, match="version"):
        FleetMonitor.from_state({})
    with pytest.raises(ValueError, match="not the whole state"):
        FleetMonitor.from_state({"version": 2, "round": 0})


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="baseline"):
        DriftSettings(baseline=0)
    with pytest.raises(ValueError, match="sigma_floor"):
        DriftSettings(sigma_floor=0)


# A fleet, round by round


def test_what_all_do_together_is_the_fleets_and_not_the_devices():
    residuals, common = fleet_round({"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1, "e": 0.4})
    assert common == pytest.approx(0.1)
    assert residuals == pytest.approx({"a": 0, "b": 0, "c": 0, "d": 0, "e": 0.3})


def test_a_group_of_four_does_not_hide_that_half_of_it_shifted():
    ratios = {f"d{i}": 0.0 for i in range(12)} | {"d0": 0.2, "d1": 0.2, "d2": 0.2}
    residuals, _ = fleet_round(ratios, {f"d{i}": i // 4 for i in range(12)})
    assert [round(residuals[f"d{i}"], 9) for i in range(4)] == [0.2, 0.2, 0.2, 0.0]


def test_a_large_cluster_speaks_for_itself():
    ratios = {f"d{i}": 0.2 if i < 8 else 0.0 for i in range(30)}
    residuals, common = fleet_round(ratios, {f"d{i}": int(i >= 8) for i in range(30)})
    assert common == 0
    assert set(residuals.values()) == {0.0}


def test_few_devices_have_no_peers():
    assert fleet_round({"a": 0.2, "b": 0.0, "c": 0.0}) == ({"a": 0.2, "b": 0.0, "c": 0.0}, 0.0)
    assert fleet_round({}) == ({}, 0.0)


@pytest.mark.parametrize("noise", [0.015, 0.02, 0.025])
def test_twelve_flat_devices_on_a_short_baseline_raise_nothing(noise):
    false = [s for seed in range(6) for s in watch_fleet(seed, noise, 8, 250)]
    assert len(false) <= 1  # in 18 000 latencies


@pytest.mark.parametrize("slow", [(0,), (0, 1, 2), (1, 5, 9), (4, 5, 6, 7)])
def test_a_quarter_more_on_a_few_of_twelve_is_noticed_within_three_rounds(slow):
    delays, others = [], 0
    for seed in range(8):
        said = watch_fleet(seed, 0.02, 8, 30, slow, at=18)
        names = {f"d{i}" for i in slow}
        for name in names:
            signal = next(s for s in said if s.subject == name)
            assert (signal.scope, signal.kind, signal.direction) == ("device", "step", "up")
            assert signal.size_percent == pytest.approx(25, abs=8)
            assert signal.now_ms == pytest.approx(
                signal.baseline_ms * (1 + signal.size_percent / 100)
            )
            assert abs(signal.onset_round - 18) <= 1
            delays.append(signal.round - 17)
        others += len({s.subject for s in said} - names)
    assert np.mean(delays) <= 3.5
    assert max(delays) <= 6
    assert others <= 1


def test_what_happens_to_all_is_one_alert_of_the_fleet():
    for seed in range(5):
        said = watch_fleet(seed, 0.015, 8, 40, range(12), at=20, size=0.1)
        assert [(s.scope, s.subject, s.direction) for s in said] == [("fleet", "fleet", "up")]
        assert said[0].size_percent == pytest.approx(10, abs=3)
        assert said[0].baseline_ms < said[0].now_ms


@pytest.mark.parametrize("size", [0.1, 0.3])
@pytest.mark.parametrize("count", [7, 8, 10])
def test_who_stays_where_it_was_while_most_become_slower_is_not_said_to_be_faster(count, size):
    left = {f"d{i}" for i in range(count, 12)}
    for seed in range(5):
        said = watch_fleet(seed, 0.015, 8, 60, range(count), at=20, size=size)
        assert ("fleet", "up") in {(s.scope, s.direction) for s in said}
        assert not left & {s.subject for s in said}


def test_who_became_faster_while_the_others_became_slower_is_told_with_its_own_part():
    residuals = own_change(
        {"a": -0.1, "b": 0.3, "c": 0.1, "d": 0.0}, {"a": -0.4, "b": 0.0, "c": -0.2}, 0.05
    )
    assert residuals == {"a": -0.1, "b": 0.0, "c": 0.0}
    # What peers do besides is no more than noise: against them is what counts.
    assert own_change({"a": 0.01}, {"a": -0.02}, 0.05) == {"a": -0.02}


def test_what_happens_to_a_large_cluster_is_one_alert_of_the_cluster():
    rng, monitor, said = rng_of(0), FleetMonitor(SHORT), []
    clusters = {f"d{i}": i // 10 for i in range(40)}
    for count in range(40):
        latencies = 10 * np.exp(rng.normal(0, 0.015, 40))
        latencies[:10] *= 1.15 if count >= 20 else 1
        said += monitor.update(dict(zip(clusters, latencies.tolist(), strict=True)), clusters)[0]
    assert [(s.scope, s.subject) for s in said] == [("cluster", "cluster 0")]
    _, over = monitor.update(dict(zip(clusters, latencies.tolist(), strict=True)), {})
    assert [(c.scope, c.subject) for c in over] == [("cluster", "cluster 0")]


def rounds_of(rng, count, slow=None, at=0, missing=0.0, devices=12, size=0.25):
    for number in range(count):
        latencies = np.arange(5, 5 + devices) * np.exp(rng.normal(0, 0.02, devices))
        if slow is not None and number >= at:
            latencies[slow] *= 1 + size
        yield {
            f"d{i}": None if rng.random() < missing else float(v) for i, v in enumerate(latencies)
        }


def test_rounds_that_a_device_misses_neither_alarm_nor_hide():
    monitor, said = FleetMonitor(SHORT), []
    for number, latencies in enumerate(rounds_of(rng_of(2), 150, 3, 100, missing=0.2)):
        if number == 90:
            latencies = {}
        if number % 2:
            latencies = {k: v for k, v in latencies.items() if v is not None}
        said += monitor.update(latencies)[0]
    assert [s.subject for s in said] == ["d3"]
    assert 100 <= said[0].onset_round <= said[0].round <= 112
    assert monitor.rounds == 150


def test_a_device_that_joins_late_is_learned_and_watched():
    monitor, said = FleetMonitor(SHORT), []
    for number, latencies in enumerate(rounds_of(rng_of(4), 80, 7, 60)):
        if number < 30:
            del latencies["d7"]
        said += monitor.update(latencies)[0]
        if number == 32:
            assert monitor.standings()["d7"].learning
    assert [(s.subject, s.onset_round) for s in said] == [("d7", 60)]


def test_a_jump_while_the_fleet_is_learned_is_told():
    monitor, said = FleetMonitor(DriftSettings(baseline=40)), []
    for latencies in rounds_of(rng_of(4), 14, 2, 8, size=0.4):
        said += monitor.update(latencies)[0]
    assert monitor.learning
    assert [(s.subject, s.kind, s.onset_round, s.round) for s in said] == [("d2", "step", 8, 10)]


def test_a_clearance_follows_and_a_forgotten_device_learns_its_new_level():
    monitor, said, over = FleetMonitor(SHORT), [], []
    steady, slow = list(rounds_of(rng_of(0), 20)), list(rounds_of(rng_of(1), 20, 0))
    for latencies in [*steady, *slow, *steady]:
        signals, clearances = monitor.update(latencies)
        said += signals
        over += clearances
    assert [s.subject for s in said] == ["d0"]
    assert [(c.scope, c.subject) for c in over] == [("device", "d0")]
    assert 43 <= over[0].round <= 50
    monitor.forget(["d0"])
    for latencies in slow:
        assert monitor.update(latencies) == ([], [])
    standing = monitor.standings()["d0"]
    assert not standing.learning
    assert not standing.drifting
    assert standing.baseline_ms == pytest.approx(5 * 1.25, rel=0.05)
    assert standing.change_percent == pytest.approx(0, abs=6)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_a_tiny_fleet_is_watched_too(devices):
    monitor, said = FleetMonitor(DriftSettings(baseline=20)), []
    for latencies in rounds_of(rng_of(0), 150, 0, 120, devices=devices):
        said += monitor.update(latencies)[0]
    assert [(s.subject, s.direction) for s in said] == [("d0", "up")]


def test_a_fleets_monitor_goes_on_from_its_state_to_the_last_bit():
    whole, pieces, said = FleetMonitor(SHORT), FleetMonitor(SHORT), 0
    clusters = {f"d{i}": i // 6 for i in range(12)}
    for latencies in rounds_of(rng_of(6), 60, 5, 30, missing=0.1):
        pieces = FleetMonitor.from_state(json.loads(json.dumps(pieces.to_state())), SHORT)
        expected = whole.update(latencies, clusters)
        assert pieces.update(latencies, clusters) == expected
        said += len(expected[0])
    assert said >= 1
    assert pieces.to_state() == whole.to_state()
    assert pieces.standings() == whole.standings()


def test_latencies_that_are_none_are_missing():
    monitor = FleetMonitor(SHORT)
    for _ in range(12):
        monitor.update({"a": math.nan, "b": -1.0, "c": 0.0, "d": math.inf, "e": None})
    assert monitor.standings() == {}


# A whole series


@pytest.mark.parametrize("length", [12, 30, 100, 400])
def test_flat_series_of_any_length_hold_no_change(length):
    false = 0
    for seed in range(40):
        rng = rng_of(seed)
        false += bool(detect(20 * np.exp(rng.normal(0, 0.02, length))))
        false += bool(detect(rng.normal(0, 5, length)))
        false += bool(detect(rng.standard_t(3, length)))
    assert false <= 2  # of 120 series


def test_correlated_noise_is_no_change():
    false = 0
    for seed in range(40):
        rng, values = rng_of(seed), np.zeros(200)
        for i in range(1, 200):
            values[i] = 0.6 * values[i - 1] + rng.normal(0, 0.02)
        false += bool(detect(np.exp(values)))
    assert false <= 1


@pytest.mark.parametrize(("length", "percent"), [(20, 25), (40, 15), (100, 8), (300, -6)])
def test_a_step_is_found_where_it_is_in_a_series_of_any_length(length, percent):
    right, extra = 0, 0
    for seed in range(20):
        values = 7 * np.exp(rng_of(seed).normal(0, 0.01, length))
        values[length // 2 :] *= 1 + percent / 100
        changes = detect(values)
        near = [c for c in changes if abs(c.onset_index - length // 2) <= 1 and c.kind == "step"]
        right += len(near) == 1
        extra += len(changes) - len(near)
        for change in near:
            assert change.size_percent == pytest.approx(percent, abs=2)
            assert change.direction == ("up" if percent > 0 else "down")
            assert change.onset_index <= change.index < length
    assert right >= 18
    assert extra <= 1


def test_after_a_change_the_baseline_is_learned_anew():
    values = 10 * np.exp(rng_of(0).normal(0, 0.02, 400) + np.repeat([0, 0.1, 0.2, 0.05], 100))
    changes = detect(values)
    assert [c.kind for c in changes] == ["step"] * 3
    assert np.allclose([c.onset_index for c in changes], [100, 200, 300], atol=3)
    assert [c.direction for c in changes] == ["up", "up", "down"]


def test_a_ramp_is_one_change_even_if_it_comes_to_rest():
    kinds, onsets = [], []
    for seed in range(15):
        level = np.r_[np.zeros(200), np.linspace(0, 0.3, 150), np.full(150, 0.3)]
        changes = detect(10 * np.exp(level + rng_of(seed).normal(0, 0.02, 500)))
        kinds.append([c.kind for c in changes])
        onsets.append(changes[0].onset_index - 200)
    assert kinds.count(["ramp"]) >= 13
    assert np.abs(onsets).mean() <= 15


def test_a_clean_ramp_is_found_where_it_begins():
    (change,) = detect(10 * np.exp(np.r_[np.zeros(100), np.linspace(0, 0.5, 100)]))
    assert (change.kind, change.direction) == ("ramp", "up")
    assert abs(change.onset_index - 100) <= 1
    assert change.size_percent == pytest.approx(65, abs=2)


def test_a_series_that_rises_from_its_start_is_a_ramp_from_its_start():
    (change,) = detect(np.linspace(10, 20, 100))
    assert (change.kind, change.direction, change.onset_index) == ("ramp", "up", 0)


def test_a_grown_spread_is_found():
    right = 0
    for seed in range(10):
        values = rng_of(seed).normal(0, 0.01, 300)
        values[150:] *= 4
        changes = detect(np.exp(values))
        right += [c.kind for c in changes] == ["spread"]
        assert all(c.size_percent is None for c in changes if c.kind == "spread")
    assert right >= 8


def test_numbers_that_are_not_all_positive_have_no_per_cent():
    (change,) = detect([0.0] * 30 + [5.0] * 30)
    assert (change.onset_index, change.kind, change.size_percent) == (30, "step", None)


def test_a_blip_is_no_change():
    values = 10 * np.exp(rng_of(0).normal(0, 0.02, 300))
    values[150:153] *= 1.5
    assert detect(values) == []


def test_a_series_that_wanders_or_is_too_short_or_constant_holds_nothing():
    assert detect(np.full(60, 3.0)) == []
    assert detect([1.0, 9.0, 1.0]) == []
    assert detect([]) == []
    assert sum(bool(detect(np.cumsum(rng_of(s).normal(0, 1, 300)))) for s in range(10)) <= 4


def test_settings_reach_a_whole_series():
    values = 10 * np.exp(rng_of(0).normal(0, 0.005, 200) + np.repeat([0, 0.05], 100))
    assert len(detect(values)) == 1
    assert detect(values, replace(DriftSettings(), effect_percent=10)) == []


@pytest.mark.parametrize("values", [[1.0, math.nan] * 10, [1.0, math.inf] * 10, [[1.0] * 20] * 2])
def test_what_is_no_series_is_refused(values):
    with pytest.raises(ValueError, match="a series"):
        detect(values)


def test_any_numbers_give_changes_in_order_within_the_series():
    found = 0
    for seed in range(150):
        rng = rng_of(seed)
        length = int(rng.integers(0, 150))
        values = np.cumsum(rng.normal(0, rng.choice([0, 0.05]), length))
        values += np.repeat(rng.normal(0, rng.choice([0.1, 5]), 150), 30)[:length]
        values += rng.normal(0, rng.choice([0, 0.01, 1]), length)
        values = np.exp(values) if seed % 2 else np.round(values, 1) * 10.0 ** rng.integers(-9, 300)
        changes = detect(values)
        onsets = [c.onset_index for c in changes]
        assert onsets == sorted(onsets)
        assert all(0 <= c.onset_index <= c.index < length for c in changes)
        found += len(changes)
    assert found > 50


def test_annotated_real_series_are_read_better_than_by_default_binary_segmentation():
    if not TCPD.is_dir():
        pytest.skip(f"no annotated series at {TCPD}")
    annotations = json.loads((TCPD / "annotations.json").read_text())
    published = {}
    for line in (TCPD / "published_scores.csv").read_text().splitlines()[1:]:
        name, _, binseg, _, _, zero, *_ = line.split(",")
        published[name] = (float(zero), float(binseg))
    scores = []
    for name, (zero, binseg) in published.items():
        truth = list(annotations[name].values())
        assert f1(truth, []) == pytest.approx(zero, abs=0.001)
        series = json.loads((TCPD / "series" / f"{name}.json").read_text())["series"][0]["raw"]
        found = [c.onset_index for c in detect(series)]
        if name == "quality_control_5":
            assert found == []
        scores.append((f1(truth, found), zero, binseg))
    here, zero, binseg = np.mean(scores, axis=0)
    assert here > zero
    assert here > binseg
