"""Facts in the database: the latest, the history, and snapshots that do not read them twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.fleet.words import explain, telling
from hdap_tui.cohorts import telling_facts
from hdap_tui.config.settings import Device
from hdap_tui.fact_names import NAMES, checked, shown
from hdap_tui.store import devices, facts, held
from hdap_tui.store.columns import columns, keep_columns
from hdap_tui.store.database import Store, StoreError, open_store
from hdap_tui.store.snapshot import snapshot

PI = {"machine": "aarch64", "cpu_model": "Cortex-A76", "kernel": "6.1.0", "boot_id": "a",
      "onnxruntime": "1.20.1", "disk_free_mb": 900}  # fmt: skip


def device(name: str) -> Device:
    return Device(
        name=name, host=name, port=22, user="u", identity=None, tags=(), emulated=False,
        host_group="", python="",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "fleet.db")
    devices.sync(opened, [device("a"), device("b")])
    yield opened
    opened.close()


def test_a_look_is_kept_and_read_by_name(store: Store) -> None:
    assert facts.latest(store) == {}
    assert facts.save(store, "b", PI) == ()
    assert facts.latest(store) == {"b": PI}
    assert facts.latest_of(store, "a") == {}
    assert snapshot(store, "f").devices[1].facts == PI
    with pytest.raises(StoreError, match="no device"):
        facts.save(store, "nobody", PI)


def test_only_what_does_not_change_by_itself_makes_history(store: Store) -> None:
    facts.save(store, "a", PI)
    assert facts.save(store, "a", {**PI, "boot_id": "b", "disk_free_mb": 5, "uptime_s": 1}) == ()
    assert len(facts.history(store, "a")) == 1
    assert facts.latest_of(store, "a")["disk_free_mb"] == 5
    changes = facts.save(store, "a", {**PI, "kernel": "6.6.20", "governor": "ondemand"})
    assert changes == (
        facts.Change("governor", None, "ondemand"),
        facts.Change("kernel", "6.1.0", "6.6.20"),
    )
    first, second = facts.history(store, "a")
    assert (first.changes, second.changes) == ((), changes)
    assert "disk_free_mb" not in second.facts
    assert first.at < second.at
    assert [moment.changes for moment in facts.history(store, "a", limit=1)] == [changes]


def test_the_channel_multiple_stays_until_the_device_is_another(store: Store) -> None:
    facts.save(store, "a", PI)
    facts.add(store, "a", {"channel_multiple": 16, "channel_gain_percent": 40.0})
    facts.save(store, "a", {**PI, "kernel": "6.6.20"})
    assert facts.latest_of(store, "a")["channel_multiple"] == 16
    without = {name: value for name, value in PI.items() if name != "onnxruntime"}
    facts.save(store, "a", without)  # a broken installation is no other one
    assert facts.latest_of(store, "a")["channel_multiple"] == 16
    facts.save(store, "a", {**PI, "cpu_model": "Cortex-A53"})
    assert "channel_multiple" not in facts.latest_of(store, "a")


def test_the_fleet_has_the_multiple_of_most(store: Store) -> None:
    assert facts.common_multiple(store) is None
    facts.add(store, "a", {"channel_multiple": 4})
    facts.add(store, "b", {"channel_multiple": 16})
    assert facts.common_multiple(store) == 16
    devices.sync(store, [device("a")])
    assert facts.common_multiple(store) == 4


def test_a_device_that_always_changes_does_not_fill_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "KEPT", 5)
    for number in range(12):
        facts.save(store, "a", {**PI, "kernel": f"6.1.{number}"})
    rows = store.rows("SELECT facts FROM device_facts ORDER BY at")
    kernels = [json.loads(row["facts"])["kernel"] for row in rows]
    assert kernels == [f"6.1.{number}" for number in range(7, 12)]


@pytest.mark.parametrize(
    "found",
    [
        {"cores": "many", "vnni": 1, "isa": "avx2", "kernel": 5, "os": None, "board": ["x"]},
        {"cores": True, "memory_mb": math.inf, "uptime_s": math.nan, "cores_usable": 1e300},
        {"unknown": 1, "name": "other", "state": "ok", "__class__": "x", "": ""},
        {"sensors": [1, None, {}, []], "isa": {}, "providers": [""], "libc": "\x1b\x07"},
        {"cores": 10**400},
    ],
)
def test_what_is_of_another_type_is_no_fact(found: dict[str, Any]) -> None:
    assert checked(found) == {}


def test_text_is_cut_and_cleaned_and_lists_are_short(store: Store) -> None:
    found = checked({"board": "x\x1b[2Jy" + "z" * 10**6, "isa": ["a" * 10**5] * 10**4})
    assert found["board"].startswith("x[2Jy")  # type: ignore[union-attr]
    assert len(found["board"]) == 120  # type: ignore[arg-type]
    assert len(found["isa"]) == 64  # type: ignore[arg-type]
    facts.save(store, "a", {"board": "\ud800", "os": "a\nb"})
    assert facts.latest_of(store, "a")["os"] == "a b"
    for name in NAMES:
        assert name.help.endswith(".")
        assert shown(name.name, None) == ""


def test_facts_are_read_as_people_write_them() -> None:
    assert shown("vnni", True) == "yes"
    assert shown("memory_mb", 8051) == "8 051 MB"
    assert shown("cores_usable", 2.5) == "2.5"
    assert shown("isa", ["avx", "fma"]) == "avx, fma"
    assert (
        shown("pythons", ["3.11.2|cpython-311|venv|/usr/bin/python3"]) == "3.11.2 /usr/bin/python3"
    )


def test_a_snapshot_reads_only_facts_that_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts.save(store, "a", PI)
    facts.save(store, "b", PI)
    before = devices.rows(store)
    reads: list[int] = []
    real = held._rows
    monkeypatch.setattr(held, "_rows", lambda s, ids: reads.extend(ids) or real(s, ids))
    assert devices.rows(store)[0] is before[0]
    assert reads == []
    facts.save(store, "b", {**PI, "disk_free_mb": 1})
    after = devices.rows(store)
    assert after[0] is before[0]
    assert after[1].facts["disk_free_mb"] == 1
    assert len(reads) == 1


def test_another_database_at_the_same_place_has_its_own_facts(tmp_path: Path) -> None:
    for kernel in ("one", "two"):
        path = tmp_path / "fleet.db"
        for file in tmp_path.iterdir():
            file.unlink()
        opened = open_store(path)
        devices.sync(opened, [device("a")])
        facts.save(opened, "a", {"kernel": kernel})
        assert devices.rows(opened)[0].facts == {"kernel": kernel}
        opened.close()


def test_a_device_that_has_not_changed_is_the_same_row_as_before(tmp_path: Path) -> None:
    opened = open_store(tmp_path / "many.db")
    devices.sync(opened, [device(f"d{n:05d}") for n in range(1000)])
    text = json.dumps(
        {**PI, "isa": ["avx2"] * 10, "pythons": ["3.11.2|x|venv|/usr/bin/python3"] * 3}
    )
    with opened.write() as connection:
        connection.execute(
            "INSERT INTO device_facts_latest SELECT id, 1, '2026-11-20', ? FROM devices", (text,)
        )
    first, again = devices.rows(opened), devices.rows(opened)
    assert all(one is other for one, other in zip(first, again, strict=True))
    opened.close()


def test_chosen_columns_are_remembered(store: Store) -> None:
    assert columns(store) == ()
    keep_columns(store, ["board", "os"])
    assert columns(store) == ("board", "os")
    assert snapshot(store, "f").columns == ("board", "os")
    keep_columns(store, ["a fact of a later version"])
    assert columns(store) == ()


def test_a_cluster_is_explained_by_a_fact_that_only_its_devices_share() -> None:
    fast, slow = {**PI, "governor": "performance"}, {**PI, "governor": "powersave"}
    known = {"a": fast, "b": fast, "c": slow, "d": slow, "e": fast}
    names, labels = ["a", "b", "c", "d", "e"], [0, 0, 1, 1, -1]
    facts = telling_facts(names, known)
    assert facts["governor"] == ["performance"] * 2 + ["powersave"] * 2 + ["performance"]
    latencies = [[10.0], [10.0], [16.0], [16.0], [10.0]]
    told = explain(latencies, labels, ["compute"], facts)
    assert told[1] == "compute 60 % slower; governor powersave"
    assert "governor" not in told[0]
    assert telling(["powersave"] * 2, [None]) is None  # of the other nothing is known
    assert telling(["powersave"], ["performance"]) is None
    assert telling(["performance", "powersave"], ["performance"]) is None
