from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import results
from engine.latency import Configuration
from engine.results import Case, parse

A, B = "a" * 64, "b" * 64


def entry(median: float, **changes: Any) -> dict[str, Any]:
    return {
        "wall_ms": [median * 0.9, median, median * 1.2],
        "cpu_ms": median * 0.98,
        "median_ms": median,
        "mean_ms": median * 1.03,
        "p90_ms": median * 1.1,
        "n": 3,
        "contended": 0.0,
        "threads": 1,
        "warmup": 10,
        "load_ms": 2.0,
        "providers": ["CPUExecutionProvider"],
    } | changes


HELLO: dict[str, Any] = {
    "event": "hello", "runner": "c" * 64, "pid": 7, "clock": 1003.0, "python": "3.11.7",
    "onnxruntime": "1.23.0", "numpy": "2.4.6", "machine": "aarch64", "system": "Linux",
    "conditions": {"governor": "performance", "temperature_c": {"cpu 0": 51.5}},
    "emulated": False,
}  # fmt: skip
TIMED: dict[str, Any] = {"event": "timed", "blocks": [0, 2], "expected_s": 2.5}
BLOCKS: list[dict[str, Any]] = [
    {
        "event": "block",
        "block": k,
        "order": [A, B],
        "models": {A: entry(a), B: entry(b)},
        "conditions": {"load": [0.1, 0.2, 0.3]},
    }
    for k, (a, b) in enumerate([(1.0, 2.0), (1.02, 2.02), (0.99, 2.1)])
]
DONE: dict[str, Any] = {
    "event": "done",
    "models": {A: {"median_ms": 999.0}},
    "conditions": {"governor": "performance"},
    "stopped": "interval",
}
GOOD = [HELLO, TIMED, *BLOCKS, DONE]
ENERGY: dict[str, Any] = {
    "event": "energy", "model": A, "source": "ina3221", "rail": "VDD_IN", "rate_hz": 20.0,
    "idle_w": 3.0, "load_w": 8.0, "load_s": 6.0, "n": 600, "total_mj": 80.0, "dynamic_mj": 50.0,
}  # fmt: skip


def encode(lines: list[Any]) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in lines]


def test_a_whole_file_becomes_one_record_a_model() -> None:
    parsed = parse(encode(GOOD), "edge-01", [A, B], at="2026-11-20T10:00:00Z", started=1000.0)
    assert parsed.started
    assert parsed.finished
    assert (parsed.blocks, parsed.section, parsed.expected_s) == (3, (0, 2), 2.5)
    assert (parsed.error, parsed.garbage) == ("", 0)
    one = parsed.latencies[A]
    assert one.ok
    assert (one.device, one.model, one.at) == ("edge-01", A, "2026-11-20T10:00:00Z")
    assert one.median_ms == 1.0, "told from the blocks, whatever the summary says"
    assert one.low_ms < 1.0 < one.high_ms
    assert one.block_medians_ms == (1.0, 1.02, 0.99)
    assert (one.n, one.contended, one.emulated, one.clock_offset_s) == (9, 0.0, False, 3.0)
    assert one.conditions["governor"] == "performance"
    assert one.conditions["temperature_c"] == {"cpu 0": 51.5}
    assert one.conditions["after"] == {"governor": "performance"}
    assert one.conditions["onnxruntime"] == "1.23.0"
    assert one.conditions["providers"] == ["CPUExecutionProvider"]
    assert one.conditions["stopped"] == "interval"
    assert parsed.latencies[B].median_ms == 2.02


def test_an_emulated_device_is_said_to_be_one() -> None:
    for hello in (HELLO | {"emulated": True}, HELLO | {"conditions": {"emulated": True}}):
        assert parse(encode([hello, *BLOCKS]), "d", [A]).latencies[A].emulated


def test_a_run_cut_short_gives_what_it_measured() -> None:
    lease = {"event": "failed", "model": None, "error": "lease", "detail": "nobody came"}
    parsed = parse(encode([HELLO, TIMED, *BLOCKS[:2], lease]), "d", [A])
    assert parsed.finished
    assert (parsed.error, parsed.detail) == ("lease", "nobody came")
    assert parsed.latencies[A].ok
    assert parsed.latencies[A].block_medians_ms == (1.0, 1.02)
    assert parsed.latencies[A].conditions["partial"] == "lease"
    assert parsed.latencies[A].conditions["after"] == {"load": [0.1, 0.2, 0.3]}

    nothing = parse(encode([HELLO, lease]), "d", [A]).latencies[A]
    assert (nothing.error, nothing.detail) == ("lease", "nobody came")
    assert math.isnan(nothing.median_ms)


def test_a_run_that_goes_on_is_unfinished() -> None:
    parsed = parse(encode([HELLO, TIMED]), "d", [A])
    assert parsed.started
    assert not parsed.finished
    assert parsed.latencies[A].error == "unfinished"
    assert not parse([], "d", [A]).started


def test_one_block_has_no_upper_end() -> None:
    one = parse(encode([HELLO, BLOCKS[0]]), "d", [A]).latencies[A]
    assert (one.median_ms, one.low_ms, one.high_ms) == (1.0, 0.0, math.inf)


def test_a_line_that_is_still_being_written_is_no_garbage() -> None:
    lines = encode([HELLO, BLOCKS[0], BLOCKS[1]])
    lines[-1] = lines[-1][:-40]
    parsed = parse(lines, "d", [A])
    assert parsed.garbage == 0
    assert parsed.blocks == 1


def test_a_second_run_over_the_same_folder_replaces_the_first() -> None:
    failed = {"event": "failed", "model": None, "error": "cancelled", "detail": "stop"}
    parsed = parse(encode([HELLO, BLOCKS[0], failed, HELLO, BLOCKS[1]]), "d", [A])
    assert not parsed.finished
    assert parsed.latencies[A].block_medians_ms == (1.02,)


def test_a_model_that_failed_says_why_and_the_other_has_its_number() -> None:
    failed = {"event": "failed", "model": B, "error": "memory", "detail": "bad_alloc"}
    only_a = copy.deepcopy(BLOCKS)
    for block in only_a:
        del block["models"][B]
    parsed = parse(encode([HELLO, failed, *only_a, DONE]), "d", [A, B])
    assert parsed.latencies[A].ok
    assert (parsed.latencies[B].error, parsed.latencies[B].detail) == ("memory", "bad_alloc")
    assert parsed.error == ""


@pytest.mark.parametrize(
    "spoilt",
    [
        {"median_ms": -1.0},
        {"median_ms": 0},
        {"median_ms": "1.0"},
        {"median_ms": True},
        {"median_ms": 1e300},
        {"median_ms": 10**400},
        {"median_ms": 5.0},  # outside of its own samples
        {"mean_ms": None},
        {"cpu_ms": -0.1},
        {"n": 2},
        {"n": 3.0},
        {"contended": 1.5},
        {"wall_ms": []},
        {"wall_ms": [1.0] * (results.SAMPLES + 1), "n": 10**6},
        {"wall_ms": {"0": 1}},
        {"wall_ms": [1.0, [2.0], 3.0]},
    ],
)
def test_numbers_that_make_no_sense_are_garbage_for_that_model_alone(spoilt: Any) -> None:
    lines = copy.deepcopy(GOOD)
    lines[3]["models"][A].update(spoilt)
    parsed = parse(encode(lines), "d", [A, B])
    assert parsed.latencies[A].error == "garbage"
    assert parsed.latencies[A].detail.startswith("The device's result makes no sense: block 1:")
    assert parsed.latencies[B].ok


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_none_are_refused(constant: bytes) -> None:
    line = encode([BLOCKS[0]])[0].replace(b'"median_ms": 1.0', b'"median_ms": ' + constant)
    parsed = parse([*encode([HELLO]), line], "d", [A])
    assert parsed.latencies[A].error == "garbage"


@pytest.mark.parametrize(
    "line",
    [
        b"Last login: Fri Nov 20 from 10.0.0.1\n",
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"event": "block"}\n',
        b'{"event": "block", "block": -1, "models": {}}\n',
        b'{"event": "timed", "blocks": [0, 1e9], "expected_s": 1}\n',
        b'{"event": "timed", "blocks": [0, 1], "expected_s": -1}\n',
        b'{"event": ["hello"]}\n',
        b'{"event": "failed", "model": "unasked", "error": "model"}\n',
        b"1\n",
    ],
)
def test_a_line_without_sense_is_counted_and_harms_nothing_else(line: bytes) -> None:
    parsed = parse([*encode([HELLO]), line, *encode([*BLOCKS, DONE])], "d", [A])
    assert parsed.garbage == 1
    assert parsed.latencies[A].median_ms == 1.0
    only = parse([line], "d", [A]).latencies[A]
    assert only.error == "garbage"
    assert "1 bad line" in only.detail


def test_a_line_with_two_values_for_one_key_has_none() -> None:
    line = encode([BLOCKS[0]])[0].replace(b'"median_ms": 1.0', b'"median_ms": 1.0, "n": 3')
    parsed = parse([*encode([HELLO]), line], "d", [A])
    assert (parsed.blocks, parsed.garbage) == (0, 1)


FOUR = Case(model=A, configuration=Configuration(batch=4, threads=2), only=False)
ONE = Case(model=A, configuration=Configuration(), only=False)


def test_every_configuration_of_a_model_has_its_own_record() -> None:
    models = {
        ONE.key: entry(1.0, batch=1, images=1),
        FOUR.key: entry(3.0, batch=4, images=4, threads=2),
    }
    block = {"event": "block", "block": 0, "models": models, "order": []}
    found = parse(encode([HELLO, block]), "d", [ONE, FOUR]).latencies
    assert (found[ONE.key].median_ms, found[ONE.key].per_image_ms) == (1.0, 1.0)
    assert (found[FOUR.key].median_ms, found[FOUR.key].per_image_ms) == (3.0, 0.75)
    assert found[FOUR.key].model == A
    assert found[FOUR.key].configuration == FOUR.configuration


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"batch": 8, "images": 8, "threads": 2}, "another batch"),
        ({"batch": 4, "images": 1, "threads": 2}, "another batch"),
        ({"batch": 4, "images": 4, "threads": 1}, "threads"),
        ({"batch": 4, "images": 4, "threads": 2, "providers": ["CUDAExecutionProvider"]}, "CPU"),
        ({"batch": 4, "images": 10**9, "threads": 2}, "images"),
    ],
)
def test_other_numbers_than_asked_are_garbage(changes: dict[str, Any], wrong: str) -> None:
    block = {"event": "block", "block": 0, "models": {FOUR.key: entry(3.0, **changes)}}
    one = parse(encode([HELLO, block]), "d", [FOUR]).latencies[FOUR.key]
    assert one.error == "garbage"
    assert wrong in one.detail


def test_what_was_seen_during_the_run_is_judged() -> None:
    lines = copy.deepcopy(GOOD)
    for number, share in enumerate((0.2, 0.4, 0.3), start=2):
        lines[number]["during"] = {"span_s": 1.0, "looks": 2, "others_share": share}
    lines[0]["conditions"]["throttle_count"] = 3
    lines[-1]["conditions"]["throttle_count"] = 9
    one = parse(encode(lines), "d", [A]).latencies[A]
    assert one.conditions["throttled"] is True
    assert one.conditions["during"]["others_share"] == pytest.approx(0.3)
    assert one.remarks == ("throttled during the run", "somebody else used 30 % of the CPU")
    assert parse(encode(GOOD), "d", [A]).latencies[A].remarks == ()


def test_a_drifting_run_tells_its_first_and_its_last_value() -> None:
    blocks = [
        {"event": "block", "block": k, "models": {A: entry(2.0 * 1.05**k)}, "conditions": {}}
        for k in range(6)
    ]
    one = parse(encode([HELLO, *blocks, DONE]), "d", [A]).latencies[A]
    assert (one.conditions["cold_ms"], one.conditions["sustained_ms"]) == (2.0, 2.55256)
    assert one.remarks[0].startswith("it became slower meanwhile")


def test_energy_is_the_whole_of_an_inference_and_keeps_what_it_takes_above_idle() -> None:
    one = parse(encode([*GOOD, ENERGY]), "d", [A]).latencies[A]
    assert one.energy_mj == 80.0
    assert one.conditions["energy"]["dynamic_mj"] == 50.0
    assert one.conditions["energy"]["rail"] == "VDD_IN"


@pytest.mark.parametrize(
    "changes",
    [{"total_mj": -1.0}, {"total_mj": 1e300}, {"dynamic_mj": 81.0}, {"total_mj": "80"},
     {"total_mj": None, "dynamic_mj": None}],
)  # fmt: skip
def test_energy_that_makes_no_sense_is_none(changes: dict[str, Any]) -> None:
    parsed = parse(encode([*GOOD, ENERGY | changes]), "d", [A])
    assert parsed.garbage == 1
    assert parsed.latencies[A].energy_mj is None
    why = {"event": "energy", "model": A, "why": "too short"}
    one = parse(encode([*GOOD, why]), "d", [A]).latencies[A]
    assert one.energy_mj is None
    assert one.conditions["energy"] == {"why": "too short"}


def test_what_a_runner_does_in_place_of_timing_is_told_until_it_times() -> None:
    phase = {"event": "phase", "phase": "cooling", "value": 71.5, "expected_s": 2.0}
    waiting = parse(encode([HELLO, phase]), "d", [A])
    assert (waiting.phase, waiting.phase_value, waiting.phase_s) == ("cooling", 71.5, 2.0)
    waited = {"event": "waited", "s": 12.0}
    timing = parse(encode([HELLO, phase, waited, TIMED, BLOCKS[0]]), "d", [A])
    assert timing.phase == ""
    assert timing.latencies[A].conditions["waited"] == {"s": 12.0}
    for nonsense in ({"phase": "sleeping"}, {"value": 1e9}, {"expected_s": -1}, {"phase": []}):
        assert parse(encode([HELLO, phase | nonsense]), "d", [A]).phase == ""
    skipped = {"event": "failed", "model": None, "error": "skipped", "detail": "still 75 °C"}
    one = parse(encode([HELLO, phase, waited, skipped]), "d", [A]).latencies[A]
    assert (one.error, one.detail) == ("skipped", "still 75 °C")


def test_a_line_above_a_megabyte_is_not_even_read() -> None:
    huge = json.dumps(BLOCKS[0] | {"padding": "x" * results.LINE_BYTES}).encode() + b"\n"
    parsed = parse([*encode([HELLO]), huge], "d", [A])
    assert (parsed.blocks, parsed.garbage) == (0, 1)


def test_texts_lose_what_could_drive_a_terminal() -> None:
    failed = {
        "event": "failed",
        "model": A,
        "error": "\x1b[2J",
        "detail": "\x1b]0;title\x07bad\r\nnews \u202e" + "x" * 10_000 + "\ud800",
    }
    hello = HELLO | {"conditions": {"gov\x1bernor": "perf\x00\u0085" * 500, "deep": [[[[[[1]]]]]]}}
    one = parse(encode([hello, failed]), "d", [A]).latencies[A]
    assert one.error == "runtime"
    assert one.detail.startswith("]0;titlebad  news xxx")
    assert len(one.detail) <= results.TEXT
    (key, value), *_ = one.conditions.items()
    assert key == "governor"
    assert value.isprintable()
    assert len(value) <= results.TEXT


def test_models_that_nobody_asked_for_are_not_taken() -> None:
    parsed = parse(encode(GOOD), "d", [A])
    assert set(parsed.latencies) == {A}


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([A, B, "hello", "timed", "block", "failed", "done", "lease", "interval"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(sorted({*HELLO, *TIMED, *BLOCKS[0], *DONE, *entry(1.0), "error", "detail", A})),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def holds(lines: list[bytes]) -> None:
    parsed = parse(lines, "d", [A, B], at="now", started=1.0)
    assert set(parsed.latencies) == {A, B}
    assert 0 <= parsed.garbage <= len(lines)
    for one in parsed.latencies.values():
        assert one.detail.isprintable()
        if one.ok:
            assert 0 < one.median_ms < math.inf
            assert one.low_ms <= one.median_ms <= one.high_ms
            assert one.n >= 1
            assert all(0 < v < math.inf for v in one.block_medians_ms)
        else:
            assert one.detail
            assert math.isnan(one.median_ms)
        json.dumps(dict(one.conditions), allow_nan=False)


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_no_bytes_raise(lines: list[bytes]) -> None:
    holds(lines)


@settings(max_examples=150)
@given(st.data())
def test_no_lines_that_look_right_raise(data: st.DataObject) -> None:
    lines: list[Any] = copy.deepcopy([*GOOD, ENERGY])
    for _ in range(data.draw(st.integers(1, 4))):
        target = lines[data.draw(st.integers(0, len(lines) - 1))]
        while True:  # go down to some object in the line, then change a key of it
            inner = [v for v in target.values() if isinstance(v, dict)]
            if not inner or data.draw(st.booleans()):
                break
            target = data.draw(st.sampled_from(inner))
        keys = st.sampled_from(sorted(target)) if target else KEYS
        target[data.draw(keys | KEYS)] = data.draw(VALUES)
    holds(encode(lines))
