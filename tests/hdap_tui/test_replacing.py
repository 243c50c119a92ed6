"""Another device under a known name, a device under another name: no two histories are mixed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from operating import caller

from engine.fleet.clusters import cluster
from engine.latency import Latency
from hdap_tui import replacing
from hdap_tui.config import Settings, load
from hdap_tui.errors import ExitCode, RefusedError
from hdap_tui.store import alerts, clusters, devices, drift, facts, measurements, models, past
from hdap_tui.store.database import Store, StoreError, open_store
from hdap_tui.store.drift import DriftState
from hdap_tui.store.values import to_micros

MODEL = "ab" * 32
FILE = '[fleet]\nname = "f"\nstate = "state"\n[[devices]]\nname = "a"\n[[devices]]\nname = "b"\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "fleet.toml"
    file.write_text(FILE)
    return load(file)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings.database)
    devices.sync(opened, settings.devices)
    models.add(opened, name="m", digest=MODEL, path="/m", kind="model", size=1)
    for name in ("a", "b"):
        devices.set_model(opened, name, MODEL)
    yield opened
    opened.close()


def measure(store: Store, **medians: float) -> None:
    sweep = measurements.begin(store, "canary")
    for name, median in medians.items():
        at = datetime.now(UTC).isoformat()
        measurements.add(store, sweep, Latency(device=name, model=MODEL, median_ms=median, at=at))
    measurements.finish(store, sweep)


def known(store: Store) -> None:
    """Let much be recorded of a."""
    measure(store, a=5.0, b=6.0)
    facts.save(store, "a", {"board": "pi4"})
    latencies = np.array([[5.0], [5.001]])
    found = cluster(latencies, eps_percent=5, min_samples=2)
    clusters.save(store, found, ["a", "b"], ["m"], latencies)
    drift.save_states(store, MODEL, {("device", "a"): DriftState(baseline_ms=4.0)})
    alerts.fire(store, scope="device", subject="a", kind="step", direction="up", model="m",
                baseline_ms=4.0, now_ms=5.0, size_percent=25.0, onset_at="")  # fmt: skip


def medians(store: Store, name: str) -> list[float]:
    return [point.median_ms for point in measurements.history(store, name)]


def test_another_key_is_another_device_and_the_old_history_has_a_name_of_its_own(
    settings: Settings, store: Store
) -> None:
    replacing.take_key(settings, store, "a", "SHA256:one", is_same=False)
    known(store)
    time.sleep(0.005)  # the log of the past counts in milliseconds
    before = to_micros(datetime.now(UTC).isoformat())
    time.sleep(0.005)
    old = replacing.take_key(settings, store, "a", "SHA256:two", is_same=False)
    assert old == f"a@{datetime.now(UTC):%Y-%m-%d}"
    measure(store, a=9.0)

    assert (medians(store, old), medians(store, "a")) == ([5.0], [9.0])
    rows = {row.name: row for row in devices.rows(store)}
    assert set(rows) == {"a", "b"}
    new = rows["a"]
    assert (dict(new.facts), new.model, new.baseline_ms, new.alert) == ({}, "", None, None)
    assert facts.latest_of(store, old) == {"board": "pi4"}
    assert clusters.latest(store).devices == ("b",)
    assert alerts.rows(store)[0].reason == f"another device has this name now, this one is {old}"
    assert devices.earlier(store, "a") == [old]
    then = next(row for row in past.snapshot(store, "f", before).devices if row.name == "a")
    assert then.latency_ms == 5.0
    assert devices.name_at(store, "a", before) == old


def test_a_key_that_was_noted_already_changes_nothing(settings: Settings, store: Store) -> None:
    known(store)
    assert replacing.take_key(settings, store, "a", "SHA256:two", is_same=False)
    measure(store, a=9.0)
    assert replacing.take_key(settings, store, "a", "SHA256:two", is_same=False) == ""
    assert medians(store, "a") == [9.0]


def test_the_same_device_with_a_new_key_keeps_its_history(settings: Settings, store: Store) -> None:
    known(store)
    assert replacing.take_key(settings, store, "a", "SHA256:two", is_same=True) == ""
    assert medians(store, "a") == [5.0]
    assert devices.host_key(store, "a") == "SHA256:two"
    assert alerts.open_rows(store)


def test_a_device_of_which_nothing_was_recorded_leaves_nothing_behind(
    settings: Settings, store: Store
) -> None:
    replacing.take_key(settings, store, "a", "SHA256:one", is_same=False)
    assert replacing.take_key(settings, store, "a", "SHA256:two", is_same=False) == ""
    assert devices.earlier(store, "a") == []


def test_two_devices_that_go_on_one_day_get_two_names(settings: Settings, store: Store) -> None:
    names = []
    for key in ("SHA256:1", "SHA256:2", "SHA256:3"):
        measure(store, a=5.0)
        names.append(replacing.take_key(settings, store, "a", key, is_same=False))
    today = f"a@{datetime.now(UTC):%Y-%m-%d}"
    assert names == [today, f"{today}-2", f"{today}-3"]


def test_a_renamed_device_takes_its_history_along(
    settings: Settings, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    known(store)
    settings.path.write_text(FILE.replace('"a"', '"cam"'))
    hdap = caller(settings.path, capsys)
    hdap("devices")  # whoever looks first makes the new name known
    status, _, said = hdap("devices", "rename", "a", "cam")
    assert (status, "stays as it is" in said) == (ExitCode.REFUSED, True)
    assert hdap("devices", "rename", "a", "cam", "--yes")[0] == ExitCode.DONE
    assert medians(store, "cam") == [5.0]
    assert facts.latest_of(store, "cam") == {"board": "pi4"}
    assert alerts.rows(store)[0].reason == "the device is called cam now"
    (row,) = (row for row in devices.rows(store) if row.name == "cam")
    assert (row.model, row.latency_ms) == ("m", 5.0)
    with pytest.raises(StoreError):
        devices.device_id(store, "a")


def test_histories_are_not_mixed_by_a_new_name(settings: Settings, store: Store) -> None:
    known(store)
    with pytest.raises(RefusedError, match="it still names a; rename it there first"):
        replacing.rename(settings, store, "a", "b")
    settings.path.write_text('[fleet]\nname = "f"\nstate = "state"\n[[devices]]\nname = "b"\n')
    with pytest.raises(RefusedError, match="two histories are never mixed"):
        replacing.rename(load(settings.path), store, "a", "b")
    assert medians(store, "a") == [5.0]
    with pytest.raises(StoreError, match='no device "zzz"'):
        replacing.rename(load(settings.path), store, "zzz", "b")


def test_the_history_of_a_device_that_went_is_readable_on_the_command_line(
    settings: Settings, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    known(store)
    old = replacing.take_key(settings, store, "a", "SHA256:two", is_same=False)
    hdap = caller(settings.path, capsys)
    assert hdap("devices", "show", "a")[1]["earlier"] == [old]
    found = hdap("devices", "show", old)[1]
    assert [point["median_ms"] for point in found["history"]] == [5.0]
    assert found["facts"] == {"board": "pi4"}
    status, _, said = hdap("devices", "show", "a@1999-01-01")
    assert status == ExitCode.USAGE
    assert said.count("\n") == 1
