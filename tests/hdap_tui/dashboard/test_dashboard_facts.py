"""Facts in the dashboard: as columns of the fleet, and on a device's own screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import Open
from dashboard_fake import HOSTILE, NOW, FakeSource, fleet

from hdap_tui.dashboard.screens.fleet import fleet_columns
from hdap_tui.dashboard.widgets.columns import layout
from hdap_tui.fact_names import NAMES
from hdap_tui.store.facts import Change, Moment
from hdap_tui.store.records import FleetSnapshot

PI = {
    "board": "Raspberry Pi 5 Model B Rev 1.0", "cpu_model": "Cortex-A76", "os": "Debian 12",
    "kernel": "6.6.20", "onnxruntime": "1.20.1", "cores_usable": 4, "channel_multiple": 4,
    "dot_product": True,
}  # fmt: skip


def known(rows: int = 12, columns: tuple[str, ...] = ()) -> FleetSnapshot:
    """Return a fleet of which every other device was looked at."""
    whole = fleet(rows)
    devices = tuple(
        replace(row, facts={**PI, "cores_usable": 1 + i % 4}) if i % 2 == 0 else row
        for i, row in enumerate(whole.devices)
    )
    return replace(whole, devices=devices, columns=columns)


async def test_a_key_shows_the_next_fact_as_a_column_and_remembers_it(open_app: Open) -> None:
    source = FakeSource(known())
    async with open_app(source=source) as dash:
        assert "Raspberry" not in dash.text()
        await dash.press("t")
        await dash.sees("Raspberry Pi 5")
        await dash.until(lambda: source.columns == ("board",))
        await dash.press("t")
        await dash.sees("Cortex-A76")
        for _ in range(len(PI) - 1):
            await dash.press("t")
        await dash.until(lambda: source.columns == ())
        assert "Cortex-A76" not in dash.text()


async def test_the_columns_chosen_last_time_are_there_at_once(open_app: Open) -> None:
    async with open_app(source=FakeSource(known(columns=("kernel", "os")))) as dash:
        await dash.sees("6.6.20")
        assert "Debian 12" in dash.text()


async def test_columns_are_chosen_at_the_prompt(open_app: Open) -> None:
    source = FakeSource(known())
    async with open_app(source=source) as dash:
        dash.app.desk.type("devices list --columns onnxruntime,kernel")
        await dash.sees("1.20.1")
        await dash.until(lambda: source.columns == ("onnxruntime", "kernel"))
        dash.app.desk.type("devices list --columns bord")
        await dash.sees('did you mean "board"?')


@pytest.mark.parametrize("columns", [("board",), ("board", "os")])
async def test_eighty_columns_are_enough(open_app: Open, columns: tuple[str, ...]) -> None:
    async with open_app(source=FakeSource(known(columns=columns)), size=(80, 24)) as dash:
        await dash.sees("Raspber")
        assert "change" in dash.text()
        assert "edge-01" in dash.text()


async def test_a_column_is_sorted_with_unknown_ones_last(open_app: Open) -> None:
    async with open_app(source=FakeSource(known(columns=("cores_usable",)))) as dash:
        table = dash.app.screen.main  # type: ignore[attr-defined]
        table.sort("fact-cores_usable")
        values = [row.facts.get("cores_usable") for row in table.rows]
        assert values == [1, 1, 1, 3, 3, 3, *[None] * 6]


async def test_a_device_shows_what_it_is_and_what_changed(open_app: Open) -> None:
    source = FakeSource(known())
    source.changes["edge-01"] = (
        Moment(
            at="2026-11-20T12:00:00.000+00:00",
            facts=PI,
            changes=(Change("kernel", "6.1.0", "6.6.20"),),
        ),
    )
    async with open_app(source=source, size=(160, 48)) as dash:
        await dash.press("enter")
        await dash.sees("Cortex-A76")
        await dash.sees("kernel 6.1.0 → 6.6.20")
    async with open_app(source=source, size=(80, 24)) as dash:
        await dash.press("enter")
        await dash.sees("Raspberry Pi 5 Model B Rev 1.0, Cortex-A76")


async def test_hostile_facts_stay_text(open_app: Open) -> None:
    whole = known()
    rows = tuple(
        replace(row, facts={"board": HOSTILE[i % len(HOSTILE)], "os": HOSTILE[-i]})
        for i, row in enumerate(whole.devices)
    )
    source = FakeSource(replace(whole, devices=rows, columns=("board", "os")))
    async with open_app(source=source, size=(160, 48)) as dash:
        await dash.sees("[/red]")
        assert "\x1b" not in dash.text()
        for _ in range(3):
            await dash.press("enter", "escape", "down")


async def test_a_fleet_that_was_never_looked_at_says_how(open_app: Open) -> None:
    async with open_app() as dash:
        await dash.press("t")
        await dash.sees("press c to look at them")


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_what_happens_now_keeps_its_column_beside_any_number_of_facts(
    width: int, count: int
) -> None:
    chosen = [name.name for name in NAMES][:count]
    columns = fleet_columns(lambda: NOW, chosen)
    placed = layout(columns, width, {f"fact-{fact}": 28 for fact in chosen})
    keys = [one.column.key for one in placed]
    assert {"state", "name", "emulated", "latency", "alert", "now"} <= set(keys)
    assert placed[-1].width >= len("timing 12/20")
    assert placed[-1].x + placed[-1].width <= width
    if width == 160 and count == 4:
        assert [key for key in keys if key.startswith("fact-")] == [f"fact-{f}" for f in chosen]
