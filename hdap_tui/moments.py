"""Moments and lengths of time as a person says them: "2 hours ago", "yesterday 14:00", "1h 30m"."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hdap_tui.errors import SettingsError, UserError
from hdap_tui.text import clean

_UNITS = {
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
    "w": 604_800, "week": 604_800,
}  # fmt: skip
_LENGTH = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(min|[smhdw])", re.ASCII)
_LONGEST = timedelta(days=366)
_AGO = re.compile(r"(?:-\s*(?P<minus>[\d.]+)\s*(?P<short>[a-z]+)"
                  r"|(?P<count>[\d.]+|an?)\s*(?P<unit>[a-z]+)\s+ago)")  # fmt: skip
_DAY = re.compile(r"(?P<day>today|yesterday)(?:[ t]+(?:at )?(?P<time>\d\d?:\d\d(?::\d\d)?))?")
_TIME = re.compile(r"\d\d?:\d\d(?::\d\d)?")


class NothingYetError(UserError):
    """Of that moment nothing was recorded."""


def parse(text: str, now: datetime | None = None) -> datetime:
    """Return the moment that a text means, with its offset from UTC.

    A day means its beginning, a time of day that of today. The time zone is this machine's, unless
    the text names an offset.

        >>> parse("2026-11-28T10:00+01:00").isoformat()
        '2026-11-28T10:00:00+01:00'

    Raises:
        SettingsError: it means none, or one in the future.
    """
    now = (now or datetime.now(UTC)).astimezone()
    try:
        moment = _read(text.strip().lower(), now)
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise SettingsError(
            f'"{clean(text, 60)}" is no time; write 2026-11-28T10:00, "2 hours ago", -2h, '
            "yesterday or 14:30."
        )
    if moment > now:
        raise SettingsError(
            f'"{clean(text, 60)}" is {said(moment)}, which lies in the future; it is {said(now)}.'
        )
    return moment


def length(text: str) -> timedelta:
    """Return how long "90m", "2h", "1d 12h" is.

    >>> length("1h 30min")
    datetime.timedelta(seconds=5400)

    Raises:
        SettingsError: it is no length of time, none at all, or longer than a year.
    """
    found = _LENGTH.findall(text)
    if not found or _LENGTH.sub("", text).strip():
        raise SettingsError(f'"{clean(text, 40)}" is no length of time; write 45m, 2h or 1d 12h.')
    whole = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in found))
    if not timedelta() < whole <= _LONGEST:
        raise SettingsError(f'"{clean(text, 40)}" is not between 0 and {_LONGEST.days} days.')
    return whole


def said(moment: datetime) -> str:
    """Return a moment as people read it, in this machine's time zone, with its offset from UTC."""
    local = moment.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {local.isoformat()[-6:]}"


def _read(text: str, now: datetime) -> datetime | None:
    if ago := _AGO.fullmatch(text):
        count = ago["minus"] or ago["count"]
        unit = ago["short"] or ago["unit"]
        seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if seconds is None:
            return None
        return now - timedelta(seconds=(1 if count in {"a", "an"} else float(count)) * seconds)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if day := _DAY.fullmatch(text):
        start = today - timedelta(days=day["day"] == "yesterday")
        return _at(start, day["time"] or "0:00")
    if _TIME.fullmatch(text):
        return _at(today, text)
    if text == "now":
        return now
    # A time without an offset is one of this machine's zone, as it was on that day.
    return datetime.fromisoformat(text.upper()).astimezone()


def _at(day: datetime, time: str) -> datetime:
    parts = [int(part) for part in time.split(":")]
    return day.replace(hour=parts[0], minute=parts[1], second=sum(parts[2:])).astimezone()
