"""Numbers, times and columns as text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from dashboard_fake import NOW, at, deployments

from hdap_tui.dashboard import formats
from hdap_tui.dashboard.screens.device import note
from hdap_tui.dashboard.widgets.columns import Cell, Column, layout, longest
from hdap_tui.dashboard.widgets.job import latest_run
from hdap_tui.store.records import Point


def test_milliseconds_are_aligned_and_unknown_ones_are_a_dash() -> None:
    assert [formats.ms(v) for v in (0.1234, 12.3, 123.4567)] == ["0.123", "12.300", "123.457"]
    assert formats.ms(12345.6) == "12346"
    assert formats.ms(None) == formats.ms(math.nan) == formats.DASH


def test_an_interval_without_an_end_is_not_shown() -> None:
    assert formats.interval_ms(1.0, 2.0) == "1.000–2.000"
    assert formats.interval_ms(0.0, math.inf) == ""
    assert formats.interval_ms(None, 2.0) == ""


@pytest.mark.parametrize(
    ("minutes", "text"),
    [(0.2, "<1 min"), (1, "1 min"), (119, "119 min"), (120, "2 h"), (60 * 47, "47 h"),
     (60 * 48, "2 d"), (-5, "<1 min")],
)  # fmt: skip
def test_an_age_is_no_finer_than_a_minute(minutes: float, text: str) -> None:
    assert formats.age(at(minutes), NOW) == text


def test_a_time_that_is_none_has_no_age() -> None:
    assert formats.age("", NOW) == formats.age("yesterday", NOW) == ""
    assert formats.clock_time("x") == ""
    assert formats.clock_time("2026-11-19T23:59:01", NOW) == "2026-11-19 23:59:01"


def test_noise_in_a_sparkline_looks_like_noise_and_a_step_like_a_step() -> None:
    blocks = "▁▂▃▄▅▆▇"
    flat = formats.sparkline([10, 10.01, 9.99, 10], 8)
    assert max(blocks.index(c) for c in flat) - min(blocks.index(c) for c in flat) <= 1
    assert formats.sparkline([10, 10, 12.5], 8) == "▁▁▇"
    assert formats.sparkline([1, 2, 3], 2) == "▁▇"
    assert formats.sparkline([], 8) == formats.sparkline([math.nan], 8) == ""


def test_clusters_have_letters_and_noise_a_dot() -> None:
    assert [formats.letter(i) for i in (0, 2, 25, 26, -1, None)] == [
        "A", "C", "Z", "AA", formats.NOISE, "",
    ]  # fmt: skip


def test_a_proof_says_what_was_measured_where() -> None:
    (done,) = deployments()
    assert formats.proof(done) == "2.31× (2.25–2.37), 12 devices, measured, emulated"
    assert formats.proof(replace(done, emulated=False, high=math.inf)) == (
        "2.31×, 12 devices, measured"
    )
    in_part = replace(done, measured=7, emulated=False)
    assert formats.proof(in_part) == "2.31× (2.25–2.37), 7 devices, measured"
    unmeasured = replace(done, speedup=None, devices=1)
    assert formats.proof(unmeasured) == "1 device, not measured"
    assert formats.proof(replace(unmeasured, state="running")) == "1 device, under way"


Row = tuple[str, str]
COLUMNS: tuple[Column[Row], ...] = (
    Column("name", "name", lambda r: Cell(r[0]), 6, most=30, text=lambda r: r[0]),
    Column("wide", "wide", lambda r: Cell(""), 10, above=60),
    Column("rest", "rest", lambda r: Cell(r[1]), 6, most=99),
)


def test_columns_grow_to_their_texts_first_and_then_take_what_there_is() -> None:
    rows = [("a name of 20 letters", "x")]
    placed = {p.column.key: p for p in layout(COLUMNS, 50, longest(COLUMNS, rows))}
    assert set(placed) == {"name", "rest"}
    assert placed["name"].width == 20
    assert placed["rest"].x + placed["rest"].width == 50
    assert len(layout(COLUMNS, 80)) == 3


@pytest.mark.parametrize("width", [1, 5, 12, 13, 40, 400])
def test_columns_never_reach_beyond_the_table(width: int) -> None:
    assert all(
        p.width >= 1 and p.x + p.width <= max(width, p.x + 1) for p in layout(COLUMNS, width)
    )


def test_a_curve_that_was_written_anew_shows_its_latest_run() -> None:
    points = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 7.5), (3, 7.1), (4, 6.0)]
    assert latest_run(points) == [(1, 9.0), (2, 7.5), (3, 7.1), (4, 6.0)]


def test_a_measurement_says_its_energy_and_what_was_off_or_what_went_wrong() -> None:
    fine = Point(
        at="2026-11-20T10:00:00+00:00", model="m", median_ms=1.0, low_ms=0.9, high_ms=1.1,
        contended=0.0,
    )  # fmt: skip
    assert note(fine).text == ""
    odd = replace(fine, energy_mj=81.23, remarks=("throttled during the run",))
    assert (note(odd).text, note(odd).style) == ("81.2 mJ; throttled during the run", "warn")
    assert note(replace(odd, error="timeout")).text == "timeout"
