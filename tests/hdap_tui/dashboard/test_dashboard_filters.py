"""A filter and --select are one language: whatever --select takes shows the same devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dashboard_fake import fleet
from hypothesis import given
from hypothesis import strategies as st

from hdap_tui.config.selector import SelectorError, check, parse
from hdap_tui.dashboard.filters import Selector, Words
from hdap_tui.dashboard.screens.fleet import searched
from hdap_tui.errors import SettingsError
from hdap_tui.selection import row_record

ROWS = fleet(12).devices
KNOWN = {
    "name": frozenset(row.name for row in ROWS),
    "tag": frozenset(tag for row in ROWS for tag in row.tags),
}

PIECES = st.lists(
    st.sampled_from(
        ["edge-01", "edge-0*", "edge-[02:05]", "!edge-03", "tag=roof", "tag=p*", "state=off",
         "latency>6", "alert=*", "cluster=b", "(", ")", "and", "or", "not", ",", "roof", "edge"]
    ),
    max_size=7,
).map(" ".join)  # fmt: skip


def selected(text: str) -> list[str] | None:
    """What --select would take, or None where it refuses."""
    try:
        expression = parse(text)
        check(expression, KNOWN)
    except SettingsError:
        return None
    return [r.name for r in ROWS if expression.matches(row_record(r, expression.fields))]


@given(PIECES, st.booleans())
def test_what_select_takes_shows_the_same_devices(text: str, typing: bool) -> None:
    wanted = selected(text)
    if wanted is not None:
        shown = Selector(searched, dict)(text, ROWS, typing)
        assert [row.name for row in shown] == wanted


@given(st.text(max_size=30), st.booleans())
def test_any_text_shows_rows_or_says_what_is_wrong(text: str, typing: bool) -> None:
    try:
        shown = Selector(searched, dict)(text, ROWS, typing)
    except SelectorError:
        return
    assert set(shown) <= set(ROWS)


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [("tag=", True), ("tag=a an", True), ("edge-[01:", True), ("latency>f", True),
     ("stat=off", False), ("a)b c", False), ("state<3 ", False)],
)  # fmt: skip
def test_what_may_come_right_is_not_called_wrong(text: str, unfinished: bool) -> None:
    with pytest.raises(SelectorError) as caught:
        Selector(searched, dict)(text, ROWS, typing=True)
    assert caught.value.unfinished is unfinished


def test_a_row_that_has_changed_is_looked_at_again() -> None:
    look = Selector(searched, dict)
    assert look("quite new", ROWS, False) == []
    changed = [replace(ROWS[0], stage="quite new"), *ROWS[1:]]
    assert [row.name for row in look('"quite new"', changed, False)] == ["edge-01"]


def test_words_narrow_and_leave_out() -> None:
    look = Words(str)
    rows = ["job a running", "job b failed", "job c running"]
    assert look("job RUN !c", rows, True) == ["job a running"]
    assert look(" ! ", rows, True) == rows
