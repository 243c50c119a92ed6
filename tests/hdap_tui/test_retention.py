"""Old measurements become hours and days: nothing is lost or doubled, whatever comes in between."""

from __future__ import annotations

import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from operating import caller

from engine.fleet.clusters import cluster
from engine.latency import Latency
from hdap_tui.config import Device
from hdap_tui.errors import ExitCode
from hdap_tui.store import clusters, devices, measurements, models, past, retention
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.retention import Cuts
from hdap_tui.store.rollups import DAY, HOUR, Rolled, combined
from hdap_tui.store.values import from_micros, to_micros

MODEL, OTHER = "ab" * 32, "cd" * 32
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "fleet.toml").write_text(
        '[fleet]\nname = "old"\nstate = "state"\n[[devices]]\nname = "dev-[1:3]"\nemulated = true\n'
        "[retention]\nfull_days = 2\nhourly_days = 4\n"
    )
    opened = open_store(tmp_path / "state" / "fleet.db")
    devices.sync(
        opened,
        [
            Device(name=f"dev-{i}", host="h", port=22, user="u", identity=None, tags=(),
                   emulated=True, host_group="", python="python3")
            for i in (1, 2, 3)
        ],
    )  # fmt: skip
    for name, digest in (("m", MODEL), ("o", OTHER)):
        models.add(opened, name=name, digest=digest, path=f"/{name}", kind="model", size=1)
    for name in ("dev-1", "dev-2", "dev-3"):
        devices.set_model(opened, name, MODEL)
    yield opened
    opened.close()


def sweep(store: Store, at: datetime) -> int:
    with store.write() as connection:
        cursor = connection.execute(
            "INSERT INTO sweeps (kind, started_at, finished_at) VALUES ('canary', ?, ?)",
            (at.isoformat(timespec="milliseconds"),) * 2,
        )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def add(
    store: Store, number: int, at: datetime, ms: float, device: str = "dev-1",
    configuration: str = "", model: str = MODEL, dirty: tuple[str, ...] = (), error: str = "",
    energy: float | None = None,
) -> None:  # fmt: skip
    measurements.add(
        store, number,
        Latency(device=device, model=model, median_ms=ms, low_ms=ms, high_ms=ms, n=5,
                at=at.isoformat(), error=error, energy_mj=energy,
                conditions={"dirty": list(dirty)} if dirty else {}),
        configuration,
    )  # fmt: skip


def measured(
    store: Store, days: int, per_hour: int = 2, names: tuple[str, ...] = ("dev-1",)
) -> None:
    """Measure some hours of some days, with what goes wrong now and then."""
    rng = random.Random(1)
    with store.write():
        for day in range(days):
            for hour in (0, 9, 23):
                for part in range(per_hour):
                    at = START + timedelta(days=day, hours=hour, minutes=20 * part)
                    number = sweep(store, at)
                    for name in names:
                        failed = rng.random() < 0.1
                        add(store, number, at, math.nan if failed else rng.uniform(4, 6), name,
                            error="timeout" if failed else "",
                            dirty=("warm",) * (part == 1))  # fmt: skip


def compact(store: Store, cut: Cuts) -> list[retention.Step]:
    return list(retention.compact(store, cut, pause=lambda _seconds: None))


def counted(store: Store) -> tuple[int, int]:
    """Return how many good and failed measurements there are, whatever they were rolled up to."""
    raw = store.rows("SELECT count(median_ms) AS good, count(*) AS n FROM samples")[0]
    rolled = store.rows("SELECT count, errors FROM rollups")
    failed = sum(sum(json.loads(row["errors"]).values()) for row in rolled)
    return raw["good"] + sum(row["count"] for row in rolled), raw["n"] - raw["good"] + failed


def sizes(store: Store) -> tuple[int, int, int]:
    """Return the rows of measurements, hours and days."""
    spans = {row[0]: row[1] for row in store.rows("SELECT span, count(*) FROM rollups GROUP BY 1")}
    raw = store.rows("SELECT count(*) FROM samples")[0][0]
    assert raw == store.rows("SELECT count(*) FROM sample_details")[0][0]
    return raw, spans.get(HOUR, 0), spans.get(DAY, 0)


# What a row says


def test_single_measurements_have_their_exact_median() -> None:
    rng = random.Random(3)
    for n in (1, 2, 3, 10, 11):
        values = [rng.uniform(1, 9) for _ in range(n)]
        parts = [Rolled(at=i, median_ms=v, low_ms=v, high_ms=v) for i, v in enumerate(values)]
        found = combined(parts, 0)
        assert found.median_ms == pytest.approx(statistics.median(values))
        assert (found.count, found.low_ms, found.high_ms) == (n, min(values), max(values))


def test_rows_count_as_often_as_they_stand_for_measurements() -> None:
    many = Rolled(at=0, count=9, median_ms=5.0, low_ms=4.0, high_ms=6.0, errors={"timeout": 2},
                  remarks={"warm": 3}, energy_mj=10.0, contended=0.5)  # fmt: skip
    few = Rolled(at=1, count=1, median_ms=9.0, low_ms=9.0, high_ms=9.0, errors={"memory": 1},
                 remarks={"warm": 1, "throttled": 1})  # fmt: skip
    found = combined([few, many], 7)
    assert (found.at, found.count, found.median_ms) == (7, 10, 5.0)
    assert (found.low_ms, found.high_ms) == (4.0, 9.0)
    assert found.errors == {"timeout": 2, "memory": 1}
    assert found.remarks == {"warm": 4, "throttled": 1}
    assert found.energy_mj == 10.0
    assert found.contended == pytest.approx(0.45)


def test_what_only_failed_has_no_latency() -> None:
    found = combined([Rolled(at=0, count=0, errors={"timeout": 1})] * 3, 0)
    assert (found.count, found.median_ms, found.low_ms, found.errors) == (
        0,
        None,
        None,
        {"timeout": 3},
    )


# Rolling up


def test_days_are_those_on_which_something_was_measured(store: Store) -> None:
    for day in (0, 1, 2, 40, 41):
        sweep(store, START + timedelta(days=day))
    first = {days: from_micros(retention.cuts(store, days, 0).hours)[:10] for days in (1, 2, 3, 4)}
    assert first == {1: "2026-04-11", 2: "2026-04-10", 3: "2026-03-03", 4: "2026-03-02"}
    assert retention.cuts(store, 5, 0) == Cuts()  # as many days as there are: nothing is old
    assert retention.cuts(store, 0, 0) == Cuts()
    both = retention.cuts(store, 2, 4)
    assert from_micros(both.days)[:10] == "2026-03-02"


def test_old_measurements_become_hours_and_older_ones_days(store: Store) -> None:
    measured(store, 8)
    before = counted(store)
    planned = retention.plan(store, retention.cuts(store, 2, 4))
    compact(store, retention.cuts(store, 2, 4))
    assert counted(store) == before
    assert sizes(store) == (2 * 6, 2 * 3, 4)
    assert (planned["measurements"], planned["into_hours"]) == (6 * 6, 6 * 3)
    again = compact(store, retention.cuts(store, 2, 4))
    assert again == []
    rolled = store.rows("SELECT remarks FROM rollups WHERE span = 86400")
    assert all(json.loads(row["remarks"]) == {"warm": 3} for row in rolled)


def test_another_configuration_stays_another(store: Store) -> None:
    number = sweep(store, START)
    sweep(store, START + timedelta(days=1))
    for ms, configuration in ((5.0, ""), (20.0, "batch 4"), (22.0, "batch 4")):
        add(store, number, START + timedelta(minutes=ms), ms, configuration=configuration)
    add(store, number, START + timedelta(days=1), 5.0)
    compact(store, retention.cuts(store, 1, 1))
    found = store.rows("SELECT configuration, count, median_ms FROM rollups ORDER BY 1")
    assert [tuple(row) for row in found] == [("", 1, 5.0), ("batch 4", 2, 21.0)]
    assert [p.median_ms for p in measurements.history(store, "dev-1")] == [5.0, 5.0]
    every = measurements.history(store, "dev-1", every=True)
    assert sorted(p.configuration for p in every) == ["", "", "batch 4"]


def test_the_newest_measurement_of_each_model_stays_however_old_it_is(store: Store) -> None:
    measured(store, 3)
    number = sweep(store, START)
    add(store, number, START + timedelta(hours=1), 7.0, model=OTHER)
    add(store, number, START + timedelta(hours=2, minutes=5), 8.0, model=OTHER)
    add(store, number, START + timedelta(hours=2, minutes=9), 9.0, model=OTHER)
    newest = store.rows("SELECT * FROM device_latest")
    compact(store, retention.cuts(store, 1, 1))
    assert store.rows("SELECT * FROM device_latest") == newest
    left = store.rows(
        "SELECT median_ms FROM samples JOIN models m ON m.id = model_id WHERE m.name = 'o'"
    )
    assert [row[0] for row in left] == [8.0, 9.0]  # with its hour, so that its median stays exact
    assert measurements.details(store, "dev-1", OTHER)[0]["n"] == 5


def test_a_late_result_is_added_to_the_hour_and_the_day_that_it_belongs_to(store: Store) -> None:
    measured(store, 6)
    compact(store, retention.cuts(store, 1, 3))
    before = counted(store)
    number = sweep(store, START + timedelta(days=5))
    for late in (START + timedelta(hours=9, minutes=1), START + timedelta(days=4, hours=9)):
        add(store, number, late, 99.0)
    compact(store, retention.cuts(store, 1, 3))
    assert counted(store) == (before[0] + 2, before[1])
    assert sizes(store) == (6, 2 * 3, 3)
    highest = store.rows("SELECT span FROM rollups WHERE high_ms = 99.0 ORDER BY span")
    assert [row["span"] for row in highest] == [HOUR, DAY]


def test_an_hour_with_more_measurements_than_a_step_takes_is_one_row_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TOGETHER", 10)
    with store.write():
        number = sweep(store, START)
        for second in range(25):
            add(store, number, START + timedelta(seconds=second), 1.0 + second)
        for minute in range(60, 68):
            add(store, number, START + timedelta(minutes=minute), 50.0)
        sweep(store, START + timedelta(days=1))
        add(store, number, START + timedelta(days=1), 5.0)
    steps = compact(store, Cuts(hours=retention.cuts(store, 1, 1).hours))
    found = store.rows("SELECT count, median_ms FROM rollups ORDER BY at")
    assert [tuple(row) for row in found] == [(25, 13.0), (8, 50.0)]
    assert len(steps) > 1


def test_history_past_and_dashboard_read_both_as_one_series(store: Store) -> None:
    measured(store, 6)
    whole = measurements.history(store, "dev-1", limit=1000)
    then = to_micros((START + timedelta(days=2, hours=12)).isoformat())
    compact(store, retention.cuts(store, 2, 4))
    found = measurements.history(store, "dev-1", limit=1000)
    assert [p.span for p in found] == ["day"] * 2 + ["hour"] * 6 + [""] * 12
    assert [p.at for p in found] == sorted(p.at for p in found)
    assert sum(p.count + p.failed for p in found if p.span) + 12 == len(whole)
    assert found[-12:] == whole[-12:] or all(
        math.isnan(p.median_ms) for p in found[-12:] if p.error
    )
    assert len(measurements.history(store, "dev-1", limit=4)) == 4
    with store.write() as connection:  # as if the log had been kept since the beginning
        connection.execute("UPDATE device_log SET at = 0 WHERE model_id IS NOT NULL")
    row = next(r for r in past.snapshot(store, "old", then).devices if r.name == "dev-1")
    assert row.span == "hour"
    assert row.measured_at == from_micros(
        to_micros((START + timedelta(days=2, hours=9)).isoformat())
    )
    assert len(row.recent_ms) == 4


def test_clusterings_are_thinned_and_the_newest_stays(store: Store) -> None:
    latencies = np.array([[1.0], [1.001]])
    found = cluster(latencies, eps_percent=5, min_samples=2)
    moments = [START + timedelta(days=day, hours=hour) for day in range(70) for hour in (3, 15)]
    with store.write() as connection:
        for at in moments:
            clusters.save(store, found, ["dev-1", "dev-2"], ["m"], latencies)
            connection.execute(
                "UPDATE clusterings SET at = ? WHERE id = (SELECT max(id) FROM clusterings)",
                (at.isoformat(timespec="milliseconds"),),
            )
            sweep(store, at)
    compact(store, retention.cuts(store, 10, 20))
    kept = [row["at"][:13] for row in store.rows("SELECT at FROM clusterings ORDER BY at")]
    assert kept[:3] == ["2026-03-31T15", "2026-04-19T15", "2026-04-20T15"]
    assert len(kept) == 2 + 10 + 20
    assert clusters.at(store, from_micros(to_micros("2026-04-01T00:00:00+00:00"))).devices
    assert clusters.latest(store).devices


def test_what_became_free_beyond_a_share_goes_back_to_the_disk(store: Store) -> None:
    with store.write():
        number = sweep(store, START)
        for second in range(4000):
            add(store, number, START + timedelta(seconds=second), 5.0, dirty=("x" * 200,))
        sweep(store, START + timedelta(days=1))
    store.shrink()
    before = store.path.stat().st_size
    compact(store, Cuts(hours=retention.cuts(store, 1, 1).hours))
    free, pages = store.free_pages()
    assert free <= 0.15 * pages
    assert store.path.stat().st_size < 0.5 * before
    assert store.check() == ""


ROLL_UP = """
import sys, time
from pathlib import Path
from hdap_tui.store import retention
from hdap_tui.store.database import open_store
retention.TOGETHER = 10
store = open_store(Path(sys.argv[1]))
print("open", flush=True)
cut = retention.cuts(store, 2, 4)
for step in retention.compact(store, cut, pause=lambda _seconds: time.sleep(0.003)):
    print("step", flush=True)
"""


def test_a_roll_up_killed_in_the_middle_loses_and_doubles_nothing(store: Store) -> None:
    measured(store, 20, per_hour=3, names=("dev-1", "dev-2", "dev-3"))
    before = counted(store)
    begun = sizes(store)
    for steps in (1, 3, 6, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", ROLL_UP, str(store.path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(steps + 1):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert counted(store) == before
    middle = sizes(store)
    assert begun[0] > middle[0] > 2 * 9 * 3  # it had begun, and was not done
    compact(store, retention.cuts(store, 2, 4))
    assert counted(store) == before
    assert sizes(store) == (2 * 9 * 3, 2 * 3 * 3, 16 * 3)
    assert store.check() == ""


def test_a_roll_up_leaves_the_screens_alone(store: Store) -> None:
    measured(store, 6)
    version = store.version()
    compact(store, retention.cuts(store, 2, 4))
    assert store.version() == version


# The command


def test_the_command_says_what_becomes_what_and_does_it(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    hdap = caller(store.path.parents[1] / "fleet.toml", capsys)
    assert hdap("compact")[1]["planned"] == dict.fromkeys(
        ("measurements", "into_hours", "hours", "into_days", "clusterings"), 0
    )
    measured(store, 8)
    begun = sizes(store)
    status, found, _ = hdap("compact", "--dry-run")
    assert (status, found["dry_run"]) == (ExitCode.DONE, True)
    assert found["hours_before"] == "2026-03-07T00:00:00.000+00:00"
    assert found["days_before"] == "2026-03-05T00:00:00.000+00:00"
    assert sizes(store) == begun
    status, found, _ = hdap("compact")
    assert status == ExitCode.DONE
    assert found["done"]["measurements"] == found["planned"]["measurements"] == 36
    assert found["done"]["days"] == 4
    assert sizes(store) == (12, 6, 4)
    shown = hdap("devices", "show", "dev-1")[1]["history"]
    assert [p["rolled_up"] for p in shown] == ["day"] * 4 + ["hour"] * 6 + [None] * 12


def test_a_backup_holds_what_was_rolled_up_and_what_devices_were(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(store, 8)
    compact(store, retention.cuts(store, 2, 4))
    file = store.path.parents[1] / "fleet.toml"
    assert caller(file, capsys)("backup", str(tmp_path / "b.tar.gz"))[0] == ExitCode.DONE
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        archive.extract("fleet.db", tmp_path / "restored", filter="data")
    again = open_store(tmp_path / "restored" / "fleet.db")
    assert (sizes(again), counted(again)) == (sizes(store), counted(store))
    tables = ("device_log", "rollups")
    for table in tables:
        query = f"SELECT count(*) FROM {table}"
        assert again.rows(query)[0][0] == store.rows(query)[0][0] > 0
    again.close()


def test_fewer_days_an_hour_than_in_full_is_a_mistake(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    file = store.path.parents[1] / "fleet.toml"
    file.write_text(file.read_text().replace("hourly_days = 4", "hourly_days = 1"))
    status, _, said = caller(file, capsys)("config", "check")
    assert status == ExitCode.USAGE
    assert "hourly_days is 1; it must be at least full_days (2), or 0." in said


def test_a_writer_gets_its_turn_between_two_steps(store: Store) -> None:
    measured(store, 30, per_hour=3, names=("dev-1", "dev-2", "dev-3"))
    process = subprocess.Popen(
        [sys.executable, "-c", ROLL_UP, str(store.path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    written = 0
    while process.poll() is None:
        devices.set_stage(store, "dev-1", f"timing {written}")
        written += 1
        time.sleep(0.001)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert written > 20
