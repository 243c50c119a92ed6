"""Points and lines as characters."""

from __future__ import annotations

import numpy as np
import pytest

from hdap_tui.dashboard import canvas
from hdap_tui.dashboard.canvas import Frame
from hdap_tui.dashboard.widgets.chart import Plot, Series, draw

UNIT = Frame(0, 1, 0, 1)


def test_a_point_falls_on_its_dot() -> None:
    found = canvas.dots(np.array([0.01, 0.99]), np.array([0.99, 0.01]), UNIT, 2, 1)
    assert found == ["⠁⢀"]


def test_points_outside_the_frame_and_nan_are_left_out() -> None:
    xs, ys = np.array([0.5, 2.0, np.nan]), np.array([0.5, 0.5, 0.5])
    cells = canvas.place(xs, ys, UNIT, 10, 10)
    assert cells.inside.tolist() == [True, False, False]


def test_every_point_of_a_cell_is_found_again() -> None:
    rng = np.random.default_rng(1)
    xs, ys = rng.random(5000), rng.random(5000)
    cells = canvas.place(xs, ys, UNIT, 20, 10)
    found = [int(i) for row in range(10) for column in range(20) for i in cells.at(column, row)]
    assert sorted(found) == list(range(5000))
    column, row = 7, 3
    inside = (xs >= 7 / 20) & (xs < 8 / 20) & (ys <= 1 - 3 / 10) & (ys > 1 - 4 / 10)
    assert set(cells.at(column, row)) == set(np.flatnonzero(inside))


def test_a_cell_has_the_label_of_most_of_its_points() -> None:
    xs = np.array([0.1, 0.1, 0.1, 0.9])
    cells = canvas.place(xs, np.full(4, 0.5), UNIT, 2, 1)
    assert canvas.majority(cells, np.array([2, 2, -1, -1])).tolist() == [[2, -1]]
    empty = canvas.place(np.array([5.0]), np.array([5.0]), UNIT, 2, 1)
    assert canvas.majority(empty, np.array([0])).tolist() == [[-2, -2]]


def test_a_line_of_many_points_keeps_every_spike() -> None:
    ys = np.zeros(100_000)
    ys[[123, 77_777]] = 5
    grid = canvas.line(np.arange(1e5), ys, Frame(0, 1e5, -1, 6), 60, 10)
    top = np.flatnonzero(grid[:8].any(axis=0))
    assert top.tolist() == [0, 93]
    assert grid.any(axis=0).all()


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    xs, ys = np.arange(9.0), np.array([1, 1, 1, np.nan, np.nan, np.nan, 1, 1, 1.0])
    grid = canvas.line(xs, ys, Frame(0, 8, 0, 2), 8, 2)
    drawn = grid.any(axis=0)
    assert drawn[0]
    assert drawn[-1]
    assert not drawn[6:11].any()


def test_the_columns_of_a_line_touch() -> None:
    xs = np.linspace(0, 1, 40)
    grid = canvas.line(xs, np.sin(12 * xs), Frame(0, 1, -1.1, 1.1), 20, 6)
    for left, right in zip(grid.T[:-1], grid.T[1:], strict=True):
        a, b = np.flatnonzero(left), np.flatnonzero(right)
        assert a.min() - 1 <= b.max()
        assert b.min() - 1 <= a.max()


@pytest.mark.parametrize(
    ("low", "high", "most", "first", "step"),
    [(0, 10, 5, 0, 2), (-3.2, 9.1, 6, -2, 2), (0.1, 0.34, 4, 0.1, 0.05), (2e6, 9e6, 4, 2e6, 2e6)],
)
def test_ticks_are_round_numbers(
    low: float, high: float, most: int, first: float, step: float
) -> None:
    found = canvas.ticks(low, high, most)
    assert found[0] == pytest.approx(first)
    assert found[1] - found[0] == pytest.approx(step)
    assert low <= found[0]
    assert found[-1] <= high * (1 + 1e-9)


def test_ticks_of_nothing_are_none() -> None:
    assert canvas.ticks(1, 1, 4) == []
    assert canvas.ticks(float("nan"), 1, 4) == []


def test_zooming_keeps_the_point_under_the_hand_where_it_is() -> None:
    near = UNIT.zoomed(0.5, 0.25, 0.75)
    assert (0.25 - near.x0) / (near.x1 - near.x0) == pytest.approx(0.25)
    assert (near.y1 - 0.75) / (near.y1 - near.y0) == pytest.approx(0.25)
    assert near.zoomed(2, 0.25, 0.75) == UNIT


def test_a_chart_shows_gap_cross_mark_level_and_axes() -> None:
    ys = [4.0, 4.1, float("nan"), 2.0, 2.1]
    plot = Plot(
        title="latency, ms", series=(Series([0, 1, 2, 3, 4], ys),), marks=((3, "M"),),
        crosses=(2,), levels=((4.0, "baseline"),), notes=("5 measurements",),
    )  # fmt: skip
    sheet = draw(plot, 60, 14)
    text = [sheet.text(y) for y in range(14)]
    assert text[0].startswith("latency, ms")
    assert text[0].endswith("5 measurements")
    assert any("M" in line for line in text[1:])
    assert any("x" in line for line in text)
    assert any(line.rstrip().endswith("baseline") for line in text)
    assert text[-2].lstrip().startswith("└")
    assert any(0x2800 < ord(c) < 0x2900 for line in text for c in line)


def test_a_chart_without_numbers_says_so() -> None:
    sheet = draw(Plot(title="accuracy", empty="No epoch yet."), 40, 8)
    assert "No epoch yet." in "".join(sheet.text(y) for y in range(8))


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (1, 1), (20, 3), (300, 2), (19, 40)])
def test_a_chart_fits_into_any_room(columns: int, rows: int) -> None:
    draw(Plot(title="x" * 50, series=(Series([0, 1], [1, 2]),), notes=("n" * 90,)), columns, rows)


def test_a_single_point_and_equal_values_are_drawn() -> None:
    for ys in ([3.0], [3.0, 3.0, 3.0]):
        sheet = draw(Plot(series=(Series(list(range(len(ys))), ys),)), 40, 8)
        assert any(0x2800 < ord(c) < 0x2900 for y in range(8) for c in sheet.text(y))
