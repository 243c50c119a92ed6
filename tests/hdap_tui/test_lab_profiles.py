"""The emulated fleet's make-up."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from hdap_tui.errors import SettingsError
from hdap_tui.lab.profiles import (
    GROUPS,
    Plan,
    Profile,
    Sawtooth,
    Step,
    profiles,
    read_plan,
    write_profile,
)


def factors(profile: Profile) -> np.ndarray:
    return np.array([profile.compute, profile.memory, profile.overhead])


def test_groups_lie_apart_and_their_devices_close_together() -> None:
    fleet = profiles(Plan(), 12)
    assert [sum(one.group == group.name for one in fleet) for group in GROUPS] == [5, 4, 3]
    for one, other in combinations(fleet, 2):
        gap = np.abs(np.log(factors(one) / factors(other)))
        if one.group == other.group:
            assert gap.max() < 0.03
        else:
            assert gap.max() > 0.08


def test_the_groups_differ_by_what_a_network_does() -> None:
    of = {one.group: factors(one) for one in profiles(Plan(), 3)}
    throttled, slow = of["memory throttled"] / of["nominal"], of["slow clock"] / of["nominal"]
    assert throttled[1] > 1.5 > 1.05 > throttled[0]
    assert slow[0] > 1.25
    assert slow[2] > 1.25
    assert slow[1] < 1.2


def test_the_same_seed_makes_the_same_fleet_and_another_seed_another() -> None:
    assert profiles(Plan(seed=3), 12) == profiles(Plan(seed=3), 12)
    assert profiles(Plan(seed=3), 12) != profiles(Plan(seed=4), 12)
    assert profiles(Plan(), 5)[0].compute == profiles(Plan(), 12)[0].compute


def test_one_device_steps_one_ages_one_saws_and_the_rest_are_steady() -> None:
    kinds = sorted(type(one.schedule[0]).__name__ for one in profiles(Plan(), 12))
    assert kinds == ["Ageing", "Sawtooth", *["Steady"] * 9, "Step"]
    step = next(one for one in profiles(Plan(step_at_s=30, step_percent=40), 12)
                if isinstance(one.schedule[0], Step))  # fmt: skip
    assert step.schedule == (Step(at_s=30, percent=40),)
    assert step.group == "nominal"
    assert not any(isinstance(one.schedule[0], Step) for one in profiles(Plan(step_at_s=None), 12))


def test_the_devices_that_drift_can_be_named() -> None:
    fleet = profiles(Plan(drifting=("edge-02", "edge-07")), 12)
    assert [one.name for one in fleet if isinstance(one.schedule[0], Step)] == [
        "edge-02",
        "edge-07",
    ]


def test_a_single_device_is_a_lab_and_a_thousand_too() -> None:
    assert [one.name for one in profiles(Plan(), 1)] == ["edge-01"]
    assert profiles(Plan(), 1000)[0].name == "edge-0001"
    with pytest.raises(SettingsError, match="1 to 9999 devices, not 0"):
        profiles(Plan(), 0)


def test_a_profile_on_disk_has_what_the_device_reads(tmp_path: Path) -> None:
    profile = profiles(Plan(drifting=("edge-01",)), 3)[0]
    write_profile(profile, tmp_path / "profile.json")
    read = json.loads((tmp_path / "profile.json").read_text())
    assert set(read) >= {"name", "compute", "memory", "overhead", "noise", "seed", "started_at"}
    assert read["schedule"] == [{"kind": "step", "at_s": 120.0, "percent": 25.0, "until_s": None}]
    assert list(tmp_path.iterdir()) == [tmp_path / "profile.json"]


def test_a_plan_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        """
        seed = 11
        step_at_s = 45
        drifting = ["edge-03"]
        [[group]]
        name = "fast"
        share = 2
        [[group]]
        name = "hot"
        compute = 2.0
        noise = 0.02
        [[device]]
        name = "edge-01"
        schedule = [{kind = "sawtooth", period_s = 20, percent = 4}]
        """
    )
    fleet = profiles(read_plan(path), 3)
    assert [one.group for one in fleet] == ["fast", "hot", "fast"]
    assert fleet[0].schedule == (Sawtooth(period_s=20, percent=4),)
    assert fleet[2].schedule == (Step(at_s=45, percent=25),)
    assert fleet[1].compute == pytest.approx(2.0, rel=0.012)
    assert fleet[1].noise == 0.02


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = ", "is not TOML"),
        ("sede = 1", "unknown field `sede`"),
        ('[[group]]\nname = "a"\ncompute = 0.5', r"compute"),
        ('[[group]]\nname = "a"\ncompute = "fast"', r"expected `float`, got `str`"),
        ("group = []", "group"),
        ('[[group]]\nname = "a"\n[[group]]\nname = "a"', "same name"),
        ('[[device]]\nname = "edge-01"\nschedule = [{kind = "jump"}]', "jump"),
        ('drifting = ["edge-44"]', "edge-01 to edge-03, did you mean"),
    ],
)
def test_a_wrong_plan_is_told_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=sentence) as told:
        profiles(read_plan(path), 3)
    assert "\n" not in str(told.value)


def test_a_plan_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_plan(tmp_path / "none.toml")
