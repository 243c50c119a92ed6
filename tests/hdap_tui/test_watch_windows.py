"""Maintenance windows over midnight, weekends and the change of clocks; lengths of time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hdap_tui.watching.windows import Window, minute_of, zone

BERLIN = "Europe/Berlin"


def at(text: str) -> float:
    """Return a time of UTC in seconds since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def window(start: str, end: str, *days: int, name: str = BERLIN) -> Window:
    return Window(frozenset(days), minute_of(start), minute_of(end), name)


def covered(one: Window, first: str, minutes: int) -> list[str]:
    """Return the minutes from a time on that lie in a window, as that place's clock shows them."""
    found = [at(first) + 60 * n for n in range(minutes) if one.covers(at(first) + 60 * n)]
    return [datetime.fromtimestamp(t, zone(one.zone)).strftime("%a %H:%M") for t in found]


def test_a_window_is_open_on_its_days_by_its_own_clock() -> None:
    one = window("02:00", "04:30", 5, 6)
    assert one.covers(at("2026-08-01T00:00"))  # Saturday, 02:00 in summer time
    assert one.covers(at("2026-08-01T02:29"))
    assert not one.covers(at("2026-08-01T02:30"))
    assert not one.covers(at("2026-07-31T01:00"))  # Friday
    assert one.covers(at("2026-12-05T01:00"))  # 02:00 in winter time
    assert one.ends(at("2026-08-01T00:00:30")) == at("2026-08-01T02:30")


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    one = window("22:00", "04:00", 4)
    assert one.covers(at("2026-08-07T21:00"))  # Friday 23:00
    assert one.covers(at("2026-08-08T01:59"))  # Saturday 03:59
    assert not one.covers(at("2026-08-08T02:00"))
    assert not one.covers(at("2026-08-07T01:00"))  # Friday 03:00: that was Thursday's night
    assert one.ends(at("2026-08-07T21:00")) == at("2026-08-08T02:00")


def test_whole_days_join_to_a_weekend() -> None:
    one = window("00:00", "24:00", 5, 6, name="UTC")
    assert one.ends(at("2026-08-01T12:00")) == at("2026-08-03T00:00")
    always = window("00:00", "24:00", name="UTC")
    assert always.ends(at("2026-08-01T12:00")) > at("2026-08-08T00:00")


def test_hours_that_summer_time_leaves_out_never_come() -> None:
    one = window("02:30", "03:15")
    # On 29 March 2026 the clock goes from 02:00 to 03:00.
    assert covered(one, "2026-03-29T00:00", 180) == [f"Sun 03:{n:02d}" for n in range(15)]
    assert one.ends(at("2026-03-29T01:05")) == at("2026-03-29T01:15")
    assert covered(window("02:10", "02:50"), "2026-03-29T00:00", 180) == []
    assert len(covered(window("01:00", "04:00"), "2026-03-28T22:00", 600)) == 120


def test_hours_that_come_twice_are_in_the_window_twice() -> None:
    # On 25 October 2026 the clock goes from 03:00 back to 02:00.
    assert len(covered(window("01:00", "04:00"), "2026-10-24T22:00", 600)) == 240
    twice = covered(window("02:30", "02:40"), "2026-10-25T00:00", 180)
    assert twice == [f"Sun 02:{n}" for n in range(30, 40)] * 2


def test_without_a_zone_it_is_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert window("20:00", "21:00", name="").covers(at("2026-08-01T00:30"))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_zone_that_nobody_knows_is_told() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        zone("Mars/Olympus")
    with pytest.raises(ValueError, match="no time zone"):
        zone("../../etc/passwd")
