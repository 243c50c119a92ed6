from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from hdap_tui import schedule, slots
from hdap_tui.schedule import FreeSlot, NeedSlot, Pause, Result, run
from hdap_tui.ssh.errors import Cancelled

Task = Generator[Any, None, None]


@pytest.fixture
def take(tmp_path: Path) -> Callable[[str, int], Any]:
    return lambda group, count: slots.take(tmp_path / "slots", group, count)


def never() -> bool:
    return False


def test_results_come_in_the_order_in_which_they_are_ready(take: Any) -> None:
    def task(name: str, seconds: float) -> Task:
        yield Pause(seconds)
        yield Result(name)

    tasks = [task("slow", 0.4), task("quick", 0.0), task("middling", 0.2)]
    assert list(run(tasks, 3, take, never)) == ["quick", "middling", "slow"]


def test_who_waits_holds_no_thread(take: Any) -> None:
    def task(number: int) -> Task:
        yield Pause(0.5)
        yield Result(number)

    began = time.monotonic()
    assert sorted(run([task(n) for n in range(200)], 1, take, never)) == list(range(200))
    assert time.monotonic() - began < 5  # one after the other it would take 100 s


def test_a_group_is_never_used_by_more_than_its_slots(take: Any) -> None:
    inside: dict[str, int] = {"a": 0, "b": 0}
    most = dict(inside)

    def task(group: str) -> Task:
        yield NeedSlot(group, 2)
        inside[group] += 1
        most[group] = max(most[group], inside[group])
        yield Pause(0.05)
        inside[group] -= 1
        yield FreeSlot()
        yield Result(group)

    done = list(run([task(g) for g in "aaaaabb"], 4, take, never))
    assert len(done) == 7
    assert most == {"a": 2, "b": 2}


def test_waiting_for_a_slot_keeps_no_other_group_from_working(take: Any, tmp_path: Path) -> None:
    held = slots.take(tmp_path / "slots", "taken", 1)
    assert held is not None

    def task(group: str) -> Task:
        yield NeedSlot(group, 1)
        yield Result(group)

    running = run([task("taken"), task("taken"), task("free")], 1, take, never)
    assert next(running) == "free"
    held.close()
    assert list(running) == ["taken", "taken"]


def test_a_slot_comes_back_when_its_task_breaks(take: Any) -> None:
    def broken() -> Task:
        yield NeedSlot("g", 1)
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        list(run([broken()], 1, take, never))
    assert take("g", 1) is not None


def test_everybody_tidies_up_before_a_cancelled_run_ends(take: Any) -> None:
    tidied: list[str] = []
    unwanted = threading.Event()

    def task(name: str, wait: Any) -> Task:
        try:
            yield Result(name)
            yield wait
            yield Result("never")
        except Cancelled:
            time.sleep(0.1)
            tidied.append(name)
            raise

    tasks = [task("pausing", Pause(60)), task("first", NeedSlot("g", 1)),
             task("second", Pause(60))]  # fmt: skip
    running = run(tasks, 2, take, unwanted.is_set)
    assert {next(running) for _ in range(3)} == {"pausing", "first", "second"}
    unwanted.set()
    rest = list(running)
    assert set(tidied) >= {"pausing", "second"}
    assert rest in ([], ["never"])  # the one that got its slot was no longer waiting


def test_closing_the_iterator_cancels_the_rest(take: Any) -> None:
    tidied = threading.Event()

    def task() -> Task:
        try:
            yield Result("one")
            yield Pause(60)
        except Cancelled:
            tidied.set()
            raise

    running = run([task()], 1, take, never)
    assert next(running) == "one"
    running.close()
    assert tidied.is_set()


def test_a_slow_reader_holds_up_nobody(take: Any) -> None:
    late = threading.Event()

    def quick() -> Task:
        yield Result("quick")

    def patient() -> Task:
        yield Pause(0.2)
        late.set()

    running = run([quick(), patient()], 1, take, never)
    assert next(running) == "quick"
    assert late.wait(5)  # though nobody asks for the next result
    assert list(running) == []


def test_no_task_at_all_ends_at_once(take: Any) -> None:
    assert list(run([], 1, take, never)) == []


def test_steps_that_wait_for_silent_devices_keep_no_other_task_from_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "_MOMENT_S", 0.1)
    answered = threading.Event()

    def silent() -> schedule.Steps[str]:
        answered.wait(20)
        yield Result("silent")

    def quick(number: int) -> schedule.Steps[str]:
        yield Pause(0.01)
        yield Result(f"quick {number}")

    tasks = [silent() for _ in range(6)] + [quick(number) for number in range(20)]
    results = schedule.run(tasks, 2, lambda _group, _count: None, lambda: False)
    first = [next(results) for _ in range(20)]
    assert {one.split()[0] for one in first} == {"quick"}
    answered.set()
    assert list(results) == ["silent"] * 6
