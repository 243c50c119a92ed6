"""Pauses, maintenance windows and what is said of the watcher, without a device."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from operating import Hdap, caller

from hdap_tui.config import load, load_text
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.store import devices, measurements, pauses, watchers
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.pauses import Pause
from hdap_tui.store.watchers import Rest, WatcherRow
from hdap_tui.watching import reload, words
from hdap_tui.watching.away import Away

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
FLEET = """
[fleet]
name = "hall"
state = "state"
[[devices]]
name = "edge-[01:04]"
emulated = true
tags = ["north"]
[[devices]]
name = "gate"
"""
WINDOW = """
[[watch.maintenance]]
days = ["Sat"]
start = "12:00"
end = "13:00"
timezone = "UTC"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    settings = load(file)
    opened = open_store(settings.database)
    devices.sync(opened, settings.devices)
    yield opened
    opened.close()


@pytest.fixture
def hdap(file: Path, capsys: pytest.CaptureFixture[str]) -> Hdap:
    return caller(file, capsys)


def away(file: Path, store: Store, more: str = "", now: datetime = NOW) -> Away:
    found = Away(load_text(file, FLEET + more), store)
    found.look(now.timestamp())
    return found


# Pauses


def test_devices_are_paused_for_a_while_and_resumed_by_command(hdap: Hdap) -> None:
    status, found, _ = hdap(
        "watch", "pause", "tag=north !edge-04", "--for", "2h", "--reason", "fan"
    )
    assert status == ExitCode.DONE
    pause = found["pause"]
    assert pause["devices"] == ["edge-01", "edge-02", "edge-03"]
    assert pause["reason"] == "fan"
    lasts = datetime.fromisoformat(pause["until"]) - datetime.fromisoformat(pause["since"])
    assert lasts == pytest.approx(timedelta(hours=2), abs=timedelta(seconds=2))
    assert hdap("watch", "status")[1]["left_alone"] == ["edge-01", "edge-02", "edge-03"]
    assert hdap("watch", "resume", "edge-02")[1]["resumed"] == ["edge-02"]
    seen = hdap("watch", "status")[1]
    assert seen["left_alone"] == ["edge-01", "edge-03"]
    assert [one["until"] for one in seen["pauses"]] == [pause["until"]]
    assert hdap("watch", "resume")[1]["resumed"] == ["edge-01", "edge-03"]
    assert hdap("watch", "resume")[1]["resumed"] == []


def test_the_whole_fleet_is_paused_whoever_belongs_to_it(hdap: Hdap) -> None:
    assert hdap("watch", "pause")[1]["pause"]["whole"]
    assert hdap("watch", "status")[1]["left_alone"][-1] == "gate"
    assert hdap("watch", "resume", "gate")[1]["resumed"] == ["gate"]
    assert "gate" not in hdap("watch", "status")[1]["left_alone"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--for", "soon"), '"soon" is no length of time'),
        (("--for", "0s"), "not between 0 and 366 days"),
        (("--for", "2000d"), "not between 0 and 366 days"),
        (("edge-09",), 'no device is called "edge-09"'),
    ],
)
def test_a_pause_that_means_nothing_is_one_sentence(
    hdap: Hdap, arguments: tuple[str, ...], sentence: str
) -> None:
    status, found, said = hdap("watch", "pause", *arguments)
    assert (status, found) == (ExitCode.USAGE, None)
    assert sentence in said


def test_a_pause_ends_by_itself(store: Store) -> None:
    pauses.add(store, ["edge-01"], (datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    assert pauses.rows(store) == ()


# Maintenance windows


def test_a_window_leaves_its_devices_alone(file: Path, store: Store) -> None:
    found = away(file, store, f'{WINDOW}select = "tag=north"\nreason = "backup"')
    assert found.names == {"edge-01", "edge-02", "edge-03", "edge-04"}
    assert not found.everybody
    (rest,) = found.rests
    assert (rest.until[:16], rest.reason, rest.whole) == ("2026-08-01T13:00", "backup", False)
    found.look((NOW + timedelta(hours=1)).timestamp())
    assert (found.names, found.rests) == (frozenset(), ())


def test_a_window_without_a_selector_is_for_all(file: Path, store: Store) -> None:
    assert away(file, store, WINDOW).everybody
    assert not away(file, store, WINDOW, NOW - timedelta(minutes=1)).everybody


def test_a_window_may_ask_for_what_the_store_knows(file: Path, store: Store) -> None:
    assert away(file, store, f'{WINDOW}select = "state=failed"').names == frozenset()
    devices.set_state(store, "gate", "failed", "timeout")
    assert away(file, store, f'{WINDOW}select = "state=failed"').names == {"gate"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('end = "12:00"', "a whole day is from"),
        ('end = "25:00"', 'it must be a time as "HH:MM"'),
        ('days = ["Caturday"]', "days is"),
        ('timezone = "Europe/Berlim"', "timezone is wrong: there is no time zone"),
        ('select = "tag=south"', "select is wrong: no device has the tag"),
        ('select = "tag=("', "select is wrong: selector, character"),
    ],
)
def test_a_wrong_window_names_line_and_key(file: Path, line: str, sentence: str) -> None:
    entry = {"days": '["Sat"]', "start": '"12:00"', "end": '"13:00"', "timezone": '"UTC"'}
    key, _, value = line.partition(" = ")
    text = "\n".join(f"{name} = {one}" for name, one in {**entry, key: value}.items())
    with pytest.raises(SettingsError, match=r"fleet\.toml:1\d: watch\.maintenance") as caught:
        load_text(file, f"{FLEET}[[watch.maintenance]]\n{text}\n")
    assert sentence in str(caught.value)


# What is said


def watcher(**changes: object) -> WatcherRow:
    values = {"id": 1, "host": "ctl", "boot": "", "pid": 7, "since": NOW.isoformat(),
              "doing": "waiting", "next_round_at": (NOW + timedelta(minutes=12)).isoformat(),
              "next_sweep_at": (NOW + timedelta(days=1)).isoformat()}  # fmt: skip
    return WatcherRow(**{**values, **changes})  # type: ignore[arg-type]


def test_the_header_says_what_is_done_and_who_is_left_alone_until_when() -> None:
    names = [f"edge-{n}" for n in range(4)]
    later = (NOW + timedelta(hours=2)).isoformat()
    one = Pause(id=1, devices=("edge-1",), since="", until=later, reason="fan")
    whole = Pause(id=2, devices=(), since="", until=later, reason="move")
    rest = Rest(devices=tuple(names), until=later, reason="backup", whole=True)
    assert words.activity(None, (), names, NOW) == ""
    assert words.activity(watcher(doing="sweep"), (), names, NOW) == "sweep"
    clock = words.clock((NOW + timedelta(minutes=12)).isoformat(), NOW)
    assert words.activity(watcher(), (), names, NOW) == f"next round {clock}"
    end = words.clock(later, NOW)
    assert words.activity(watcher(doing="sweep"), (one,), names, NOW) == (
        f"1 paused until {end} · sweep"
    )
    assert words.activity(None, (whole, one), names, NOW) == f"PAUSED until {end}: move"
    assert words.activity(watcher(rests=(rest,)), (), names, NOW) == (
        f"MAINTENANCE until {end}: backup"
    )
    tomorrow = Pause(id=3, devices=(), since="", until=(NOW + timedelta(days=1)).isoformat())
    assert "PAUSED until Sun " in words.activity(None, (tomorrow,), names, NOW)
    assert words.clock((NOW + timedelta(days=30)).isoformat(), NOW).startswith("31 Aug ")
    soon = watcher(next_round_at=(NOW + timedelta(seconds=8)).isoformat())
    assert words.activity(soon, (), names, NOW) == "next round in 8 s"


def test_status_tells_what_was_last_and_what_is_half(hdap: Hdap, store: Store) -> None:
    seen = hdap("watch", "status")[1]
    assert (seen["running"], seen["watcher"], seen["last_sweep"]) == (False, None, None)
    number = watchers.begin(store, "far-away", "boot", 12, None)
    whole = measurements.begin(store, "sweep", number)
    measurements.finish(store, whole)
    half = measurements.begin(store, "sweep", number)
    seen = hdap("watch", "status")[1]
    assert seen["running"]
    assert seen["watcher"]["host"] == "far-away"
    assert seen["last_sweep"]["id"] == whole
    assert seen["last_sweep"]["took_s"] >= 0
    assert (seen["half_sweep"]["id"], seen["half_sweep"]["finished_at"]) == (half, None)
    watchers.end(store, number or 0)
    assert not hdap("watch", "status")[1]["running"]


def test_somebodys_own_sweep_is_never_taken_for_the_watchers(hdap: Hdap, store: Store) -> None:
    measurements.begin(store, "sweep")
    assert hdap("watch", "status")[1]["half_sweep"] is None


# The settings file


def test_a_changed_file_is_taken_up_once_it_is_whole_and_right(file: Path) -> None:
    told: list[str] = []
    first = load(file)
    looks = reload.SettingsFile(first, told.append)
    assert looks.look(first) is None
    assert looks.look(first) is None  # read anew, and the same
    file.write_text(FLEET + '[[devices]]\nname = "door"\n[watch]\ncanary_every_s = 60\n')
    assert looks.look(first) is None  # it may still be written
    second = looks.look(first)
    assert second is not None
    assert [device.name for device in second.devices][-1] == "door"
    assert second.state_dir == first.state_dir
    assert reload.difference(first, second) == ("6 devices; 1 added (door); a round every 60 s")
    for text, sentence in (
        (FLEET + "[watch]\ncanary_every_s = -1\n", "canary_every_s is -1"),
        ("[fleet", "not valid TOML"),
        (FLEET.replace('state = "state"', 'state = "other"'), "until the watcher is started anew"),
    ):
        file.write_text(text)
        assert [looks.look(second) for _ in range(4)] == [None] * 4
        assert sentence in told[-1]
    assert len(told) == 3
    file.unlink()
    assert [looks.look(second) for _ in range(3)] == [None] * 3
    assert "cannot be read" in told[-1]
    file.write_text(FLEET)
    assert looks.look(second) is None
    assert looks.look(second) == first
