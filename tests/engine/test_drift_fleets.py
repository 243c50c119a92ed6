"""Drift over a fleet: the budget of false alerts, versions, crowds, migrations, tables."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks.drift_fleets import noise
from benchmarks.drift_heights import CELLS, alarm_rate, level_rate
from engine.fleet.budget import LEVEL_HEIGHTS, RATES, RHOS, SPREAD_HEIGHTS, Budget, height
from engine.fleet.drift import DriftSettings, FleetMonitor, Monitor, fleet_round
from engine.fleet.limits import midmean
from engine.fleet.migration import Homes
from engine.fleet.pooled import REACHES, Noise, pooled
from engine.fleet.series import fleet_document, rounds_of
from engine.fleet.tables import Series

SHORT = DriftSettings(baseline=10, minimum=10)


def table(rounds, devices=40, rho=0.0, seed=0):
    """Return log-latencies, (rounds, devices)."""
    levels = np.random.default_rng(seed).normal(2, 0.1, devices)
    steps = noise(np.random.default_rng(seed), devices, rho)
    return levels + np.array([next(steps) for _ in range(rounds)])


def watched(logs, monitor=None, clusters=None, versions=None, first=0):
    """Return what is said, as signals and clearances of all rounds."""
    monitor = monitor or FleetMonitor(SHORT)
    signals, clearances = [], []
    for number, row in enumerate(logs, start=first):
        latencies = {f"d{i}": math.exp(v) for i, v in enumerate(row.tolist()) if v == v}
        told = monitor.update(
            latencies,
            clusters(number) if clusters else None,
            versions(number) if versions else None,
        )
        signals += told[0]
        clearances += told[1]
    return signals, clearances


# The budget


def test_the_chain_gives_the_run_lengths_that_textbooks_have():
    for k, h, length in ((0.5, 4.0, 168), (0.5, 5.0, 465), (1.0, 5.0, 54_751)):
        rate = alarm_rate(CELLS[None] - k, np.array([0.0]), 0.0, 0.0, h)[0]
        assert 1 / (2 * rate) == pytest.approx(length, rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_the_heights_are_those_at_which_the_chain_alarms_so_often(rho):
    row = LEVEL_HEIGHTS[RHOS.index(rho)]
    for power in (-4, -5):
        rate = level_rate(row[RATES.index(power)], rho)
        assert math.log10(rate) == pytest.approx(power, abs=0.1)


def test_chance_alarms_about_as_often_as_the_heights_say():
    h = height(LEVEL_HEIGHTS, 1e-3, 0.0)
    rng = np.random.default_rng(3)
    z = np.clip(rng.normal(0.949 * rng.normal(0, 1.09 / math.sqrt(60), 20_000), 0.949), -3, 3)
    up = down = np.zeros(len(z))
    alarms, slack = 0, DriftSettings().k
    for _ in range(120):
        offset = rng.normal(0, 0.949, len(z))
        outliers = rng.random(len(z)) < 0.02
        offset[outliers] += rng.exponential(6, int(outliers.sum()))
        x = np.clip(offset, -3, 3)
        up, down = np.maximum(0, up + x - slack), np.maximum(0, down - x - slack)
        alarms += int((up > h).sum() + (down > h).sum())
        up, down = np.where(up > h, 0, up), np.where(down > h, 0, down)
    assert 0.2e-3 < alarms / (120 * len(z)) < 1.2e-3  # the table allows for baselines that are off


def test_more_devices_more_rounds_and_fewer_allowed_alerts_raise_the_heights():
    def limits(series=100, rho=0.0, **budget):
        return Budget(**budget).limits(DriftSettings(), Noise(rho=rho), series)

    few, many = limits(), limits(series=5000)
    assert few.h < many.h
    assert few.scale_h <= many.scale_h
    assert limits(series=5000, per_week=0.1).h > many.h
    assert limits(series=5000, rounds_per_week=168 * 60).h > many.h
    assert limits(series=5000, rho=0.3).h > 1.3 * many.h
    assert limits(series=5000, rho=0.3).whole_baseline > 1.8 * many.whole_baseline
    assert limits(series=10**9, per_week=1e-3).h > LEVEL_HEIGHTS[0][-1]
    assert limits(series=1, per_week=1e9).h == 6


def test_where_outliers_are_common_a_jump_must_be_larger():
    tails = tuple((0.05 if reach < 9 else 0.001,) * 2 for reach in REACHES)
    found = Budget().limits(DriftSettings(), Noise(tails=tails), 5000)
    assert found.jump_z == 9
    bursts = tuple((0.003, 0.5) for _ in REACHES)  # one outlier follows the other
    assert Budget().limits(DriftSettings(), Noise(tails=bursts), 5000).jump_z == REACHES[-1]


def test_limits_that_were_given_stay():
    settings = DriftSettings(h=20, jump_z=4)
    found = Budget(fixed=frozenset({"h", "jump_z"})).limits(settings, Noise(), 5000)
    assert (found.h, found.jump_z) == (20, 4)
    assert found.scale_h != settings.scale_h


def test_heights_fall_with_the_rate_and_rise_with_the_correlation():
    for heights in (LEVEL_HEIGHTS, SPREAD_HEIGHTS):
        assert np.all(np.diff(heights, axis=0) >= 0)
        assert np.all(np.diff(heights, axis=1) > 0)
    assert height(LEVEL_HEIGHTS, 1e-6, 0.15) == pytest.approx(
        (LEVEL_HEIGHTS[1][3] + LEVEL_HEIGHTS[2][3]) / 2
    )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_the_correlation_of_a_fleet_is_learned_and_chance_is_taken_for_none(rho):
    logs = table(30, 1000, rho)
    logs -= np.median(logs, axis=0)
    found = pooled(logs - np.median(logs, axis=1)[:, None], 1000)
    assert found.rho == pytest.approx(rho, abs=0.06)
    assert found.sigma == pytest.approx(0.0262, rel=0.04)
    few = [table(30, 8, 0.0, seed) for seed in range(20)]
    few = [pooled(one - np.median(one, axis=0), 8).rho for one in few]
    assert np.mean(few) < 0.1


def test_a_fleets_monitor_holds_its_charts_to_the_budget():
    monitor = FleetMonitor(SHORT, Budget())
    watched(table(14, 20), monitor)
    alone = monitor.limits.h
    many = {f"d{i}": 10.0 for i in range(3000)}
    monitor.update(many)
    monitor.update(many)
    assert alone < monitor.limits.h
    assert monitor.limits.h == Budget().limits(SHORT, monitor.noise, 3001).h
    correlated = FleetMonitor(SHORT, Budget())
    watched(table(14, 400, 0.6), correlated)
    assert correlated.noise.rho > 0.4
    assert correlated.limits.h > monitor.limits.h


def test_a_correlated_series_learns_from_more_samples():
    settings = replace(SHORT, correlation=0.5)
    monitor = Monitor(settings)
    values = np.random.default_rng(0).normal(0, 0.01, 40).tolist()
    for value in values:
        monitor.update(value, 0.01)
    assert settings.whole_baseline == 30
    assert monitor.samples == 30
    assert monitor.baseline == midmean(values[:30])


@pytest.mark.parametrize("wrong", [{"per_week": 0}, {"rounds_per_week": math.inf}])
def test_a_budget_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        Budget(**wrong)


# Versions


def test_peers_are_those_of_the_same_cluster_and_version():
    names = [f"d{i}" for i in range(32)]
    clusters = {name: i % 2 for i, name in enumerate(names)}
    versions = {name: "new" if i < 16 else "old" for i, name in enumerate(names)}
    ratios = {n: 0.1 * clusters[n] + 0.3 * (versions[n] == "new") for n in names}
    residuals, _ = fleet_round(ratios, clusters, versions=versions)
    assert max(map(abs, residuals.values())) < 1e-9
    few = {**versions, **dict.fromkeys(names[:3], "newest")}
    residuals, _ = fleet_round({**ratios, "d0": 1.0}, clusters, versions=few)
    assert residuals["d0"] > 0.5


def rollout(size, slow=(), devices=40, at=20, each=4):
    """Return log-latencies and versions: so many devices a round become that much slower."""
    logs = table(90, devices)
    when = at + np.arange(devices) // each
    for number in range(len(logs)):
        logs[number] += np.where(number >= when, math.log1p(size), 0.0)
        for name in slow:
            logs[number, name] += 0.3 if number >= when[name] else 0.0
    return logs, lambda r: {f"d{i}": "2" if r >= when[i] else "1" for i in range(devices)}


def test_what_a_version_brings_is_one_alert_and_its_devices_learn_anew():
    logs, versions = rollout(0.15)
    monitor = FleetMonitor(SHORT)
    signals, _ = watched(logs, monitor, versions=versions)
    assert [(s.scope, s.subject, s.direction) for s in signals] == [("cohort", "version 2", "up")]
    assert signals[0].size_percent == pytest.approx(15, abs=4)
    assert signals[0].devices > 5
    assert 20 <= signals[0].onset_round <= signals[0].round <= 32
    for one in monitor.standings().values():
        assert not one.drifting
        assert abs(one.change_percent) < 9
    monitor.accept_version("2")
    assert watched(logs[-5:], monitor, versions=versions, first=90) == ([], [])


def test_the_same_roll_out_told_by_nobody_is_an_alert_of_many_devices():
    logs, _ = rollout(0.15)
    signals, _ = watched(logs)
    assert {(s.subject, s.kind) for s in signals if s.scope != "device"} == {("fleet", "step")}
    assert sum(s.scope == "device" for s in signals) <= 6


def test_who_became_slower_than_its_version_explains_is_told():
    logs, versions = rollout(0.1, slow=(9,))
    signals, _ = watched(logs, versions=versions)
    assert ("device", "d9", "up") in {(s.scope, s.subject, s.direction) for s in signals}
    told = next(s for s in signals if s.subject == "d9")
    assert told.size_percent == pytest.approx(35, abs=8)


def test_a_few_devices_with_a_new_version_go_on_under_their_baselines():
    logs = table(60)
    logs[20:, :3] += math.log(1.3)
    monitor = FleetMonitor(SHORT)
    versions = {f"d{i}": "1" for i in range(40)}
    later = {**versions, "d0": "2", "d1": "2", "d2": "2"}
    signals, _ = watched(logs, monitor, versions=lambda r: later if r >= 20 else versions)
    assert {(s.scope, s.subject) for s in signals} == {("device", f"d{i}") for i in range(3)}


def test_alerts_of_the_first_devices_end_when_their_version_becomes_a_cohort():
    logs, versions = rollout(0.3, each=1)
    signals, over = watched(logs, versions=versions)
    first = {s.subject for s in signals if s.scope == "device" and s.round < 30}
    assert first
    assert first == {c.subject for c in over if c.anew}


def test_a_version_that_was_not_known_before_is_no_change():
    logs = table(40)
    monitor = FleetMonitor(SHORT)
    watched(logs, monitor, versions=lambda r: {} if r < 20 else {f"d{i}": "2" for i in range(40)})
    watched(logs[:2], monitor, versions=lambda r: {f"d{i}": "" for i in range(40)}, first=40)
    assert not any(one.learning for one in monitor.standings().values())


def test_a_version_that_is_accepted_while_its_devices_learn_is_not_told_once_more():
    logs = table(100)
    logs[40:] += math.log(1.15)
    monitor = FleetMonitor(DriftSettings(baseline=30, minimum=30))
    versions = [{f"d{i}": number for i in range(40)} for number in "12"]
    said, _ = watched(logs[:46], monitor, versions=lambda r: versions[r >= 40])
    assert [s.subject for s in said] == ["version 2"]
    monitor.accept_version("2")
    assert monitor.standings()["d3"].learning
    rest, _ = watched(logs[46:], monitor, versions=lambda r: versions[1], first=46)
    assert rest == []
    known = monitor.standings()["d3"].baseline_ms
    assert known == pytest.approx(1.15 * math.exp(np.median(logs[:40, 3])), rel=0.04)


def test_what_a_version_does_beyond_what_was_accepted_is_told_against_that():
    logs = table(46)
    logs[30:] += math.log(1.2)
    logs[36:] += math.log(1.12)
    monitor = FleetMonitor(DriftSettings(baseline=30, minimum=30))
    versions = [{f"d{i}": number for i in range(40)} for number in "12"]
    watched(logs[:36], monitor, versions=lambda r: versions[r >= 30])
    monitor.accept_version("2")
    (signal,), _ = watched(logs[36:], monitor, versions=lambda r: versions[1], first=36)
    assert signal.subject == "version 2"
    assert signal.size_percent == pytest.approx(12, abs=4)
    assert signal.baseline_ms == pytest.approx(1.2 * math.exp(2), rel=0.1)
    assert 36 <= signal.onset_round <= 38


# Crowds


def crowd():
    logs = table(140)
    logs[20:, :12] += math.log(1.3)
    logs[70:, :9] -= math.log(1.3)
    return logs


def test_many_devices_that_change_at_once_are_one_alert_and_what_is_left_is_told():
    signals, over = watched(crowd())
    early = [s for s in signals if s.round < 70]
    assert [s.scope for s in early] == ["fleet"]
    assert early[0].size_percent == pytest.approx(30, abs=8)
    assert [(c.scope, c.subject) for c in over if c.scope == "fleet"] == [("fleet", "fleet")]
    late = {s.subject for s in signals if s.round >= 70 and s.scope == "device"}
    assert late == {"d9", "d10", "d11"}


def test_a_crowd_counts_who_joins_it():
    logs = table(60)
    for i in range(12):
        logs[20 + i :, i] += math.log(1.4)
    monitor = FleetMonitor(SHORT)
    signals, _ = watched(logs, monitor)
    assert sum(s.scope == "fleet" for s in signals) == 1
    assert sum(s.scope == "device" for s in signals) <= 5
    assert monitor.crowd == 12
    monitor.forget([f"d{i}" for i in range(12)])
    assert monitor.crowd == 0


# Migrations


def test_a_device_that_changes_its_cluster_has_moved_and_may_come_back():
    homes = Homes()
    start = {"a": 0, "b": 0, "c": 1, "d": 1}
    assert homes.update(start) == []
    (move,) = homes.update({**start, "a": 1})
    assert (move.device, move.origin, move.target, move.back) == ("a", 0, 1, False)
    assert homes.update({**start, "a": 1}) == []
    (move,) = homes.update(start)
    assert (move.device, move.target, move.back) == ("a", 0, True)


def test_noise_is_no_cluster_and_a_cluster_that_is_gone_moved_nobody():
    homes = Homes()
    homes.update({"a": 0, "b": 0, "c": 1, "d": 1})
    assert homes.update({"a": -1, "b": 0, "c": 1, "d": 1}) == []
    assert homes.update({"a": 0, "b": 0, "c": 1, "d": 1}) == []
    assert homes.update({"a": 0, "b": 0, "c": 0, "d": 0}) == []
    assert homes.update({"new": 5, "a": 0}) == []


def test_a_migration_is_told_of_the_device_and_cleared_when_it_is_back():
    labels = {f"d{i}": i // 20 for i in range(40)}
    moved = {**labels, "d3": 1}
    signals, over = watched(table(40), clusters=lambda r: moved if 20 <= r < 30 else labels)
    assert [(s.scope, s.subject, s.kind, s.round) for s in signals] == [
        ("device", "d3", "migration", 20)
    ]
    assert signals[0].note == "from cluster 0 to cluster 1"
    assert signals[0].baseline_ms > 0
    assert [(c.subject, c.kind, c.round) for c in over] == [("d3", "migration", 30)]


def test_many_that_move_together_are_one_alert_of_the_cluster():
    labels = {f"d{i}": i // 20 for i in range(40)}
    moved = {**labels, **{f"d{i}": 2 for i in range(8)}}
    signals, _ = watched(table(30), clusters=lambda r: moved if r >= 20 else labels)
    assert [(s.scope, s.subject, s.kind, s.devices) for s in signals] == [
        ("cluster", "cluster 2", "migration", 8)
    ]


def test_the_alert_of_a_cluster_ends_when_no_more_than_a_few_of_those_that_came_are_left():
    labels = {f"d{i}": i // 20 for i in range(40)}

    def clusters(number):
        # Eight come; one after the other goes back.
        away = 0 if number < 15 else 8 - max(0, number - 19)
        return {**labels, **{f"d{i}": 1 for i in range(away)}}

    signals, over = watched(table(40), clusters=clusters)
    assert [(s.scope, s.subject) for s in signals] == [("cluster", "cluster 1")]
    ends = [c for c in over if c.scope == "cluster"]
    assert {c.subject for c in ends} == {"cluster 1"}
    assert ends[0].round == 22
    assert {c.subject for c in over if c.scope == "device"} == {f"d{i}" for i in range(8)}


def test_a_device_is_back_only_where_it_was_at_home():
    homes = Homes()
    start = dict(zip("abcdef", [0, 0, 1, 1, 2, 2], strict=True))
    homes.update(start)
    assert not homes.update({**start, "a": 1})[0].back
    assert not homes.update({**start, "a": 2})[0].back
    assert not homes.update({**start, "a": 1})[0].back
    assert homes.update(start)[0].back


def test_a_device_whose_move_was_accepted_is_at_home_where_it_is():
    labels = {f"d{i}": i // 20 for i in range(40)}
    moved = {**labels, "d3": 1}
    monitor = FleetMonitor(SHORT)
    watched(table(12), monitor, clusters=lambda r: labels if r < 11 else moved)
    monitor.accept_moves(["d3"])
    (signal,), over = watched(table(2), monitor, clusters=lambda r: labels)
    assert (signal.subject, signal.note) == ("d3", "from cluster 1 to cluster 0")
    assert over == []


# Going on


def test_baselines_that_an_earlier_version_learned_hold():
    logs = table(20)
    logs[15:, 7] += math.log(1.5)
    monitor = FleetMonitor(SHORT)
    signals, _ = watched(logs, monitor)
    assert [s.subject for s in signals] == ["d7"]
    state = monitor.to_state()
    old = {name: state[name] for name in ("round", "first", "devices", "clusters", "fleet")}
    noise = {"sigma": state["noise"]["sigma"], "sigma_samples": state["noise"]["samples"]}
    old |= {"version": 1, **noise}
    for chart in [*old["devices"].values(), *old["clusters"].values(), old["fleet"]]:
        del chart["monitor"]["size"]
    again = FleetMonitor.from_state(json.loads(json.dumps(old)), SHORT)
    before, after = monitor.standings(), again.standings()
    assert before == after
    assert after["d7"].drifting
    _, over = watched(table(70, seed=0), again, first=20)
    assert [c.subject for c in over] == ["d7"]
    with pytest.raises(ValueError, match="not the whole state"):
        FleetMonitor.from_state({"version": 1})


def test_a_monitor_of_versions_crowds_and_migrations_goes_on_from_its_state():
    logs, versions = rollout(0.15)
    logs[50:, ::3] += 0.4
    labels = {f"d{i}": i // 20 for i in range(40)}

    def clusters(number):
        return labels if number < 85 else {**labels, "d39": 0}

    whole, pieces, said = FleetMonitor(SHORT, Budget()), FleetMonitor(SHORT, Budget()), []
    for number in range(len(logs)):
        pieces = FleetMonitor.from_state(json.loads(json.dumps(pieces.to_state())), SHORT, Budget())
        row = logs[number : number + 1]
        expected = watched(row, whole, clusters, versions, number)
        assert watched(row, pieces, clusters, versions, number) == expected
        said += expected[0]
    assert {s.scope for s in said} >= {"cohort", "fleet", "device"}
    assert pieces.to_state() == whole.to_state()


# Tables from elsewhere


def series(logs):
    """Return a device's row an hour, each a minute after the one before it."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Series(
            f"d{i}",
            [(start + timedelta(hours=r, minutes=i)).isoformat() for r in range(len(logs))],
            np.exp(column).tolist(),
        )
        for i, column in enumerate(logs.T)
    ]


def test_rows_are_put_together_by_time():
    found = rounds_of(series(table(5, 3)))
    assert [len(values) for values in found.values] == [3] * 5
    assert found.times[1] == "2026-01-01T01:00:00+00:00"
    assert found.per_week == pytest.approx(168)
    late = Series("x", [0, 1, 2, 7, 8], [1.0, 2.0, 3.0, 4.0, 5.0])
    twice = Series("y", [0, 1, 1.2, 2], [1.0, 2.0, 3.0, 4.0])
    found = rounds_of([late, twice])
    assert found.values[1] == {"x": 2.0, "y": 3.0}
    assert [v.get("x") for v in found.values] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.times == [0, 1, 2, 7, 8]


def test_the_document_of_a_fleet_says_what_changed_and_when_it_was_over():
    logs = table(100, 12)
    logs[60:80, 4] += math.log(1.4)
    document = fleet_document(series(logs))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["devices"], document["rounds"], document["baseline"]) == (12, 100, 25)
    (change,) = document["changes"]
    assert (change["scope"], change["device"], change["kind"]) == ("device", "d4", "step")
    assert change["onset_index"] == 60
    assert change["onset_time"].startswith("2026-01-03T12")
    assert 80 < change["over_index"] < 95
    assert change["over_time"] is not None


def test_a_fleet_of_no_names_or_of_values_that_are_not_positive_is_refused():
    with pytest.raises(ValueError, match="needs a column device"):
        rounds_of([Series(None, [0, 1], [1.0, 2.0])])
    with pytest.raises(ValueError, match="'a' has a value that is not positive"):
        rounds_of([Series("a", [0, 1], [1.0, 0.0])])
