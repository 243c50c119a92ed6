"""From an alert to a compression job, and what else one does with an alert or a model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

from conftest import Open
from dashboard_fake import MODEL, SMALL, FakeSource, at, fleet

from engine.events import Reporter
from hdap_tui.context import Outcome, Table
from hdap_tui.dashboard import announce
from hdap_tui.dashboard.screens.confirm import ConfirmScreen
from hdap_tui.dashboard.screens.result import ResultScreen
from hdap_tui.errors import ExitCode, UserError
from hdap_tui.store.records import NO_DATA, AlertRow, Decision, JobRow


async def test_one_key_on_an_alert_starts_recompression_after_a_question(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        await hands.press("3", "r")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        for said in (
            "Start a compression job for the fleet as it is now?",
            "because edge-07 has become 25.1 % slower",
            "for 12 devices in 3 clusters",
            "designs are timed on edge-01, edge-02, edge-03",
            f"the devices run {MODEL} now",
            "nothing is deployed",
        ):
            assert said in hands.text(), said
        assert hands.source.ran == []
        await hands.press("y")
        await hands.until(lambda: hands.source.ran)
        name, arguments = hands.source.ran[0]
        assert name == "compress"
        assert arguments["detach"] is True
        assert {k: v for k, v in arguments.items() if v is not None and k != "detach"} == {}


async def test_no_is_the_answer_of_who_only_presses_enter_or_escape(open_app: Open) -> None:
    async with open_app() as hands:
        for key in ("enter", "escape", "n", "q"):
            await hands.press("3", "r")
            await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
            await hands.press(key)
            await hands.until(lambda: hands.view == "alerts")
        await hands.idle()
        assert hands.source.ran == []


async def test_acknowledging_names_the_alert_under_the_cursor(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("3", "down", "a")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran == [("alerts acknowledge", {"alert": 2, "reason": None})]


async def test_an_alert_shows_its_history_and_the_device_it_is_about(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await hands.press("3")
        await hands.sees("edge-07 has become 25.1 % slower at once.")
        await hands.sees("14:26:00   opened")
        await hands.sees("90 measurements")
        await hands.press("down")
        await hands.sees("heat sink ordered")
        await hands.press("down")
        await hands.until(lambda: "90 measurements" not in hands.text())
        await hands.press("up", "up", "enter")
        await hands.until(lambda: hands.view == "device")
        await hands.sees("edge-07   EMULATED")


async def test_a_new_alert_and_the_end_of_a_job_are_announced(open_app: Open) -> None:
    source = FakeSource(replace(fleet(), alerts=()))
    async with open_app(source, size=(120, 30)) as hands:
        assert "no alerts" in hands.text()
        jobs = (replace(source.fleet.jobs[0], state="failed", error="out of [/] memory"),)
        await hands.change(alerts=fleet().alerts, jobs=jobs)
        await hands.sees("edge-07 has become 25.1 % slower at once: press 3 for the alerts.")
        await hands.sees("Job compress-2 has failed: out of [/] memory")
        await hands.sees("! 2 alerts")


def test_many_new_alerts_are_one_sentence() -> None:
    before = replace(fleet(), alerts=())
    many = tuple(replace(fleet().alerts[0], id=i, subject=f"edge-{i}") for i in range(1, 9))
    said = list(announce.news(before, replace(before, alerts=many)))
    assert said == [("8 new alerts: edge-1, edge-2, edge-3 and 5 more.", "warning")]


async def test_deploying_asks_with_model_and_devices_by_name(open_app: Open) -> None:
    async with open_app(size=(120, 40)) as hands:
        await hands.press("5", "p")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        assert all(f"edge-{i:02d}: {MODEL} → {SMALL}" in hands.text() for i in range(1, 13)), (
            hands.text()
        )
        await hands.press("n")
        await hands.sees("not confirmed, nothing was changed")
        assert hands.source.ran == []
        await hands.press("1", "space", "5", "p")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        assert "edge-01: " in hands.text()
        assert "edge-02: " not in hands.text()
        await hands.press("y")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran[0][1]["select"] == "edge-01"
        assert hands.source.ran[0][1]["model"] == SMALL


async def test_a_deployment_shows_its_speed_up_with_all_that_qualifies_it(open_app: Open) -> None:
    for size in ((80, 24), (160, 48)):
        async with open_app(size=size) as hands:
            await hands.press("5")
            await hands.sees("2.31× (2.25–2.37), 12 devices, measured, emulated")


async def test_a_long_command_shows_its_progress_and_can_be_stopped(open_app: Open) -> None:
    source = FakeSource()
    go_on = threading.Event()

    def slow(reporter: Reporter, cancelled: Callable[[], bool], **_: object) -> Outcome:
        reporter.started("job", weight=10)
        reporter.started("timing", total=12, weight=10)
        reporter.advanced("timing", 6)
        while not cancelled() and not go_on.wait(0.01):
            pass
        raise UserError("interrupted")

    source.runs["sweep"] = slow
    async with open_app(source, size=(120, 30)) as hands:
        await hands.press("s")
        await hands.sees("timing 6/12")
        assert " 50%" in hands.text()
        await hands.press("2", "3", "1")  # the screens stay usable, and all show it
        await hands.sees("timing 6/12")
        await hands.press("q")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        assert "Quit, and stop the commands that run in the dashboard?" in hands.text()
        await hands.press("n", "C")
        await hands.sees("sweep was stopped.")
        await hands.idle()
        assert "timing 6/12" not in hands.text()


async def test_a_table_that_comes_out_of_a_command_is_a_screen_of_its_own(open_app: Open) -> None:
    source = FakeSource()
    source.runs["doctor"] = lambda **_: Outcome(
        table=Table(("what", "ms"), (("python", "3.5"), ("database", "12.0"))),
        text="All is well.\nNothing to do.",
    )
    source.runs["sweep"] = lambda **_: Outcome(
        table=Table(("device", "ms"), (("edge-01", "4.2"),)), text="12 of 12 devices measured.",
        exit_code=ExitCode.PARTLY,
    )  # fmt: skip
    async with open_app(source, size=(120, 30)) as hands:
        await hands.press("Y")
        await hands.until(lambda: isinstance(hands.screen, ResultScreen))
        for said in ("doctor", "database", "All is well.", "Nothing to do."):
            assert said in hands.text()
        await hands.press("escape", "s")
        # A long command does not push itself before what one is looking at.
        await hands.sees("12 of 12 devices measured. Press v to see it all.")
        assert hands.view == "fleet"
        await hands.press("v")
        await hands.until(lambda: isinstance(hands.screen, ResultScreen))
        assert "edge-01" in hands.text()


async def test_a_command_that_fails_unexpectedly_is_told_and_nothing_else_breaks(
    open_app: Open,
) -> None:
    source = FakeSource()
    source.runs["doctor"] = lambda **_: 1 / 0  # type: ignore[assignment,return-value]
    async with open_app(source, size=(120, 30)) as hands:
        await hands.press("Y")
        await hands.sees("doctor failed: ZeroDivisionError")
        await hands.press("2")
        await hands.until(lambda: hands.view == "map")


def test_whoever_leaves_is_told_which_jobs_go_on() -> None:
    job = JobRow(id="compress-2", kind="compress", state="running", folder="", created_at=at(1))
    one = replace(fleet(), jobs=(job,))
    assert list(announce.farewell(one)) == [
        "1 job goes on without the dashboard: compress-2 (hdap jobs follow)."
    ]
    assert list(announce.farewell(replace(one, jobs=(replace(job, state="finished"),)))) == []
    assert list(announce.farewell(None)) == []


def group_of(n: int) -> tuple[AlertRow, ...]:
    """Return an alert of the fleet, and those of devices that it stands for."""
    one = fleet().alerts[0]
    wide = replace(one, id=50, scope="fleet", subject="fleet", inhibited=n)
    return (wide, *(replace(one, id=i, subject=f"edge-{i:02d}", inhibited_by=50)
                    for i in range(1, n + 1)))  # fmt: skip


async def test_a_group_opens_and_closes_beneath_the_alert_that_stands_for_it(
    open_app: Open,
) -> None:
    source = FakeSource(replace(fleet(), alerts=group_of(9)))
    for size in ((80, 24), (160, 48)):
        async with open_app(source, size=size) as hands:
            await hands.press("3")
            await hands.sees("fleet +9 devices")
            assert "! 1 alert" in hands.text()
            assert "└ edge-03" not in hands.text()
            await hands.press("plus")
            await hands.sees("└ edge-01")
            await hands.press("down", "d")
            await hands.until(lambda: hands.source.ran)
            assert hands.source.ran.pop() == ("alerts explain", {"alert": 1})
            await hands.press("escape", "plus")
            await hands.until(lambda: "└ edge-01" not in hands.text())


async def test_a_silenced_alert_says_so_and_its_silence_can_be_ended(open_app: Open) -> None:
    until = at(-90)
    quiet = replace(fleet().alerts[0], silence=7, silenced_until=until)
    source = FakeSource(replace(fleet(), alerts=(quiet,)))
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press("3")
        await hands.sees("S silenced")
        assert "no alerts" in hands.text()
        await hands.press("Q")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran.pop() == ("alerts unsilence", {"silence": 7})


async def test_silencing_asks_how_long_and_why(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        await hands.press("3", "l")
        await hands.sees(":alerts silence edge-07 --for")
        await hands.type("2h")
        await hands.press("enter")
        await hands.sees(":alerts silence edge-07 --for 2h --reason")
        await hands.type("'a new fan'")
        await hands.press("enter")
        await hands.until(lambda: hands.source.ran)
        given = {"selector": "edge-07", "for_": "2h", "reason": "a new fan"}
        assert hands.source.ran == [("alerts silence", given)]


async def test_an_alert_is_explained_beside_its_history(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await hands.press("3")
        await hands.sees("the CUSUM chart: its sum reached 11.2, the limit is 10.4")


async def test_a_suggestion_stands_beneath_the_alerts_with_the_keys_for_it(open_app: Open) -> None:
    one = Decision(
        id=4, cause="alert 3", alert=3, state="suggested", at=at(1),
        reason="fleet has become 12.0 % slower at once, for 12 canary rounds",
    )  # fmt: skip
    source = FakeSource(fleet())
    async with open_app(source, size=(120, 30)) as hands:
        await hands.press("3")
        await hands.change(decisions=(one,))
        await hands.sees("f6 recompress")
        await hands.sees("suggested: fleet has become 12.0 % slower at once")
        await hands.press("f6")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran.pop() == ("policy start", {"decision": 4})
        await hands.press("f5")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran.pop() == ("policy undo", {"decision": 4})
        await hands.change(decisions=(replace(one, state="withdrawn"),))
        await hands.until(lambda: "f6 recompress" not in hands.text())


def test_an_alert_beneath_another_or_silenced_is_not_announced_until_it_comes_up() -> None:
    before = replace(fleet(), alerts=())
    quiet = replace(before, alerts=group_of(2))
    said = [text for text, _ in announce.news(before, quiet)]
    assert said == ["fleet has become 25.1 % slower at once: press 3 for the alerts."]
    up = tuple(replace(a, inhibited_by=None) for a in quiet.alerts[1:2])
    said = [text for text, _ in announce.news(quiet, replace(quiet, alerts=up))]
    assert said == ["edge-01 has become 25.1 % slower at once: press 3 for the alerts."]


async def test_silence_is_shown_without_figures_that_nobody_measured(open_app: Open) -> None:
    one = replace(
        fleet().alerts[0], kind=NO_DATA, direction="", model="", baseline_ms=math.nan,
        now_ms=math.nan, size_percent=math.nan,
    )  # fmt: skip
    wide = replace(one, id=9, scope="fleet", subject="fleet", devices=7, inhibited=7)
    async with open_app(FakeSource(replace(fleet(), alerts=(wide, one))), size=(160, 48)) as hands:
        await hands.press("3")
        await hands.sees("7 devices do not answer.")
        await hands.press("down")
        await hands.sees("edge-07 does not answer.")
        assert "silent" in hands.text()
        assert "nan" not in hands.text()
