"""What a person sees on the command line of devices that are at work."""

import re
import threading

import pytest
from operating import on_terminal
from rich.console import Console

from hdap_tui.cli.board import Board
from hdap_tui.progress import kind_of


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(board: Board, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    picture = board.picture(console, height)
    if picture is None:
        return []
    with console.capture() as capture:
        console.print(picture)
    return capture.get().splitlines()


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("timing 2/5", "timing"),
        ("upload 40 %", "upload"),
        ("cooling 61 °C", "cooling"),
        ("failed: timeout", "failed"),
        ("hook after roll-back", "hook after roll-back"),
        ("connecting", "connecting"),
    ],
)
def test_a_kind_is_a_stage_without_what_changes_in_it(stage: str, kind: str) -> None:
    assert kind_of(stage) == kind


def test_counts_come_in_the_order_of_the_work_and_the_ended_last() -> None:
    board = Board()
    for device, *stages in (
        ("a", "connecting", "upload 10 %", "timing 1/5", "done"),
        ("b", "connecting", "upload 90 %"),
        ("c", "connecting", "failed: timeout"),
        ("d", "connecting", "upload 10 %", "timing 2/5"),
    ):
        for stage in stages:
            board.say(device, stage)
    assert list(board.counts().items()) == [
        ("upload", 1),
        ("timing", 1),
        ("done", 1),
        ("failed", 1),
    ]


def test_the_seconds_of_a_stage_go_on_while_its_figures_change() -> None:
    clock = Clock()
    board = Board(clock=clock)
    board.say("a", "timing 1/20")
    clock.now = 50
    board.say("a", "timing 2/20")
    clock.now = 65
    assert drawn(board)[1].split() == ["a", "timing", "2/20", "1", "min", "05", "s"]
    board.say("a", "hook")
    assert drawn(board)[1].split() == ["a", "hook", "0", "s"]


def test_who_knows_since_when_a_stage_lasts_is_believed() -> None:
    clock = Clock()
    clock.now = 100
    board = Board(clock=clock)
    board.say("b", "timing 1/5")
    board.say("a", "timing 2/5", 65.0)
    assert drawn(board)[1].split() == ["a", "timing", "2/5", "1", "min", "05", "s"]
    board.say("a", "timing 1/5", 2.0)  # another visit: what was between them nobody saw
    assert drawn(board)[1].split() == ["a", "timing", "1/5", "2", "s"]


def test_those_longest_at_work_have_a_line_before_those_that_wait_for_a_turn() -> None:
    clock = Clock()
    board = Board(clock=clock)
    for number in range(300):
        clock.now = number
        board.say(f"w{number:03d}", "waiting")
    for number in range(300):
        clock.now = 1000 - number
        board.say(f"t{number:03d}", "timing")
    board.say("t000", "failed: timeout")
    assert [line.device for line in board.lines(4)] == ["t299", "t298", "t297", "t000"]


def test_a_device_that_is_taken_up_again_is_no_longer_counted_as_ended() -> None:
    board = Board()
    for stage in ("connecting", "failed: timeout", "connecting"):
        board.say("a", stage)
    assert board.counts() == {"connecting": 1}
    board.say("a", "")
    assert drawn(board) == []


@pytest.mark.parametrize(("width", "height"), [(160, 40), (80, 21), (50, 9), (24, 4), (10, 1)])
def test_hundreds_of_devices_fit_every_terminal(width: int, height: int) -> None:
    board = Board(lambda device: f"{device} (emulated)")
    for number in range(900):
        board.say(f"camera-{number:03d}.hall-b.lab.example.org", f"connecting {number} of many")
        if number % 9 == 0:
            board.say(f"camera-{number:03d}.hall-b.lab.example.org", "failed: authentication")
    lines = drawn(board, width, height)
    assert len(lines) == min(height, 11 if width > 40 else height)
    assert max(map(len, lines)) <= width
    if width >= 50:
        assert all("(emulated)" in line for line in lines[1:])
        assert lines[0] == "connecting 800, failed 100"
        assert sum("failed: auth" in line for line in lines[1:]) == 3


def test_what_a_device_says_cannot_command_the_terminal() -> None:
    board = Board()
    board.say("a", "unpacking \x1b[2J[red]x")
    assert "\x1b" not in "".join(drawn(board))
    assert "[red]" in drawn(board)[1]


def test_many_threads_may_speak_while_it_is_drawn() -> None:
    board = Board()

    def speak(own: int) -> None:
        for number in range(300):
            board.say(f"{own}-{number}", f"kind{number % 30} {number}")

    threads = [threading.Thread(target=speak, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        drawn(board)
    for thread in threads:
        thread.join()
    assert sum(board.counts().values()) == 1200


_SPEAK = """
import sys, time
from engine.events import Reporter
from hdap_tui.cli.diagnostics import ProgressBar
with ProgressBar(live="json" not in sys.argv, shown=lambda d: d + " (emulated)") as bar:
    reporter = Reporter("bench", bar)
    reporter.started("bench", total=2, weight=1)
    bar.stage("edge-1", "timing 1/5")
    time.sleep(0.6)
    reporter.noted("bench", "edge-2 does not answer")
    with bar.paused():
        print("question", file=sys.stderr, flush=True)
    time.sleep(0.6)
    print("data")
"""


def _spoken(*arguments: str, **environ: str) -> tuple[str, str]:
    status, output, shown = on_terminal("-c", _SPEAK, *arguments, **environ)
    assert status == 0
    return output, shown


def test_on_a_terminal_bar_and_stages_are_drawn_and_the_data_stays_alone() -> None:
    output, shown = _spoken()
    assert output == "data\n"
    assert "bench 0/2" in shown
    assert "timing 1" in shown
    assert "edge-1 (emulated)" in shown
    assert "edge-2 does not answer" in shown
    said, after = shown.split("question\r\n")
    assert "bench 0/2" in after
    assert "\x1b[1A" in said  # where a picture was, it is drawn over
    assert "\x1b[1A" not in after.partition("bench 0/2")[0]  # and the question stays


def test_without_colour_none_is_written() -> None:
    _, shown = _spoken(NO_COLOR="1")
    assert "edge-1 (emulated)" in shown
    assert not re.search(r"\x1b\[[0-9;]*m", re.sub(r"\x1b\[[01]?m", "", shown))


def test_programs_and_dumb_terminals_get_nothing_that_is_drawn() -> None:
    _, shown = _spoken("json")
    assert shown.replace("\r", "") == "bench: edge-2 does not answer\nquestion\n"
    _, shown = _spoken(TERM="dumb")
    assert "\x1b" not in shown
    assert "bench: edge-2 does not answer" in shown
