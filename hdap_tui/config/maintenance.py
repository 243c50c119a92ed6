"""Maintenance windows that contradict themselves, or name what nobody has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hdap_tui.config import schema
from hdap_tui.config.selector import check as check_selector
from hdap_tui.config.selector import parse
from hdap_tui.config.source import Source
from hdap_tui.errors import SettingsError

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device


def check(windows: Sequence[schema.Maintenance], devices: Sequence[Device], source: Source) -> None:
    """Check every window of the file.

    Raises:
        SettingsError: one has no length, an unknown time zone, or a selector that means nothing.
    """
    from hdap_tui.selection import known_values
    from hdap_tui.watching.windows import zone

    for index, window in enumerate(windows):
        path = ("watch", "maintenance", index)
        if window.start == window.end or window.start == "24:00":
            raise source.error(
                (*path, "end"),
                f'is "{window.end}", and it begins at "{window.start}"; a whole day is from '
                '"00:00" to "24:00".',
            )
        try:
            if window.timezone:
                zone(window.timezone)
        except ValueError as error:
            raise source.error((*path, "timezone"), f"is wrong: {error}.") from error
        try:
            check_selector(parse(window.select), known_values(devices))
        except SettingsError as error:
            raise source.error((*path, "select"), f"is wrong: {error}") from error
