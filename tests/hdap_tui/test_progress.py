from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.events import Advanced, AnyEvent, Failed, Finished, Noted, Scored, Started
from hdap_tui.progress import WHOLE, Progress, duration

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> dict[str, Any]:
    return {"job": "j", "at": (START + timedelta(seconds=seconds)).isoformat()}


def fed(*events: AnyEvent) -> Progress:
    progress = Progress()
    for event in events:
        progress(event)
    return progress


def test_steps_count_by_their_expected_length() -> None:
    progress = fed(
        Started(step=WHOLE, weight=100, **at(0)),
        Started(step="measure", total=10, weight=20, **at(0)),
        Advanced(step="measure", n=10, **at(20)),
        Finished(step="measure", **at(20)),
        Started(step="search", total=400, weight=80, **at(20)),
        Advanced(step="search", n=100, **at(40)),
    )
    assert progress.fraction == pytest.approx(0.4)
    assert progress.step == "search"
    assert progress.left_s == pytest.approx(60, rel=0.01)


def test_time_left_learns_from_the_pace_so_far() -> None:
    slow = fed(
        Started(step=WHOLE, weight=100, **at(0)),
        Started(step="measure", total=10, weight=100, **at(0)),
        Advanced(step="measure", n=9, **at(270)),
    )
    assert slow.left_s == pytest.approx(10 * (0.9 * 3 + 0.1), rel=0.01)


def test_nothing_is_said_of_the_time_left_before_there_is_a_pace() -> None:
    assert fed(Started(step=WHOLE, weight=100, **at(0))).left_s is None


def test_only_the_end_of_the_whole_is_a_hundred_per_cent() -> None:
    before = fed(
        Started(step=WHOLE, weight=10, **at(0)),
        Started(step="only", total=1, weight=10, **at(0)),
        Finished(step="only", **at(10)),
    )
    assert before.fraction < 1
    before(Finished(step=WHOLE, **at(10)))
    assert before.fraction == 1
    assert before.state == "finished"


def test_a_resumed_job_keeps_what_was_done_and_runs_again() -> None:
    progress = fed(
        Started(step=WHOLE, weight=10, **at(0)),
        Started(step="measure", total=2, weight=5, **at(0)),
        Finished(step="measure", **at(5)),
        Failed(step=WHOLE, error="killed", **at(6)),
        Started(step=WHOLE, weight=10, **at(60)),
    )
    assert progress.state == "running"
    assert progress.error == ""
    assert progress.fraction == pytest.approx(0.5)


def test_curves_and_log_are_kept() -> None:
    progress = fed(
        Scored(step="search", name="best", x=1, y=3.0, **at(0)),
        Scored(step="search", name="best", x=2, y=2.0, **at(1)),
        Noted(step="search", text="a cluster left out", **at(2)),
    )
    assert progress.curves == {"best": [(1, 3.0), (2, 2.0)]}
    assert progress.log[-1].endswith("search: a cluster left out")


def test_a_resumed_step_draws_its_curve_once() -> None:
    points = [(1, 3.0), (2, 2.0), (3, 1.5), (1, 3.0), (2, 2.0)]
    progress = fed(
        *(Scored(step="search", name="best", x=x, y=y, **at(n)) for n, (x, y) in enumerate(points))
    )
    assert progress.curves["best"] == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (3.4, "3 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (4200, "1 h 10 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
