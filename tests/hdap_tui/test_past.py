"""The fleet as it was at a moment: what was recorded by then, and nothing of what came later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from operating import caller

from engine.fleet.clusters import cluster
from engine.latency import Latency
from hdap_tui import moments
from hdap_tui.config import Device
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.store import alerts, clusters, devices, facts, measurements, models, past
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import DeviceRow
from hdap_tui.store.values import from_micros, to_micros

OLD, NEW = "ab" * 32, "cd" * 32
SETTINGS = """
[fleet]
name = "past"
state = "state"
[[devices]]
name = "edge-[1:3]"
tags = ["hall"]
emulated = true
"""


def device(name: str) -> Device:
    return Device(
        name=name, host=name, port=22, user="u", identity=None, tags=("hall",), emulated=True,
        host_group="", python="python3",
    )  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    opened = open_store(file.parent / "state" / "fleet.db")
    devices.sync(opened, [device(f"edge-{number}") for number in (1, 2, 3)])
    for name, digest in (("old", OLD), ("new", NEW)):
        models.add(opened, name=name, digest=digest, path=f"/{name}", kind="model", size=1)
    yield opened
    opened.close()


def measure(store: Store, at: datetime | None = None, **medians: float) -> None:
    """Time the deployed model on devices: edge_1=5.0; NaN is a failure."""
    sweep = measurements.begin(store, "canary")
    deployed = devices.models_on(store)
    for name, median in medians.items():
        own = name.replace("_", "-")
        failed = math.isnan(median)
        measurements.add(
            store,
            sweep,
            Latency(
                device=own, model=deployed[own][0] or OLD, median_ms=median, low_ms=0.9 * median,
                high_ms=1.1 * median, n=9, error="timeout" if failed else "",
                at=(at or datetime.now(UTC)).isoformat(),
            ),
        )  # fmt: skip
    measurements.finish(store, sweep)


def moment() -> int:
    """Return this moment, and go on to the next millisecond: the log counts in these."""
    time.sleep(0.003)
    at = to_micros(datetime.now(UTC).isoformat())
    time.sleep(0.003)
    return at


def line(store: Store, at: int, name: str = "edge-1") -> DeviceRow:
    return next(row for row in past.snapshot(store, "past", at).devices if row.name == name)


def test_a_device_shows_the_model_state_and_latency_that_it_had(store: Store) -> None:
    devices.set_model(store, "edge-1", OLD)
    measure(store, edge_1=5.0)
    devices.set_state(store, "edge-1", "ok")
    first = moment()
    devices.set_model(store, "edge-1", NEW)
    measure(store, edge_1=3.0)
    devices.set_state(store, "edge-1", "off", "unreachable", "no route to host")
    second = moment()
    measure(store, edge_1=math.nan)

    was, then = line(store, first), line(store, second)
    assert (was.model, was.latency_ms, was.state, was.recent_ms) == ("old", 5.0, "ok", (5.0,))
    assert (then.model, then.latency_ms, then.state) == ("new", 3.0, "off")
    assert (then.error, then.detail) == ("unreachable", "no route to host")
    assert then.measured_at < from_micros(second)
    assert (was.tags, was.emulated, was.past) == (("hall",), True, True)


def test_what_nobody_recorded_is_unknown_and_not_as_it_is_today(store: Store) -> None:
    devices.set_model(store, "edge-1", OLD)
    facts.save(store, "edge-1", {"board": "later"})
    long_ago = datetime.now(UTC) - timedelta(days=3)
    measure(store, long_ago, edge_1=5.0)
    devices.set_stage(store, "edge-1", "timing 2/5", "2026-11-28T10:00:00+00:00")
    row = line(store, to_micros((long_ago + timedelta(hours=1)).isoformat()))
    assert (row.state, row.model, row.latency_ms) == ("unknown", "", None)
    assert (row.stage, row.baseline_ms, row.change_percent) == ("", None, None)
    assert (dict(row.facts), row.cluster) == ({}, None)


def test_the_fleet_of_then_has_the_devices_that_the_settings_named_then(store: Store) -> None:
    first = moment()
    devices.sync(store, [device("edge-1"), device("cam-1")])
    second = moment()
    devices.sync(store, [device("edge-1")])
    names = [[row.name for row in past.snapshot(store, "past", at).devices]
             for at in (first, second, moment())]  # fmt: skip
    assert names == [["edge-1", "edge-2", "edge-3"], ["edge-1", "cam-1"], ["edge-1"]]
    log = store.rows("SELECT count(*) FROM device_log WHERE device_id = 1")
    assert log[0][0] == 1  # other devices of the settings are nothing new about this one


def test_facts_and_clusters_are_those_of_then(store: Store) -> None:
    facts.save(store, "edge-2", {"board": "pi4", "kernel": "6.1", "disk_free_mb": 5})
    latencies = np.array([[1.0], [1.001], [2.0]])
    names = ["edge-1", "edge-2", "edge-3"]
    clusters.save(store, cluster(latencies, eps_percent=5, min_samples=2), names, ["m"], latencies)
    first = moment()
    facts.save(store, "edge-2", {"board": "pi4", "kernel": "6.6", "disk_free_mb": 5})
    clusters.save(
        store, cluster(latencies, eps_percent=200, min_samples=2), names, ["m"], latencies
    )
    was, then = past.snapshot(store, "past", first), past.snapshot(store, "past", moment())
    assert [row.cluster for row in was.devices] == [0, 0, -1]
    assert [row.cluster for row in then.devices] == [0, 0, 0]
    assert dict(was.devices[1].facts) == {"board": "pi4", "kernel": "6.1"}
    assert then.devices[1].facts["kernel"] == "6.6"
    assert was.map.at < then.map.at


def fire(store: Store, now_ms: float) -> int:
    alert, _ = alerts.fire(
        store, scope="device", subject="edge-1", kind="step", direction="up", model="old",
        baseline_ms=10.0, now_ms=now_ms, size_percent=10 * (now_ms - 10), inhibited=2,
        onset_at="2026-11-20T12:00:00+00:00", text="a note",
    )  # fmt: skip
    return alert.id


def test_an_alert_stands_as_its_history_tells(store: Store) -> None:
    before = moment()
    number = fire(store, 12.5)
    opened = moment()
    fire(store, 14.0)
    alerts.acknowledge(store, number, "a fan is ordered")
    acknowledged = moment()
    fire(store, 20.0)
    alerts.resolve(store, number, "back to its baseline")
    resolved = moment()

    def then(at: int) -> Any:
        (row,) = past.snapshot(store, "past", at).alerts
        return row.state, row.now_ms, row.size_percent, row.inhibited, row.reason

    assert past.snapshot(store, "past", before).alerts == ()
    assert then(opened) == ("firing", 12.5, 25.0, 2, "")
    assert then(acknowledged) == ("acknowledged", 14.0, 40.0, 2, "")
    assert then(resolved) == ("resolved", 20.0, 100.0, 2, "back to its baseline")
    assert line(store, opened).alert == "firing"
    assert line(store, acknowledged).alert == "acknowledged"
    assert line(store, resolved).alert is None


def test_how_large_an_alert_was_is_unknown_where_its_history_did_not_say(store: Store) -> None:
    fire(store, 12.5)
    with store.write() as connection:
        connection.execute("UPDATE alert_events SET state = NULL")
    (row,) = past.snapshot(store, "past", moment()).alerts
    assert math.isnan(row.size_percent)
    assert math.isnan(row.now_ms)


def test_a_history_ends_at_the_moment(store: Store) -> None:
    start = datetime(2026, 11, 20, 12, tzinfo=UTC)
    for hour in range(5):
        measure(store, start + timedelta(hours=hour), edge_1=5.0 + hour)
    until = to_micros((start + timedelta(hours=2.5)).isoformat())
    found = measurements.history(store, "edge-1", until=until)
    assert [point.median_ms for point in found] == [5.0, 6.0, 7.0]


# What people say


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-28T10:00+01:00", "2026-11-28T09:00"),
        ("2026-11-28t10:00z", "2026-11-28T10:00"),
        ("-2h", "2026-11-28T10:30:15"),
        ("-1.5 d", "2026-11-27T00:30:15"),
        ("2 hours ago", "2026-11-28T10:30:15"),
        ("an hour ago", "2026-11-28T11:30:15"),
        ("90 min ago", "2026-11-28T11:00:15"),
        ("now", "2026-11-28T12:30:15"),
    ],
)
def test_a_moment_may_be_said_in_many_ways(text: str, wanted: str) -> None:
    now = datetime(2026, 11, 28, 12, 30, 15, tzinfo=UTC)
    assert moments.parse(text, now).astimezone(UTC).isoformat()[: len(wanted)] == wanted


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def test_a_time_without_an_offset_is_one_of_this_machines_zone(
    zone: Callable[[str], None],
) -> None:
    zone("Europe/Berlin")
    now = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
    assert moments.parse("2026-11-28T10:00", now).isoformat() == "2026-11-28T10:00:00+01:00"
    assert moments.parse("2026-07-01", now).isoformat() == "2026-07-01T00:00:00+02:00"
    assert moments.parse("today 8:15", now).isoformat() == "2026-11-28T08:15:00+01:00"
    assert moments.parse("yesterday", now).isoformat() == "2026-11-27T00:00:00+01:00"
    assert moments.parse("13:29", now).isoformat() == "2026-11-28T13:29:00+01:00"
    assert moments.said(now) == "2026-11-28 13:30:00 +01:00"


@pytest.mark.parametrize("text", ["", "soon", "2 parsecs ago", "2026-13-01", "25:00", "-1e9 h"])
def test_what_is_no_time_is_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="is no time; write 2026-11-28T10:00"):
        moments.parse(text)


def test_a_moment_that_is_still_to_come_is_refused() -> None:
    with pytest.raises(SettingsError, match="lies in the future; it is "):
        moments.parse("2999-01-01")


# The command line


def test_the_command_line_shows_fleet_device_alerts_and_clusters_as_they_were(
    store: Store, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hdap = caller(file, capsys)
    devices.set_model(store, "edge-1", OLD)
    measure(store, edge_1=5.0)
    fire(store, 12.5)
    at = from_micros(moment())
    measure(store, edge_1=7.0)
    alerts.resolve(store, 1, "gone")

    status, found, _ = hdap("devices", "--at", at)
    assert status == ExitCode.DONE
    assert found["as_of"].startswith(at[:16])
    first, second, _ = found["devices"]
    assert (first["name"], first["latency_ms"], first["alert"]) == ("edge-1", 5.0, "firing")
    assert (second["model"], second["stage"], second["facts"]) == (None, None, None)
    assert [d["name"] for d in hdap("devices", "list", "--at", at, "--select", "alert=firing")[1][
        "devices"]] == ["edge-1"]  # fmt: skip
    shown = hdap("devices", "show", "edge-1", "--at", at)[1]
    assert [p["median_ms"] for p in shown["history"]] == [5.0]
    assert [p["median_ms"] for p in hdap("devices", "show", "edge-1")[1]["history"]] == [5.0, 7.0]
    assert hdap("alerts", "--at", at)[1]["alerts"][0]["state"] == "firing"
    assert hdap("alerts")[1]["alerts"][0]["state"] == "resolved"
    assert hdap("clusters", "--at", at)[1]["labels"] == {}


def test_a_moment_of_which_nothing_is_known_is_said_in_one_sentence(
    store: Store, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hdap = caller(file, capsys)
    status, _, said = hdap("devices", "list", "--at", "2020-01-01")
    assert status == ExitCode.FAILED
    assert '"hdap sweep" begins the record' in said
    measure(store, edge_1=5.0)
    status, _, said = hdap("alerts", "list", "--at", "2020-01-01T00:00Z")
    assert status == ExitCode.FAILED
    assert "Nothing had been recorded of this fleet by 2020-01-01" in said
    assert "the record begins at 20" in said
    status, _, said = hdap("devices", "show", "edge-9", "--at", "-0s")
    assert (status, said.count("\n")) == (ExitCode.FAILED, 1)
    assert "No device was called edge-9" in said


@pytest.mark.parametrize(
    "words",
    [
        ("devices", "--at", "-1h", "list"),
        ("clusters", "--at", "-1h", "--anew"),
        ("clusters", "--at", "-1h", "--input", "x.csv"),
    ],
)
def test_what_does_not_go_with_a_moment_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    status, _, said = caller(file, capsys)(*words)
    assert status == ExitCode.USAGE
    assert said.count("\n") == 1
    assert "--at" in said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("1h 30min", 5400), ("1d 12h", 129_600),
     ("45s", 45), ("1.5h", 5400)],
)  # fmt: skip
def test_lengths_of_time_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert moments.length(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text", ["", "2", "h", "2x", "-1h", "1h-30m", "1e9h", "٣h", "2h\x1b[1m", "0s", "400d", "1h!"]
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        moments.length(text)
