"""What the store keeps, and how it comes back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.latency import Comparison, FleetComparison, Latency
from hdap_tui.config import Device
from hdap_tui.stages import Follower, Stages
from hdap_tui.store import (
    alerts,
    clusters,
    deployments,
    devices,
    drift,
    measurements,
    migrations,
    models,
)
from hdap_tui.store.database import Store, StoreError, open_store
from hdap_tui.store.records import AlertRow, ClusterMap
from hdap_tui.store.snapshot import snapshot, version
from hdap_tui.store.values import from_micros, to_micros

OLD, NEW, PROBE = "ab" * 32, "cd" * 32, "ef" * 32


def device(name: str, *tags: str) -> Device:
    return Device(
        name=name,
        host=name,
        port=22,
        user="u",
        identity=None,
        tags=tags,
        emulated=True,
        host_group="",
        python="python3",
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "fleet.db")
    devices.sync(opened, [device("a", "left"), device("b"), device("c")])
    models.add(opened, name="old", digest=OLD, path="/old.onnx", kind="model", size=10)
    yield opened
    opened.close()


def latency(name: str, median: float, model: str = OLD, second: int = 0, **more: Any) -> Latency:
    values: dict[str, Any] = {
        "device": name,
        "model": model,
        "median_ms": median,
        "low_ms": median * 0.99,
        "high_ms": median * 1.01,
        "n": 30,
        "block_medians_ms": (median,),
        "at": f"2026-11-20T12:00:{second:02d}.000+00:00",
    }
    return Latency(**{**values, **more})


def measure(store: Store, *found: Latency, kind: Any = "canary", whole: bool = True) -> int:
    sweep = measurements.begin(store, kind)
    for one in found:
        measurements.add(store, sweep, one)
    if whole:
        measurements.finish(store, sweep)
    return sweep


def fire(store: Store, **changes: Any) -> tuple[AlertRow, bool]:
    values: dict[str, Any] = {
        "scope": "device",
        "subject": "b",
        "kind": "step",
        "direction": "up",
        "model": "old",
        "baseline_ms": 10.0,
        "now_ms": 12.5,
        "size_percent": 25.0,
        "onset_at": "2026-11-20T12:00:00+00:00",
    }
    return alerts.fire(store, **{**values, **changes})


# Configurations


def test_a_sample_of_another_configuration_is_history_and_nothing_that_watches_sees_it(
    store: Store,
) -> None:
    devices.set_model(store, "a", OLD)
    measure(store, latency("a", 5.0, second=1))
    sweep = measurements.begin(store, "sweep")
    measurements.add(store, sweep, latency("a", 5.2, second=2, block_medians_ms=(5.1, 5.3)))
    batch = latency("a", 19.0, second=3, batch=4, threads=2, energy_mj=80.0,
                    conditions={"dirty": ["throttled during the run"]},
                    block_medians_ms=(10.0, 30.0))  # fmt: skip
    measurements.add(store, sweep, batch, "batch 4, 2 threads, CPU")
    measurements.finish(store, sweep)

    (row,) = (row for row in devices.rows(store) if row.name == "a")
    assert row.latency_ms == 5.2
    assert row.recent_ms == pytest.approx((5.0, 5.2))
    newest = measurements.latest(store, "a", OLD)
    assert newest is not None
    assert newest.median_ms == 5.2
    assert measurements.round_values(store, sweep, OLD) == {"a": 5.2}
    assert measurements.matrix(store, [OLD], sweep)[1][0, 0] == 5.2
    assert measurements.relative_sigma(store, [OLD], sweep)[0] < 0.1
    assert [p.median_ms for p in measurements.history(store, "a")] == [5.0, 5.2]

    every = measurements.history(store, "a", every=True)
    assert [p.configuration for p in every] == ["", "", "batch 4, 2 threads, CPU"]
    assert (every[-1].energy_mj, every[-1].remarks) == (80.0, ("throttled during the run",))
    detail = measurements.details(store, "a", every=True)[0]
    assert (detail["batch"], detail["threads"], detail["provider"]) == (
        4, 2, "CPUExecutionProvider",
    )  # fmt: skip


def test_measurements_from_before_there_were_configurations_are_standard_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.db"
    old = open_store(path)
    devices.sync(old, [device("a")])
    models.add(old, name="old", digest=OLD, path="/old.onnx", kind="model", size=10)
    measure(old, latency("a", 5.0))
    with old.write() as connection:  # as an older version left it
        connection.execute("ALTER TABLE samples DROP COLUMN configuration")
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm005_configurations'")
        connection.execute("PRAGMA user_version = 4")
    old.close()
    again = open_store(path)
    assert [p.configuration for p in measurements.history(again, "a")] == [""]
    again.close()


# Devices


def test_devices_come_back_in_the_order_of_the_settings(store: Store) -> None:
    devices.sync(store, [device("c"), device("a", "left", "top")])
    found = devices.rows(store)
    assert [row.name for row in found] == ["c", "a"]
    assert found[1].tags == ("left", "top")
    assert found[1].emulated
    assert found[1].state == "unknown"


def test_a_device_that_comes_back_still_has_its_number_and_history(store: Store) -> None:
    number = devices.device_id(store, "b")
    measure(store, latency("b", 5.0))
    devices.sync(store, [device("a")])
    assert len(devices.rows(store)) == 1
    devices.sync(store, [device("b"), device("a")])
    assert devices.device_id(store, "b") == number
    assert [point.median_ms for point in measurements.history(store, "b")] == [5.0]


def test_settings_that_did_not_change_cost_no_write(store: Store) -> None:
    before = store.version()
    devices.sync(store, [device("a", "left"), device("b"), device("c")])
    assert store.version() == before


def test_state_and_stage_follow_each_other(store: Store) -> None:
    devices.set_state(store, "a", "busy")
    devices.set_stage(store, "a", "timing 2/5")
    row = devices.rows(store)[0]
    assert (row.state, row.stage, row.seen_at) == ("busy", "timing 2/5", "")
    devices.set_state(store, "a", "ok")
    row = devices.rows(store)[0]
    assert (row.state, row.stage) == ("ok", "")
    assert row.seen_at
    devices.set_state(store, "a", "off", "unreachable", "no answer within 10 s")
    later = devices.rows(store)[0]
    assert (later.state, later.error, later.detail) == (
        "off", "unreachable", "no answer within 10 s",
    )  # fmt: skip
    assert later.seen_at == row.seen_at


def test_what_a_killed_process_was_doing_is_forgotten(store: Store) -> None:
    for name in "ab":
        devices.set_state(store, name, "busy")
        devices.set_stage(store, name, "upload")
    devices.set_state(store, "c", "ok")
    devices.clear_stages(store, ["a", "c"])
    assert [(r.state, r.stage) for r in devices.rows(store)] == [
        ("unknown", ""), ("busy", "upload"), ("ok", ""),
    ]  # fmt: skip
    devices.clear_stages(store)
    assert devices.rows(store)[1].stage == ""


def test_a_device_that_was_skipped_as_busy_stays_so(store: Store) -> None:
    devices.set_stage(store, "a", "busy 80 %")
    devices.set_state(store, "a", "busy", "skipped", "others used 80 % of the CPU")
    devices.clear_stages(store)
    row = devices.rows(store)[0]
    assert (row.state, row.error, row.stage) == ("busy", "skipped", "")


def test_stages_go_on_after_the_store_refused_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stages, "every_s", 0.01)
    with Stages(store) as stages:
        stages.say("nobody knows it", "connecting")
        until = time.monotonic() + 10
        while stages._latest and time.monotonic() < until:
            time.sleep(0.01)
        stages.say("a", "upload 40 %")
        while not devices.rows(store)[0].stage and time.monotonic() < until:
            time.sleep(0.01)
        assert devices.rows(store)[0].stage == "upload 40 %"


def test_since_when_a_stage_lasts_is_kept_while_only_its_figures_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stages, "every_s", 0.01)

    def seen(stage: str) -> str:
        until = time.monotonic() + 10
        while devices.rows(store)[0].stage != stage:
            assert time.monotonic() < until, f"{stage} was never written"
            time.sleep(0.01)
        return devices.rows(store)[0].stage_since

    with Stages(store) as stages:
        stages.say("a", "timing 1/5")
        first = seen("timing 1/5")
        assert abs((datetime.now(UTC) - datetime.fromisoformat(first)).total_seconds()) < 5
        stages.say("a", "timing 2/5")
        assert seen("timing 2/5") == first
        stages.say("a", "hook")
        assert seen("hook") > first
        stages.say("a", "done")
        assert seen("") == ""
        stages.say("a", "connecting")
        assert seen("connecting")
    assert seen("") == ""


def test_what_another_process_does_is_shown_of_the_devices_asked_for(store: Store) -> None:
    told: list[tuple[str, str, float | None]] = []
    follower = Follower(store, "ab", lambda *one: told.append(one))
    devices.set_stage(
        store, "a", "timing 1/5", (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    )
    devices.set_stage(store, "c", "upload")
    follower.look()
    [(name, stage, since_s)] = told
    assert (name, stage) == ("a", "timing 1/5")
    assert since_s == pytest.approx(3600, abs=5)
    told.clear()
    follower.look()
    devices.set_stage(store, "c", "timing 1/5")
    follower.look()
    assert told == []
    devices.set_state(store, "a", "ok")
    devices.set_stage(store, "b", "connecting")
    follower.look()
    assert told == [("a", ""), ("b", "connecting", None)]


def test_a_store_that_cannot_be_read_ends_nobodys_following(store: Store) -> None:
    follower = Follower(store, "a", lambda *_one: pytest.fail("there is nothing to show"))
    store.close()
    follower.look()


def test_stages_of_a_killed_process_are_forgotten_those_of_one_that_works_are_not(
    store: Store,
) -> None:
    devices.set_stage(store, "a", "upload 40 %")  # by a process that is gone
    with Stages(store):
        assert devices.rows(store)[0].stage == ""
        devices.set_stage(store, "b", "timing 1/5")
        with Stages(store) as other:
            other.say("c", "connecting")
        assert [row.stage for row in devices.rows(store)] == ["", "timing 1/5", ""]


def test_text_from_a_device_loses_its_control_characters(store: Store) -> None:
    devices.set_state(store, "a", "failed", "failed", "\x1b[2Jgone\x07" + "x" * 1000)
    detail = devices.rows(store)[0].detail
    assert detail.startswith("[2Jgone")
    assert detail.isprintable()
    assert len(detail) <= 500


def test_the_deployed_model_changes_and_the_one_before_is_remembered(store: Store) -> None:
    models.add(store, name="new", digest=NEW, path="/n", kind="artifact", size=1, parent=OLD)
    devices.set_model(store, "a", OLD)
    devices.set_model(store, "a", NEW)
    devices.set_model(store, "a", NEW)
    assert devices.models_on(store) == {"a": (NEW, OLD), "b": ("", ""), "c": ("", "")}
    assert devices.rows(store)[0].model == "new"
    by_name = models.by_name(store, "new")
    assert by_name is not None
    assert by_name.deployed_on == 1


def test_a_device_or_model_nobody_knows_is_one_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match='knows no device "zz"; is it in the settings'):
        devices.set_state(store, "zz", "ok")
    with pytest.raises(StoreError, match="knows no model ffff"):
        devices.set_model(store, "a", "ff" * 32)


# Models


def test_a_model_is_found_by_name_digest_and_the_beginning_of_a_digest(store: Store) -> None:
    for word in ("old", OLD, OLD[:8], OLD[:4].upper()):
        assert models.find(store, word).name == "old"
    models.add(store, name="twin", digest="abab" + "0" * 60, path="/t", kind="model", size=1)
    with pytest.raises(StoreError, match="beginning of several digests: twin, old"):
        models.find(store, "abab")
    with pytest.raises(StoreError, match='no model is called "olt"; did you mean "old"'):
        models.find(store, "olt")
    with pytest.raises(StoreError, match="known: twin, old"):
        models.find(store, "zzzzzz")


def test_the_lineage_of_a_model_goes_back_to_the_first(store: Store) -> None:
    metrics = {"accuracy": 0.97, "precision": "int8"}
    models.add(
        store, name="v1", digest=NEW, path="/1", kind="artifact", size=5, parent=OLD, job="j1",
        metrics=metrics,
    )  # fmt: skip
    models.add(store, name="v2", digest=PROBE, path="/2", kind="artifact", size=4, parent=NEW)
    line = models.lineage(store, PROBE)
    assert [row.name for row in line] == ["v2", "v1", "old"]
    assert [row.parent for row in line] == ["v1", "old", ""]
    assert line[1].metrics == metrics
    assert line[1].job == "j1"
    models.set_metrics(store, NEW, {"accuracy": 0.98})
    assert models.lineage(store, NEW)[0].metrics == {"accuracy": 0.98, "precision": "int8"}
    assert [row.name for row in models.rows(store)] == ["v2", "v1", "old"]


def test_the_same_content_is_the_same_model_whatever_it_is_called(store: Store) -> None:
    again = models.add(store, name="other", digest=OLD, path="/moved", kind="artifact", size=10)
    assert (again.name, again.path, again.kind) == ("old", "/moved", "model")
    assert len(models.rows(store)) == 1


def test_a_name_moves_to_new_content_and_the_old_keeps_its_history(store: Store) -> None:
    measure(store, latency("a", 3.0))
    models.add(store, name="old", digest=NEW, path="/n", kind="model", size=9)
    assert models.find(store, "old").digest == NEW
    assert [point.model for point in measurements.history(store, "a")] == [f"old@{OLD[:8]}"]


def test_a_candidate_without_a_name_is_measured_and_can_be_named_later(store: Store) -> None:
    measure(store, latency("a", 3.0, model=NEW), kind="job")
    assert models.by_digest(store, NEW) is None
    assert measurements.history(store, "a") == []
    assert len(measurements.history(store, "a", NEW)) == 1
    models.add(store, name="new", digest=NEW, path="/n", kind="artifact", size=9, parent=OLD)
    assert [point.model for point in measurements.history(store, "a")] == ["new"]


def test_a_parent_nobody_knows_is_refused_and_nothing_is_added(store: Store) -> None:
    with pytest.raises(StoreError, match="knows no model"):
        models.add(store, name="x", digest=NEW, path="", kind="model", size=0, parent="99" * 32)
    assert models.by_name(store, "x") is None


# Measurements


def test_a_history_is_oldest_first_and_ends_with_the_newest(store: Store) -> None:
    measure(store, *(latency("a", float(n), second=n) for n in range(10)))
    measure(store, latency("a", 99.0, model=PROBE, second=30))
    found = measurements.history(store, "a", OLD, limit=4)
    assert [point.median_ms for point in found] == [6.0, 7.0, 8.0, 9.0]
    assert found[-1].at == "2026-11-20T12:00:09.000+00:00"
    assert found[-1].low_ms == pytest.approx(8.91)
    assert [p.median_ms for p in measurements.history(store, "a", limit=2)] == [8.0, 9.0]
    assert measurements.history(store, "b") == []


def test_nothing_is_overwritten_even_in_the_same_instant(store: Store) -> None:
    measure(store, *(latency("a", float(n)) for n in range(5)))
    assert [p.median_ms for p in measurements.history(store, "a")] == [0.0, 1.0, 2.0, 3.0, 4.0]
    newest = measurements.latest(store, "a", OLD)
    assert newest is not None
    assert newest.median_ms == 4.0


def test_a_failed_measurement_is_kept_and_does_not_replace_the_latest(store: Store) -> None:
    devices.set_model(store, "a", OLD)
    measure(store, latency("a", 5.0, second=1))
    failed = Latency(device="a", model=OLD, error="timeout", detail="no \x1banswer",
                     at="2026-11-20T12:00:02+00:00")  # fmt: skip
    measure(store, failed)
    last = measurements.history(store, "a")[-1]
    assert last.error == "timeout"
    assert math.isnan(last.median_ms)
    assert devices.rows(store)[0].latency_ms == 5.0
    assert measurements.details(store, "a")[0]["detail"] == "no answer"


def test_a_late_result_goes_into_the_history_but_not_over_a_newer_one(store: Store) -> None:
    measure(store, latency("a", 2.0, second=9), latency("a", 1.0, second=3))
    newest = measurements.latest(store, "a", OLD)
    assert newest is not None
    assert newest.median_ms == 2.0
    assert [p.median_ms for p in measurements.history(store, "a")] == [1.0, 2.0]


def test_all_that_was_measured_is_kept(store: Store) -> None:
    whole = latency(
        "a", 5.0, p90_ms=6.0, p95_ms=7.0, mean_ms=5.5, cpu_ms=4.9, contended=0.25, energy_mj=1.5,
        conditions={"governor": "performance", "load": [0.5, 0.1]}, emulated=True,
        clock_offset_s=-0.25, block_medians_ms=(5.0, 5.1),
    )  # fmt: skip
    measure(store, whole)
    kept = measurements.details(store, "a")[0]
    for name in ("median_ms", "p90_ms", "p95_ms", "mean_ms", "cpu_ms", "energy_mj", "emulated",
                 "clock_offset_s", "n", "conditions"):  # fmt: skip
        assert kept[name] == asdict(whole)[name], name
    assert kept["block_medians_ms"] == [5.0, 5.1]
    assert kept["model"] == "old"
    assert measurements.history(store, "a")[0].contended == 0.25


def test_conditions_without_end_are_left_out_and_the_number_is_kept(store: Store) -> None:
    measure(store, latency("a", 5.0, conditions={"pad": "x" * 100_000}))
    assert "left_out" in measurements.details(store, "a")[0]["conditions"]
    assert measurements.history(store, "a")[0].median_ms == 5.0


def test_a_single_block_has_no_interval_to_show_but_counts(store: Store) -> None:
    devices.set_model(store, "a", OLD)
    measure(store, latency("a", 5.0, low_ms=-math.inf, high_ms=math.inf))
    row = devices.rows(store)[0]
    assert (row.latency_ms, row.low_ms, row.high_ms) == (5.0, None, None)
    assert measurements.history(store, "a")[0].high_ms == math.inf


def test_the_table_of_the_fleet_has_gaps_where_nothing_was_measured(store: Store) -> None:
    measure(store, latency("a", 1.0), latency("c", 3.0), latency("a", 7.0, model=PROBE))
    sweep = measure(store, latency("a", 1.5, second=5), kind="sweep")
    names, table = measurements.matrix(store, [PROBE, OLD, PROBE])
    assert names == ("a", "b", "c")
    expected = [[7.0, 1.5, 7.0], [np.nan] * 3, [np.nan, 3.0, np.nan]]
    np.testing.assert_array_equal(table, expected)
    _, only = measurements.matrix(store, [PROBE, OLD], sweep=sweep)
    np.testing.assert_array_equal(only, [[np.nan, 1.5], [np.nan] * 2, [np.nan] * 2])


def test_how_well_a_median_repeats_is_told_from_how_its_blocks_scatter(store: Store) -> None:
    random = np.random.default_rng(5)
    blocks = np.exp(0.02 * random.standard_normal((3, 400)))
    sweep = measure(
        store,
        *(
            latency(name, 10.0, block_medians_ms=tuple(10 * row))
            for name, row in zip("abc", blocks, strict=True)
        ),
        latency("a", 5.0, model=PROBE, block_medians_ms=(5.0,)),
        kind="sweep",
    )
    sigma = measurements.relative_sigma(store, [OLD, PROBE], sweep)
    assert sigma[0] == pytest.approx(0.02 * math.sqrt(math.pi / 2 / 400), rel=0.1)
    assert math.isnan(sigma[1])


def test_half_a_round_is_never_shown_as_a_whole_one(store: Store) -> None:
    first = measure(store, latency("a", 1.0), latency("b", 2.0))
    measure(store, latency("a", 5.0, second=5), whole=False)
    third = measure(store, latency("a", 3.0, second=9), Latency(device="b", model=OLD, error="x"))
    measure(store, latency("a", 4.0, second=9), kind="sweep")
    found = measurements.rounds(store, OLD)
    assert [(one.sweep, dict(one.values)) for one in found] == [
        (first, {"a": 1.0, "b": 2.0}), (third, {"a": 3.0}),
    ]  # fmt: skip
    assert measurements.rounds(store, PROBE) == []
    assert [one.sweep for one in measurements.rounds(store, OLD, limit=1)] == [third]
    last = measurements.last_finished(store, "canary")
    assert last is not None
    assert last[0] == third
    assert measurements.last_finished(store, "bench") is None


def test_times_survive_the_way_through_the_store() -> None:
    for at in ("2026-11-20T12:00:00.123+00:00", "1999-12-31T23:59:59.999+00:00"):
        assert from_micros(to_micros(at)) == at
    assert to_micros("2026-11-20T13:00:00+01:00") == to_micros("2026-11-20T12:00:00")


# Clusters and drift


def test_a_clustering_comes_back_as_it_was_saved(store: Store) -> None:
    cluster = pytest.importorskip("engine.fleet.clusters").cluster
    table = np.array([[1.0, 2.0], [1.01, 2.02], [1.5, 2.0], [1.51, 2.01], [9.0, 9.0]])
    names = ["a", "b", "c", "d", "e"]
    found = cluster(table, min_samples=2)
    saved = clusters.save(store, found, names, ["old", "probe"], table, {0: "slower"})
    assert clusters.latest(store) == saved
    assert saved.devices == tuple(names)
    assert len(saved.clusters) == 2
    assert saved.clusters[0].note == "slower"
    assert {row.representative for row in saved.clusters} <= {"a", "b", "c", "d"}
    assert saved.clusters[0].median_ms["probe"] == pytest.approx(2.01, abs=0.01)
    shown = {row.name: row for row in snapshot(store, "f").devices}
    assert (shown["a"].cluster, shown["c"].cluster) == (saved.labels[0], saved.labels[2])
    assert sum(row.representative for row in shown.values()) >= 1


def test_a_cluster_is_told_by_the_medians_of_its_own_devices(store: Store) -> None:
    table = np.array([[1.0, np.nan], [3.0, np.nan], [8.0, 4.0]])
    found: Any = SimpleNamespace(
        labels=np.array([0, 0, -1]),
        eps=0.05,
        eps_percent=5.1,
        min_samples=2,
        points=np.zeros((3, 2)),
        explained=(0.9, 0.1),
        representatives=(1,),
        ids=(0,),
    )
    saved = clusters.save(store, found, ["a", "b", "c"], ["old", "probe"], table)
    assert clusters.latest(store) == saved
    assert saved.labels == (0, 0, -1)
    (only,) = saved.clusters
    assert (only.size, only.representative, dict(only.median_ms)) == (2, "b", {"old": 2.0})
    shown = snapshot(store, "f").devices
    assert [row.cluster for row in shown] == [0, 0, -1]
    assert [row.representative for row in shown] == [False, True, False]


def test_without_a_clustering_the_map_is_empty(store: Store) -> None:
    assert clusters.latest(store) == ClusterMap()
    assert snapshot(store, "f").devices[0].cluster is None


def test_a_detector_goes_on_where_it_was(store: Store) -> None:
    states: dict[drift.Series, drift.DriftState] = {
        ("device", "a"): drift.DriftState(state={"sum": [1.5, 0.0], "n": 3}),
        ("fleet", "fleet"): drift.DriftState(state={"n": 3}, baseline_ms=5.0),
    }
    drift.save_states(store, OLD, states)
    drift.save_states(
        store, OLD, {("device", "a"): drift.DriftState(state={"n": 4}, baseline_ms=4.0)}
    )
    found = drift.load_states(store, OLD)
    assert found["device", "a"].state == {"n": 4}
    assert found["fleet", "fleet"].baseline_ms == 5.0
    assert drift.load_states(store, NEW) == {}
    drift.forget(store, "device", "a")
    assert list(drift.load_states(store, OLD)) == [("fleet", "fleet")]


def test_a_device_shows_its_change_against_the_baseline_of_its_model(store: Store) -> None:
    devices.set_model(store, "a", OLD)
    measure(store, latency("a", 12.5))
    drift.save_states(store, OLD, {("device", "a"): drift.DriftState(baseline_ms=10.0)})
    drift.save_states(store, NEW, {("device", "a"): drift.DriftState(baseline_ms=99.0)})
    row = devices.rows(store)[0]
    assert row.baseline_ms == 10.0
    assert row.change_percent == pytest.approx(25.0)


# Alerts


def test_an_alert_opens_is_acknowledged_and_resolves(store: Store) -> None:
    alert, new = fire(store, emulated=True)
    assert new
    assert (alert.state, alert.subject, alert.size_percent) == ("firing", "b", 25.0)
    assert alert.emulated
    assert devices.rows(store)[1].alert == "firing"
    alert = alerts.acknowledge(store, alert.id, "looking")
    assert alert.state == "acknowledged"
    assert alert.acknowledged_at
    assert devices.rows(store)[1].alert == "acknowledged"
    alert = alerts.resolve(store, alert.id, "back to normal")
    assert (alert.state, alert.reason) == ("resolved", "back to normal")
    assert devices.rows(store)[1].alert is None
    assert [(e.what, e.text) for e in alerts.events(store, alert.id)] == [
        ("opened", "+25.0 %: 10 ms -> 12.5 ms"),
        ("acknowledged", "looking"),
        ("resolved", "back to normal"),
    ]


@pytest.mark.parametrize(("direction", "way"), [("up", 1), ("down", -1)])
def test_a_resolved_alert_tells_how_far_it_went(store: Store, direction: str, way: int) -> None:
    alert, _ = fire(store, direction=direction, now_ms=10 + way, size_percent=way * 10.0)
    for percent in (30.0, 12.0, -1.0):
        size = way * percent
        fire(store, direction=direction, now_ms=10 + size / 10, size_percent=size)
    over = alerts.resolve(store, alert.id, "back to its baseline")
    assert (over.size_percent, over.now_ms) == (way * 30.0, 10 + way * 3)
    assert alerts.row(store, alert.id) == over


def test_an_open_alert_is_brought_up_to_date_not_doubled(store: Store) -> None:
    first, _ = fire(store)
    second, new = fire(store, now_ms=12.6, size_percent=26.0, onset_at="2026-11-20T13:00:00+00:00")
    assert not new
    assert (second.id, second.size_percent, second.onset_at) == (first.id, 26.0, first.onset_at)
    assert len(alerts.events(store, first.id)) == 1
    fire(store, now_ms=13.0, size_percent=30.0)
    assert [e.what for e in alerts.events(store, first.id)] == ["opened", "changed"]
    before = store.version()
    fire(store, now_ms=13.0, size_percent=30.0)
    assert store.version() == before


def test_an_acknowledged_alert_stays_so_and_a_resolved_one_opens_as_another(store: Store) -> None:
    first, _ = fire(store)
    alerts.acknowledge(store, first.id)
    again, new = fire(store, size_percent=40.0)
    assert (again.state, new) == ("acknowledged", False)
    alerts.resolve(store, first.id, "done")
    third, new = fire(store)
    assert new
    assert third.id != first.id
    other, new = fire(store, kind="ramp")
    assert not new  # whether it is a step or a ramp shows later
    other, new = fire(store, kind="spread")
    assert new
    fleet, new = fire(store, scope="fleet", subject="fleet", inhibited=12)
    assert new
    assert [a.id for a in alerts.rows(store)] == [fleet.id, other.id, third.id, first.id]
    assert [a.id for a in alerts.rows(store, resolved=0)] == [fleet.id, other.id, third.id]


def test_firing_alerts_come_before_acknowledged_ones(store: Store) -> None:
    first, _ = fire(store)
    second, _ = fire(store, subject="c")
    alerts.acknowledge(store, second.id)
    assert [a.id for a in alerts.open_rows(store)] == [first.id, second.id]


def test_an_alert_that_is_not_there_or_over_is_one_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match="There is no alert 7"):
        alerts.acknowledge(store, 7)
    alert, _ = fire(store)
    alerts.resolve(store, alert.id, "done")
    alerts.resolve(store, alert.id, "again")
    assert alerts.row(store, alert.id).reason == "done"
    with pytest.raises(StoreError, match="has resolved already"):
        alerts.acknowledge(store, alert.id)


def test_a_note_is_added_to_an_alerts_history(store: Store) -> None:
    alert, _ = fire(store)
    alerts.note(store, alert.id, "job started", "compress-1")
    assert alerts.events(store, alert.id)[-1].text == "compress-1"
    with pytest.raises(StoreError):
        alerts.note(store, 99, "job started")


# Deployments


def compared(name: str, speedup: float) -> Comparison:
    return Comparison(
        device=name, speedup=speedup, low=speedup - 0.1, high=speedup + 0.1, verdict="faster"
    )


def test_a_deployment_remembers_what_ran_before_and_what_it_brought(store: Store) -> None:
    models.add(store, name="new", digest=NEW, path="/n", kind="artifact", size=1, parent=OLD)
    devices.set_model(store, "a", OLD)
    devices.set_model(store, "b", OLD)
    number = deployments.begin(store, NEW, ["a", "b", "c"])
    running = deployments.row(store, number)
    assert (running.state, running.model, running.previous) == ("running", "new", "old")
    assert (running.devices, running.switched, running.emulated) == (3, 0, True)
    deployments.record_device(store, number, "a", switched=True, comparison=compared("a", 2.0))
    deployments.record_device(
        store, number, "b", switched=False, error="unreachable", detail="no answer"
    )
    deployments.record_device(store, number, "c", switched=True, comparison=compared("c", 1.5))
    fleet = FleetComparison(
        speedup=1.75, low=1.2, high=math.inf, mean_before_ms=3.0, mean_after_ms=1.7, devices=2,
        faster=2, slower=0, verdict="faster",
    )  # fmt: skip
    ended = deployments.finish(store, number, "partly", fleet)
    assert (ended.state, ended.switched, ended.speedup) == ("partly", 2, 1.75)
    assert (ended.low, ended.high, ended.verdict) == (1.2, None, "faster")
    assert ended.finished_at
    on = deployments.devices(store, number)
    assert [(d.device, d.previous, d.switched) for d in on] == [
        ("a", OLD, True), ("b", OLD, False), ("c", "", True),
    ]  # fmt: skip
    assert (on[1].error, on[1].detail) == ("unreachable", "no answer")
    assert on[0].speedup == 2.0
    back = deployments.finish(store, number, "rolled back")
    assert (back.state, back.speedup) == ("rolled back", 1.75)


def test_deployments_are_listed_newest_first(store: Store) -> None:
    first = deployments.begin(store, OLD, ["a"])
    second = deployments.begin(store, OLD, ["b"])
    deployments.finish(store, first, "finished")
    assert [row.id for row in deployments.rows(store)] == [second, first]
    last, finished = deployments.last(store), deployments.last(store, "finished")
    assert last is not None
    assert last.id == second
    assert finished is not None
    assert finished.id == first
    assert deployments.last(store, "failed") is None


def test_a_deployment_of_nothing_known_is_one_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match="knows no model"):
        deployments.begin(store, NEW, ["a"])
    with pytest.raises(StoreError, match="knows no device"):
        deployments.begin(store, OLD, ["a", "zz"])
    assert deployments.rows(store) == ()
    with pytest.raises(StoreError, match="There is no deployment 5"):
        deployments.finish(store, 5, "failed")
    number = deployments.begin(store, OLD, ["a"])
    with pytest.raises(StoreError, match='has no device "b"'):
        deployments.record_device(store, number, "b", switched=True)


# The snapshot


def test_the_snapshot_holds_everything_at_a_glance(store: Store) -> None:
    devices.set_model(store, "a", OLD)
    measure(store, *(latency("a", 1.0 + n, second=n) for n in range(40)))
    fire(store)
    deployments.begin(store, OLD, ["a"])
    seen = snapshot(store, "lab")
    assert (seen.fleet, seen.version) == ("lab", version(store))
    assert [row.name for row in seen.devices] == ["a", "b", "c"]
    first = seen.devices[0]
    assert (first.model, first.model_digest, first.latency_ms) == ("old", OLD, 40.0)
    assert first.measured_at == "2026-11-20T12:00:39.000+00:00"
    assert len(first.recent_ms) == measurements.RECENT
    assert first.recent_ms[-2:] == (39.0, 40.0)
    assert (len(seen.alerts), len(seen.models), len(seen.deployments)) == (1, 1, 1)


def test_the_sparkline_is_that_of_the_model_that_runs_now(store: Store) -> None:
    models.add(store, name="new", digest=NEW, path="/n", kind="artifact", size=1)
    devices.set_model(store, "a", OLD)
    measure(store, latency("a", 4.0), latency("a", 2.0, model=NEW))
    assert devices.rows(store)[0].recent_ms == (4.0,)
    devices.set_model(store, "a", NEW)
    assert devices.rows(store)[0].recent_ms == (2.0,)


def test_an_empty_store_has_an_empty_snapshot(tmp_path: Path) -> None:
    store = open_store(tmp_path / "empty.db")
    seen = snapshot(store, "lab")
    assert (seen.devices, seen.alerts, seen.jobs) == ((), (), ())
    store.close()


def test_ten_thousand_devices_are_read_by_index_alone(store: Store) -> None:
    parts = store.rows(f"EXPLAIN QUERY PLAN {devices._ROWS}")
    plan = " ".join(part["detail"] for part in parts)
    for alias in ("m", "l", "s"):
        assert f"SEARCH {alias} " in plan, plan


def test_a_device_that_did_not_change_is_the_same_object(store: Store) -> None:
    before = devices.rows(store)
    devices.set_stage(store, "b", "upload")
    after = devices.rows(store)
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_file_of_the_first_version_keeps_its_deployments(tmp_path: Path) -> None:
    path = tmp_path / "first.db"
    store = Store(path)
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        steps = migrations.migrations._migrations[:1]
        patch.setattr(migrations.migrations, "_migrations", steps)
        patch.setattr(migrations, "SCHEMA_VERSION", 1)
        migrations.migrate(store)
    with store.write() as connection:
        for line in (
            "INSERT INTO models (id, digest, name, created_at) VALUES (1, 'aa', 'a', 't')",
            "INSERT INTO devices (id, name, position) VALUES (1, 'd', 0)",
            "INSERT INTO deployments (id, model_id, state, started_at) "
            "VALUES (7, 1, 'partly', 't')",
            "INSERT INTO deployment_devices (deployment_id, device_id, switched) VALUES (7, 1, 1)",
        ):
            connection.execute(line)
    store.close()
    store = open_store(path)
    kept = store.rows("SELECT deployment_id, device_id, outcome FROM deployment_devices")
    assert [tuple(row) for row in kept] == [(7, 1, "kept")]
    assert [row["state"] for row in store.rows("SELECT state FROM deployments")] == ["partly"]
    assert store.rows("PRAGMA foreign_key_check") == []
    store.close()
