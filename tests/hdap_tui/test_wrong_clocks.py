"""Clocks of this machine that jump, results that come twice or late, and a disk that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.latency import Latency
from hdap_tui.config import Device
from hdap_tui.store import devices, measurements, models, retention
from hdap_tui.store.database import DiskFullError, Store, open_store
from hdap_tui.store.values import to_micros

MODEL = "ab" * 32


def set_up(path: Path) -> Store:
    store = open_store(path)
    device = Device(name="a", host="h", port=22, user="u", identity=None, tags=(), emulated=True,
                    host_group="", python="python3")  # fmt: skip
    devices.sync(store, [device])
    models.add(store, name="m", digest=MODEL, path="/m", kind="model", size=1)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = set_up(tmp_path / "fleet.db")
    yield opened
    opened.close()


def add(store: Store, sweep: int, ms: float, ago: timedelta, **more: Any) -> None:
    at = (datetime.now(UTC) - ago).isoformat()
    measurements.add(
        store, sweep, Latency(device="a", model=MODEL, median_ms=ms, **{"at": at, **more})
    )


def latest(store: Store) -> float:
    found = measurements.latest(store, "a", MODEL)
    assert found is not None
    return found.median_ms


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def test_what_a_clock_that_was_ahead_left_behind_does_not_stay_the_newest(store: Store) -> None:
    sweep = measurements.begin(store, "canary")
    add(store, sweep, 5.0, -400 * DAY)
    assert latest(store) == 5.0
    add(store, sweep, 6.0, HOUR)
    assert latest(store) == 6.0
    add(store, sweep, 7.0, 2 * HOUR)  # this one is only late
    assert latest(store) == 6.0
    assert [p.median_ms for p in measurements.history(store, "a")] == [7.0, 6.0, 5.0]


def test_the_same_result_twice_is_saved_once_and_another_of_the_same_instant_too(
    store: Store,
) -> None:
    sweep = measurements.begin(store, "canary")
    at = datetime.now(UTC).isoformat()
    for ms in (5.0, 5.0, 6.0, 5.0):
        add(store, sweep, ms, HOUR, at=at)
    add(store, measurements.begin(store, "canary"), 5.0, HOUR, at=at)  # of another round
    assert [p.median_ms for p in measurements.history(store, "a")] == [5.0, 6.0, 5.0]


def test_a_clock_set_wrong_for_an_hour_does_not_make_everything_old(store: Store) -> None:
    for day in range(40, 0, -1):
        sweep = measurements.begin(store, "canary")
        add(store, sweep, 5.0, day * DAY)
        with store.write() as connection:
            at = (datetime.now(UTC) - day * DAY).isoformat()
            connection.execute("UPDATE sweeps SET started_at = ? WHERE id = ?", (at, sweep))
    right = retention.cuts(store, 30, 365)
    with store.write() as connection:
        ahead = (datetime.now(UTC) + 4000 * DAY).isoformat()
        connection.execute("INSERT INTO sweeps (kind, started_at) VALUES ('canary', ?)", (ahead,))
    wrong = retention.cuts(store, 30, 365)
    assert 0 < (wrong.hours - right.hours) / 86_400e6 <= 1


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of twelve megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be made by root alone")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room that is left, but for less than a page."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def until_full(store: Store, sweep: int) -> int:
    """Measure until nothing more can be saved; return how many were."""
    for saved in range(10_000):
        try:
            add(store, sweep, 5.0, (1000 - saved) * HOUR, conditions={"pad": "x" * 3000})
        except DiskFullError as error:
            assert "the disk is full; free some room and try again" in str(error)  # noqa: PT017
            return saved
    pytest.fail("the disk never became full")


def count(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM samples")[0][0])


def test_a_disk_that_fills_up_keeps_all_that_was_saved(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    store = set_up(small_disk / "fleet.db")
    sweep = measurements.begin(store, "canary")
    saved = until_full(store, sweep)
    assert saved > 20
    assert count(store) == saved
    store.close()
    ballast.unlink()
    again = open_store(small_disk / "fleet.db")
    assert (count(again), again.check()) == (saved, "")
    again.close()


def test_a_roll_up_without_room_loses_nothing_and_goes_on_when_there_is_some(
    small_disk: Path,
) -> None:
    store = set_up(small_disk / "fleet.db")
    sweep = measurements.begin(store, "canary")
    for number in range(200):
        at = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat()
        add(store, sweep, 5.0, HOUR, at=at, conditions={"pad": "x" * 500})
    store.shrink()
    ballast = fill(small_disk)
    cut = retention.Cuts(hours=to_micros("2026-06-01T00:00:00+00:00"))
    with pytest.raises(DiskFullError):
        list(retention.compact(store, cut))
    assert count(store) == 200
    ballast.unlink()
    list(retention.compact(store, cut))
    rolled = store.rows("SELECT sum(count) FROM rollups")[0][0]
    assert (count(store), rolled, store.check()) == (1, 199, "")
    store.close()
