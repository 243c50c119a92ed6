"""The fleet table: live, sorted, filtered, marked, and large."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import Open, Opened
from dashboard_fake import FakeSource, fleet

from hdap_tui.config import Device
from hdap_tui.dashboard import application
from hdap_tui.dashboard.screens.confirm import ConfirmScreen
from hdap_tui.dashboard.widgets.table import Table
from hdap_tui.store.records import DeviceRow, FleetSnapshot


def table(hands: Opened) -> Table[DeviceRow]:
    return hands.app.screen.query_one("#main", Table)


def names(hands: Opened) -> list[str]:
    return [row.name for row in table(hands).rows]


async def test_one_changed_device_draws_one_line(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        before = table(hands).drawn
        changed = [replace(d, latency_ms=9.87) if d.name == "edge-05" else d
                   for d in hands.source.fleet.devices]  # fmt: skip
        await hands.change(devices=tuple(changed))
        await hands.sees("9.870")
        assert table(hands).drawn - before == 1


async def test_a_change_elsewhere_draws_no_line(open_app: Open) -> None:
    async with open_app(FakeSource(fleet(200)), size=(120, 30)) as hands:
        before = table(hands).drawn
        far = [replace(d, latency_ms=9.87) if d.name == "edge-180" else d
               for d in hands.source.fleet.devices]  # fmt: skip
        await hands.change(devices=tuple(far))
        assert table(hands).drawn == before


async def test_the_seconds_of_a_stage_go_on_and_draw_the_lines_of_such_devices_alone(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "SECOND_S", 0.05)
    source = FakeSource(fleet(10_000))
    async with open_app(source, size=(160, 48)) as hands:
        await hands.sees("timing 2/5 · 12 s")
        asked, before = source.reads, table(hands).drawn
        hands.clock.go_on(58)
        await hands.sees("timing 2/5 · 1 min 10 s")
        assert (source.reads, table(hands).drawn) == (asked, before + 1)
        source.put_device("edge-04", stage="hook", stage_since="")
        await hands.sees("  hook\n")


async def test_seconds_that_have_no_room_are_left_out_whole_and_draw_nothing(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "SECOND_S", 0.05)
    async with open_app(size=(80, 24)) as hands:
        await hands.sees("  timing 2/5\n")
        before = table(hands).drawn
        hands.clock.go_on(58)
        table(hands).refresh_ages()
        await hands.settle()
        assert table(hands).drawn == before
        hands.source.put_device("edge-04", stage="upload")
        await hands.sees("  upload\n")
        hands.clock.go_on(-50)
        await hands.sees("  upload · 20 s\n")


async def test_nothing_is_read_again_while_nothing_changes(open_app: Open) -> None:
    async with open_app() as hands:
        reads = hands.source.reads
        looks = 0
        ask = hands.source.version

        def counted() -> int:
            nonlocal looks
            looks += 1
            return ask()

        hands.source.version = counted  # type: ignore[method-assign]
        await hands.until(lambda: looks > 5)
        assert hands.source.reads == reads


async def test_a_hidden_screen_is_not_drawn_and_catches_up_when_it_is_opened(
    open_app: Open,
) -> None:
    async with open_app(size=(120, 30)) as hands:
        fleet_table = table(hands)
        await hands.press("5")
        before = fleet_table.drawn
        slow = [replace(d, latency_ms=9.87) for d in hands.source.fleet.devices]
        await hands.change(devices=tuple(slow))
        assert fleet_table.drawn == before
        await hands.press("1")
        await hands.sees("9.870")


async def test_the_cursor_stays_on_its_device_when_rows_move(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("down", "down")
        assert table(hands).current.name == "edge-03"
        table(hands).sort("latency", reverse=True)
        await hands.settle()
        assert table(hands).current.name == "edge-03"
        await hands.change(devices=tuple(reversed(hands.source.fleet.devices)))
        assert table(hands).current.name == "edge-03"


async def test_sorting_by_keys_goes_through_the_columns_and_turns_round(open_app: Open) -> None:
    async with open_app() as hands:
        for _ in range(4):  # state, device, model, latency
            await hands.press("full_stop")
        assert table(hands).order == "latency"
        latencies = [row.latency_ms for row in table(hands).rows]
        assert latencies == sorted(latencies)
        await hands.press("z")
        assert [row.latency_ms for row in table(hands).rows] == sorted(latencies, reverse=True)
        await hands.sees("ms▼")


async def test_rows_without_a_value_come_last_both_ways(open_app: Open) -> None:
    async with open_app() as hands:
        for reverse in (False, True):
            table(hands).sort("change", reverse)
            assert names(hands)[-1] == "edge-12"


async def test_a_click_on_a_title_sorts(open_app: Open) -> None:
    async with open_app() as hands:
        x = hands.text().splitlines()[2].index("device")
        await hands.pilot.click("#main", offset=(x, 0))
        await hands.settle()
        assert table(hands).order == "name"


async def test_the_filter_knows_words_keys_and_their_opposite(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("slash")
        await hands.type("roof")
        assert names(hands) == ["edge-03", "edge-06", "edge-09", "edge-12"]
        await hands.sees("4 of 12")
        await hands.type(" !cluster=C")
        assert names(hands) == ["edge-12"]
        await hands.press("enter")
        assert hands.app.focused is table(hands)
        await hands.press("escape")
        assert len(names(hands)) == 12
        table(hands).filter("state=failed")
        assert names(hands) == ["edge-11"]


async def test_a_filter_that_nothing_matches_says_so(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("slash")
        await hands.type("zz[/")
        await hands.sees("Nothing matches “zz[/”; escape clears the filter.")


async def test_commands_take_the_marked_devices(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("space", "down", "space")
        await hands.sees("2 marked")
        await hands.press("b")
        await hands.until(lambda: hands.source.ran)
        [(name, given)] = hands.source.ran
        assert (name, given["models"], given["select"]) == ("bench", (), "edge-01,edge-03")
        await hands.idle()
        await hands.press("escape", "escape")
        assert table(hands).marks == set()


async def test_all_that_is_shown_can_be_marked_and_unmarked(open_app: Open) -> None:
    async with open_app() as hands:
        table(hands).filter("kitchen")
        await hands.press("asterisk")
        assert table(hands).marks == {"edge-01", "edge-04", "edge-07", "edge-10"}
        await hands.press("asterisk")
        assert table(hands).marks == set()


async def test_a_question_says_which_marks_the_filter_hides_and_leaves_them_out(
    open_app: Open,
) -> None:
    async with open_app() as hands:
        await hands.press("space", "space", "space")  # edge-01, 02, 03
        table(hands).filter("edge-02")
        await hands.press("B")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        await hands.sees("2 marked devices are hidden by the filter, and left out.")
        assert "edge-02: resnet20-digits" in hands.text()
        await hands.press("y")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran == [("rollback", {"select": "edge-02", "yes": False})]


async def test_ten_thousand_devices_scroll_and_filter(open_app: Open) -> None:
    async with open_app(FakeSource(fleet(10_000)), size=(120, 30)) as hands:
        assert "10000 devices" in hands.text()
        before = table(hands).drawn
        await hands.press("end")
        await hands.sees("edge-10000")
        assert table(hands).current.name == "edge-10000"
        await hands.press("pageup", "home")
        assert table(hands).current.name == "edge-01"
        assert table(hands).drawn - before < 30 * 8
        table(hands).filter("ge-99")
        assert len(names(hands)) == 111
        await hands.sees("edge-9913")


async def test_emulated_devices_say_so_in_their_row_and_in_the_header(open_app: Open) -> None:
    for size, word in (((80, 24), " emu "), ((140, 24), " emulated ")):
        async with open_app(size=size) as hands:
            lines = hands.text().splitlines()
            assert "EMULATED" in lines[0]
            assert all(word in line for line in lines[3:15])
    real = tuple(replace(d, emulated=i == 0) for i, d in enumerate(fleet().devices))
    async with open_app(FakeSource(replace(fleet(), devices=real))) as hands:
        assert "1 EMULATED" in hands.text().splitlines()[0]
        assert " emu " not in hands.text().splitlines()[5]


async def test_an_empty_fleet_says_what_to_do(open_app: Open) -> None:
    empty = FleetSnapshot(version=1, at="", fleet="new")
    async with open_app(FakeSource(empty)) as hands:
        await hands.sees("No devices yet: press I to import them, or U for an")
        for view, sentence in (
            ("2", "Nothing has been clustered yet"),
            ("3", "No alert"),
            ("4", "No job yet"),
            ("5", "No model is known yet"),
        ):
            await hands.press(view)
            await hands.sees(sentence)


async def test_a_store_that_cannot_be_read_for_a_while_is_told_once(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        hands.source.failing = OSError("disk went away")
        await hands.sees("The fleet cannot be read: disk went away")
        hands.source.failing = None
        slow = [replace(d, latency_ms=9.87) for d in hands.source.fleet.devices]
        await hands.change(devices=tuple(slow))
        await hands.sees("9.870")


async def test_the_filter_speaks_the_language_of_select(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("slash")
        await hands.type("(tag=roof or state=off) and not edge-[01:06]")
        assert names(hands) == ["edge-09", "edge-10", "edge-12"]
        await hands.sees("3 of 12")
        await hands.press("enter")
        assert table(hands).wanted == "(tag=roof or state=off) and not edge-[01:06]"


async def test_while_a_filter_is_half_typed_the_last_good_one_stays(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        await hands.press("slash")
        await hands.type("tag=roof")
        roof = names(hands)
        assert roof == ["edge-03", "edge-06", "edge-09", "edge-12"]
        for more in (" ", "a", "n", "d", " ", "n", "o", "t", " "):
            await hands.type(more)
            assert names(hands) == roof
        await hands.sees('is missing after "not".  4 of 12')
        await hands.press("enter")
        assert hands.app.focused is not table(hands), "what is missing can be typed at once"
        await hands.type("edge-03")
        assert names(hands) == ["edge-06", "edge-09", "edge-12"]


async def test_a_value_that_is_being_typed_may_be_cut_short(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("slash")
        await hands.type("state=fa")
        assert names(hands) == ["edge-11"]
        await hands.press("enter")
        assert names(hands) == [], "what is kept is what --select takes"


async def test_a_misspelt_field_is_told_beside_the_filter(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        await hands.press("slash")
        await hands.type("stat=off")
        await hands.sees('there is no field "stat"; did you mean "state"?')
        assert len(names(hands)) == 12
        await hands.press("escape")
        assert "no field" not in hands.text()


async def test_the_filter_knows_addresses_from_the_settings(open_app: Open) -> None:
    source = FakeSource()
    source.devices = {
        name: Device(
            name=name, host=f"10.0.{index % 2}.{index}", port=22, user="pi", identity=None,
            tags=(), emulated=False, host_group="", python="",
        )
        for index, name in enumerate(row.name for row in source.fleet.devices)
    }  # fmt: skip
    async with open_app(source) as hands:
        table(hands).filter("host=10.0.1.* and edge-0*")
        assert names(hands) == ["edge-02", "edge-04", "edge-06", "edge-08"]
