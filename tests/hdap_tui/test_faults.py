"""Every way in which a device can fail, all in one fleet at once: each costs only itself."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from left_over import nothing_left, watch
from operating import QUICK, Ended, errors, hdap, listed, make_models

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan
from hdap_tui.stages import Stages

FAULTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # what it is: kind and options, then the state and the class of error that are to be shown
    "port closed": ("refuse", {}, "off", "refused"),
    "silent": ("hang", {}, "off", "timeout"),
    "silent after the login": ("hang-after-auth", {}, "off", "timeout"),
    "cut at every beginning": ("drop", {"after_s": 0.0}, "off", "disconnected"),
    "cut once": ("drop", {"after_s": 0.15, "times": 1}, "ok", ""),
    "disk full": ("full-disk", {}, "failed", "disk full"),
    "random bytes": ("garbage", {"style": "bytes"}, "failed", "garbage"),
    "terminal escapes": ("garbage", {"style": "escapes"}, "failed", "garbage"),
    "a line of 10 MB": ("garbage", {"style": "line"}, "failed", "garbage"),
    "another host key": ("host-key-changed", {}, "off", "host key changed"),
    "slow answers": ("slow", {"delay_s": 0.1}, "ok", ""),
    "nothing": ("none", {}, "ok", ""),
}


def fleet_file(lab: LabInfo, folder: Path) -> Path:
    make_models(folder)
    file = folder / "fleet.toml"
    limits = "[ssh]\nconnect_timeout_s = 2\ncommand_timeout_s = 4\n"
    text = re.sub(r"cores = \d+", "cores = 8", fleet_toml(lab, QUICK))
    file.write_text(text.replace("[ssh]\n", limits))
    return file


@pytest.fixture(scope="module")
def sick(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> LabInfo:
    return make_lab(len(FAULTS), plan=Plan(step_at_s=None))


@pytest.fixture(scope="module")
def sick_file(sick: LabInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet_file(sick, tmp_path_factory.mktemp("sick"))


def number(fault: str) -> int:
    return list(FAULTS).index(fault)


@pytest.fixture(scope="module")
def ill(sick: LabInfo, sick_file: Path) -> tuple[Ended, dict[str, Any], float]:
    """One benchmark of the whole fleet with every fault in force, and what is shown after it."""
    began = time.monotonic()
    healthy = [d.home for d, f in zip(sick.devices, FAULTS.values(), strict=True) if f[2] == "ok"]
    with nothing_left(healthy, state=sick.state):
        for device, (kind, options, _, _) in zip(sick.devices, FAULTS.values(), strict=True):
            control.fault(sick.state, device.name, kind, **options)
        ended = hdap(sick_file, "bench", "tiny")
        shown = listed(sick_file)
    seconds = time.monotonic() - began
    for device in sick.devices:
        control.fault(sick.state, device.name, "none")
    return ended, shown, seconds


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_shown_as_what_it_is_and_costs_only_its_device(
    sick: LabInfo, ill: tuple[Ended, dict[str, Any], float], fault: str
) -> None:
    ended, shown, _ = ill
    device = sick.devices[number(fault)].name
    _, _, state, error = FAULTS[fault]
    assert errors(ended)[device] == error, shown[device]["detail"]
    assert (shown[device]["state"], shown[device]["error"]) == (state, error)
    assert bool(shown[device]["detail"]) == bool(error)
    assert device in shown[device]["detail"] or not error
    assert all(character.isprintable() for character in shown[device]["detail"])


def test_the_whole_takes_no_longer_than_one_devices_own_limits(
    ill: tuple[Ended, dict[str, Any], float], sick_file: Path
) -> None:
    ended, _, seconds = ill
    assert ended.status == ExitCode.PARTLY
    assert seconds < 40
    with contextlib.closing(sqlite3.connect(load(sick_file).database)) as store:
        assert store.execute("SELECT count(*) FROM devices WHERE stage <> ''").fetchone() == (0,)


def test_once_mended_every_device_is_measured_again(
    sick: LabInfo, sick_file: Path, ill: tuple[Ended, dict[str, Any], float]
) -> None:
    with nothing_left([device.home for device in sick.devices], state=sick.state):
        ended = hdap(sick_file, "bench", "tiny")
    assert ended.status == ExitCode.DONE, errors(ended)
    assert {one["state"] for one in listed(sick_file).values()} == {"ok"}


# A disk that fills up while something is being done


@pytest.fixture(scope="module")
def filling(make_lab: Callable[..., LabInfo]) -> LabInfo:
    return make_lab(4, plan=Plan(step_at_s=None))


@pytest.fixture
def at_stage(
    filling: LabInfo, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[tuple[str, str], tuple[str, dict[str, Any]]]]:
    """Faults that begin when a stage of a device does, by device and stage."""
    planned: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    said = Stages.say

    def say(stages: Stages, device: str, stage: str) -> None:
        kind, options = planned.pop((device, stage.split()[0]), ("", {}))
        if kind:
            control.fault(filling.state, device, kind, **options)
        said(stages, device, stage)

    monkeypatch.setattr(Stages, "say", say)
    yield planned
    for device in filling.devices:
        control.fault(filling.state, device.name, "none")


@pytest.mark.parametrize("model", ["tiny", "slow"], ids=["runner and model", "model alone"])
def test_a_disk_that_fills_up_at_any_write_is_named_and_costs_only_its_device(
    filling: LabInfo,
    tmp_path_factory: pytest.TempPathFactory,
    at_stage: dict[tuple[str, str], tuple[str, dict[str, Any]]],
    model: str,
) -> None:
    file = fleet_file(filling, tmp_path_factory.getbasetemp() / "filling")
    names = [device.name for device in filling.devices]
    stages = ("upload", "starting", "timing")
    for device, stage in zip(names, stages, strict=False):
        at_stage[device, stage] = ("full-disk", {})
    with nothing_left([filling.devices[3].home], state=filling.state):
        ended = hdap(file, "bench", model)
    assert not at_stage, "a stage never came"
    found = errors(ended)
    shown = listed(file)
    assert found.pop(names[3]) == ""
    assert shown[names[3]]["state"] == "ok"
    for device, stage in zip(names, stages, strict=False):
        assert shown[device]["error"] == found[device]
        # A run whose results can be written no more is cut short; what came before may be whole.
        allowed = {"disk full"} if stage != "timing" else {"disk full", "failed", "runtime", ""}
        assert found[device] in allowed, (stage, found[device], shown[device]["detail"])
        assert shown[device]["state"] == ("failed" if found[device] else "ok")
    watched = watch([device.home for device in filling.devices])
    assert not [line for line in watched.left_over() if "process" in line]


def test_a_connection_that_is_cut_while_something_is_timed_loses_nothing(
    filling: LabInfo, tmp_path_factory: pytest.TempPathFactory,
    at_stage: dict[tuple[str, str], tuple[str, dict[str, Any]]],
) -> None:  # fmt: skip
    file = fleet_file(filling, tmp_path_factory.getbasetemp() / "filling")
    at_stage[filling.devices[0].name, "timing"] = ("drop", {"after_s": 0.0, "times": 1})
    with nothing_left([device.home for device in filling.devices], state=filling.state):
        ended = hdap(file, "bench", "tiny")
    assert set(errors(ended).values()) == {""}
