from __future__ import annotations

import random

import pytest

from engine import conditions


def block(**seen: object) -> dict[str, object]:
    return {"span_s": 1.0, "looks": 1, "look_ms": 0.2, **seen}


def test_the_blocks_of_a_run_are_summed_up() -> None:
    found = conditions.during(
        [
            block(clock_khz=[1e6, 1.5e6, 2e6], temperature_c=[50.0, 60.0], others_share=0.0),
            block(span_s=3.0, clock_khz=[0.5e6, 1.4e6, 2.1e6], temperature_c=[58.0, 71.0],
                  others_share=0.4, throttle_count=2, fetched=True),
        ]
    )  # fmt: skip
    assert found["clock_khz"] == [0.5e6, 1.45e6, 2.1e6]
    assert found["temperature_c"] == [50.0, 71.0]
    assert found["others_share"] == pytest.approx(0.3), "the longer block counts three times"
    assert (found["throttle_count"], found["fetched"], found["looks"]) == (2, 1, 2)
    assert conditions.during([]) == {}
    assert "clock_khz" not in conditions.during([block()])


@pytest.mark.parametrize(
    "nonsense",
    [{"span_s": -1.0}, {"span_s": "1"}, {"clock_khz": [1.0]}, {"clock_khz": ["a", 1.0, 2.0]},
     {"temperature_c": 3.0}, {"others_share": "much"}, {"looks": [1]}, {"cooling": None}],
)  # fmt: skip
def test_what_makes_no_sense_is_left_out(nonsense: dict[str, object]) -> None:
    found = conditions.during([block(others_share=0.1), block(**nonsense)])
    assert found["others_share"] == pytest.approx(0.1)
    assert "clock_khz" not in found


@pytest.mark.parametrize(
    ("before", "after", "meanwhile", "expected"),
    [
        ({}, {}, {}, None),
        ({"throttle_count": 5}, {"throttle_count": 5}, {}, False),
        ({"throttle_count": 5}, {"throttle_count": 6}, {}, True),
        ({"throttle_count": 5}, {"throttle_count": 5}, {"throttle_count": 1}, True),
        ({"cooling_states": {"cpufreq 0": 0}}, {"cooling_states": {"cpufreq 0": 0}}, {}, False),
        ({"cooling_states": {"cpufreq 0": 0}}, {"cooling_states": {"cpufreq 0": 0}},
         {"cooling": 2}, True),
        ({"cooling_states": {"cpufreq 0": 0}}, {"cooling_states": {"cpufreq 0": 1}}, {}, True),
        # Bits 16 to 19 have stood since the start: no evidence for this run.
        ({"vcgencmd_throttled": "0x50000"}, {"vcgencmd_throttled": "0x50000"}, {}, False),
        ({"vcgencmd_throttled": "0x0"}, {"vcgencmd_throttled": "0x40000"}, {}, True),
        ({"vcgencmd_throttled": "0x50000"}, {"vcgencmd_throttled": "0x50004"}, {}, True),
        ({}, {"vcgencmd_throttled": "0x50000"}, {}, False),
        ({}, {"vcgencmd_throttled": "\x1b[2J"}, {}, None),
    ],
)  # fmt: skip
def test_throttling_is_told_from_before_and_after(
    before: dict[str, object], after: dict[str, object], meanwhile: dict[str, object],
    expected: bool | None,
) -> None:  # fmt: skip
    assert conditions.throttled(before, after, meanwhile) is expected


def test_a_run_that_becomes_slower_has_a_first_and_a_last_value() -> None:
    found = conditions.trend([2.0 * 1.03**k for k in range(8)])
    assert found is not None
    cold, sustained, change = found
    assert cold == pytest.approx(2.03)
    assert sustained == pytest.approx(2.0 * 1.03**6.5, rel=1e-3)
    assert change == pytest.approx(0.21, abs=0.03)
    assert conditions.trend([2.0 * 1.03**k for k in range(4)]) is None, "too few to tell"
    assert conditions.trend([2.0 * 1.001**k for k in range(8)]) is None, "of no interest"


def test_noise_has_no_trend_19_times_of_20() -> None:
    draw = random.Random(3)
    found = [conditions.trend([1 + draw.gauss(0, 0.1) for _ in range(8)]) for _ in range(1000)]
    assert sum(one is not None for one in found) < 75


def test_what_was_off_is_said_in_words() -> None:
    said = conditions.dirty(
        {
            "throttled": True,
            "during": {"others_share": 0.3, "clock_khz": [1.2e6, 1.8e6, 1.8e6], "fetched": 2},
            "after": {"vcgencmd_throttled": "0x50001"},
            "waited": {"s": 60.0, "in_vain": "still 71 °C, not below 60 °C"},
            "cold_ms": 2.0,
            "sustained_ms": 2.4,
        },
        contended=0.25,
        emulated=False,
    )
    assert said == [
        "throttled during the run",
        "the supply's voltage was too low",
        "somebody else used 30 % of the CPU",
        "the clock varied from 1.20 to 1.80 GHz",
        "25 % of the runs were interrupted",
        "still 71 °C, not below 60 °C after 60 s of waiting",
        "it became slower meanwhile: 2.000 ms at first, 2.400 at last",
        "results were fetched during 2 of the blocks",
    ]
    assert conditions.dirty({}, 0.0, False) == []
    assert conditions.dirty({"waited": {"s": 0.0, "no_sensor": "temperature"}}, 0.0, False) == [
        "it has no temperature sensor to wait for"
    ]
    assert conditions.dirty({"during": {"others_share": 0.3}}, 0.3, True) == []
