import threading

import pytest

from engine.events import (
    Advanced,
    AnyEvent,
    Failed,
    Finished,
    Noted,
    Reporter,
    Scored,
    Started,
    from_json,
    to_json,
)

EVENTS: tuple[AnyEvent, ...] = (
    Started(job="j", step="search", total=100, weight=30.0),
    Advanced(job="j", step="search", n=7, sequence=3),
    Scored(job="j", step="search", name="best", x=1.0, y=2.5),
    Noted(job="j", step="search", text='quote " and newline \n and é'),
    Finished(job="j", step="search", result={"model": "abc", "latency_ms": 1.5}),
    Failed(job="j", step="search", error="no"),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_survives_json_unchanged_on_one_line(event: AnyEvent) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_a_field_of_a_newer_version_is_left_out() -> None:
    line = to_json(EVENTS[1])[:-1] + ', "colour": "blue"}'
    assert from_json(line) == EVENTS[1]


@pytest.mark.parametrize("line", ["", "[]", "7", "{}", '{"event": "advanced"}', '{"event": "x"'])
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_json(line)


def test_a_reporter_numbers_events_without_gap_from_many_threads() -> None:
    heard: list[AnyEvent] = []
    reporter = Reporter("job-1", heard.append, sequence=10)
    threads = [
        threading.Thread(target=lambda: [reporter.advanced("s", n) for n in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.sequence for e in heard] == list(range(11, 411))
    assert {e.job for e in heard} == {"job-1"}
