"""What is due when, with clocks that a test moves; nobody waits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from hdap_tui.watching.timetable import Kind, Rhythm, Step, Taken, decide, pause_after

DAY, HOUR, MINUTE = 86400.0, 3600.0, 60.0
START = 1_800_000_000.0


@dataclass
class Simulated:
    """A watcher whose rounds take as long as a test says, by clocks that it moves."""

    sweep: Rhythm = field(default_factory=lambda: Rhythm(DAY))
    canary: Rhythm = field(default_factory=lambda: Rhythm(HOUR))
    takes: dict[str, float] = field(default_factory=lambda: {"sweep": 600.0, "canary": 30.0})
    taken: Taken = field(default_factory=Taken)
    wall: float = START
    lived: float = 0.0
    """Seconds that have really passed."""
    done: list[tuple[float, Step]] = field(default_factory=list)

    def live(self, seconds: float, tick: float = 10.0) -> list[Step]:
        """Let time pass; return what was begun meanwhile."""
        until, before = self.lived + seconds, len(self.done)
        while self.lived < until:
            held = {
                "sweep": self._held(self.sweep, self.taken.sweep),
                "canary": self._held(self.canary, self.taken.canary),
            }
            self.taken = replace(self.taken, **held)
            step = decide(self.wall, self.sweep, self.canary, self.taken, HOUR)
            if step.do == "wait":
                self._pass(tick)
                continue
            kind: Kind = "sweep" if step.do == "sweep" else "canary"
            self.done.append((self.lived, step))
            self.taken = replace(self.taken, **{kind: step.taken}, latest=kind, half=None)
            self._pass(self.takes[kind])
        return [step for _, step in self.done[before:]]

    def _held(self, rhythm: Rhythm, last: float | None) -> float | None:
        return None if last is None else rhythm.held(last, self.wall)

    def _pass(self, seconds: float) -> None:
        self.wall, self.lived = self.wall + seconds, self.lived + seconds


def kinds(steps: list[Step]) -> list[str]:
    return [step.do for step in steps]


def test_the_first_thing_is_a_sweep_and_rounds_come_in_between() -> None:
    watcher = Simulated()
    assert kinds(watcher.live(DAY)) == ["sweep", *["canary"] * 24]
    assert kinds(watcher.live(DAY)).count("sweep") == 1


def test_the_grid_goes_on_over_restarts_by_the_wall_clock() -> None:
    watcher = Simulated(wall=START + 17)
    watcher.live(DAY)
    again = Simulated(taken=replace(watcher.taken, latest=None), wall=START + 17 + 1.4 * DAY)
    (step, *_) = again.live(MINUTE)
    assert (step.do, step.taken, step.missed) == ("sweep", START + 17 + DAY, 0)
    assert again.sweep.due_at(step.taken) == START + 17 + 2 * DAY


def test_what_takes_longer_than_its_interval_does_not_pile_up() -> None:
    watcher = Simulated(Rhythm(HOUR), Rhythm(10 * DAY), {"sweep": 2.5 * HOUR, "canary": 1.0})
    steps = [step for step in watcher.live(26 * HOUR) if step.do == "sweep"]
    assert len(steps) == 11
    assert sum(step.missed for step in steps) == 15
    assert [step.taken for step in steps] == sorted({step.taken for step in steps})


def test_sweeps_that_take_longer_than_their_interval_leave_room_for_rounds() -> None:
    watcher = Simulated(Rhythm(HOUR), Rhythm(HOUR), {"sweep": 2 * HOUR, "canary": MINUTE})
    steps = kinds(watcher.live(20 * HOUR))
    assert steps[:6] == ["sweep", "canary"] * 3


@pytest.mark.parametrize("back", [MINUTE, HOUR, 30 * DAY])
def test_a_clock_set_back_neither_stops_the_rounds_nor_makes_many(back: float) -> None:
    watcher = Simulated(canary=Rhythm(MINUTE), takes={"sweep": 5.0, "canary": 5.0})
    watcher.live(2 * HOUR)
    watcher.wall -= back
    before = len(watcher.done)
    steps = watcher.live(HOUR)
    assert 55 <= kinds(steps).count("canary") <= 61
    times = [lived for lived, _ in watcher.done[before - 1 :]]
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) > 45
    assert max(gaps) <= 125
    assert sum(step.missed for step in steps) == 0


def test_after_a_sleep_one_round_is_made_and_the_others_are_missed() -> None:
    watcher = Simulated()
    watcher.live(2 * HOUR)
    watcher.wall += 10 * HOUR
    steps = watcher.live(HOUR)
    assert kinds(steps).count("canary") == 2
    assert sum(step.missed for step in steps) == pytest.approx(9, abs=1)


def test_a_clock_set_forward_makes_no_burst() -> None:
    watcher = Simulated(canary=Rhythm(MINUTE), takes={"sweep": 5.0, "canary": 5.0})
    watcher.live(HOUR)
    watcher.wall += 400 * DAY
    steps = watcher.live(10 * MINUTE)
    assert kinds(steps).count("sweep") == 1
    assert 10 <= kinds(steps).count("canary") <= 11


def test_jitter_moves_each_time_to_later_and_always_to_the_same() -> None:
    rhythm = Rhythm(HOUR, 0.25, "hall-a")
    due = [rhythm.due_at(START + n * HOUR) - START - (n + 1) * HOUR for n in range(200)]
    assert min(due) >= 0
    assert max(due) < 0.25 * HOUR
    assert max(due) - min(due) > 0.2 * HOUR
    assert due == [rhythm.due_at(START + n * HOUR) - START - (n + 1) * HOUR for n in range(200)]
    assert rhythm.due_at(START) != replace(rhythm, salt="hall-b").due_at(START)


@pytest.mark.parametrize("jitter", [0.0, 0.1, 1.0])
def test_a_time_counts_as_passed_exactly_once_it_is_due(jitter: float) -> None:
    rhythm = Rhythm(HOUR, jitter, "x")
    for count in range(50):
        due = rhythm.due_at(START + count * HOUR)
        assert rhythm.passed(START, due - 0.001) == count
        assert rhythm.passed(START, due + 0.001) == count + 1


@pytest.mark.parametrize(
    ("age", "becomes"), [(60.0, "take up"), (3598.0, "take up"), (3700.0, "leave"), (-5.0, "leave")]
)
def test_a_sweep_that_was_broken_off_is_due_and_taken_up_while_it_is_young(
    age: float, becomes: str
) -> None:
    last = Taken(sweep=START, canary=START, half=START - age)
    step = decide(START + 1, Rhythm(DAY), Rhythm(HOUR), last, HOUR)
    assert (step.do, step.half, step.taken) == (
        "sweep", becomes, START,
    )  # fmt: skip


def test_a_young_half_sweep_is_taken_up_where_the_next_one_is_due_as_well() -> None:
    last = Taken(sweep=START - 3 * HOUR, canary=START, half=START - 60)
    step = decide(START, Rhythm(HOUR), Rhythm(DAY), last, HOUR)
    assert (step.do, step.half, step.taken, step.missed) == ("sweep", "take up", START, 2)


def test_what_failed_is_left_out_for_a_while_and_the_other_goes_on() -> None:
    last = Taken(sweep=START - DAY, canary=START - HOUR)
    assert decide(START, Rhythm(DAY), Rhythm(HOUR), last, 0, ["sweep"]).do == "canary"
    assert decide(START, Rhythm(DAY), Rhythm(HOUR), last, 0, ["sweep", "canary"]).do == "wait"
    assert [pause_after(n) for n in (1, 2, 8, 1000)] == [5, 10, 600, 600]
