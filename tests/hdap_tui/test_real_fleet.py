"""A fleet of real OpenSSH servers, from the command line: everything that a fleet is for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from left_over import nothing_left
from operating import QUICK, Hdap, caller, make_models
from sshd import Sshd, fleet_toml

from hdap_tui.errors import ExitCode

MORE = (
    QUICK
    + """
[deploy]
stages = ["1", "100 %"]
blocks = 4
margin_percent = 5
"""
)
TIGHT = {
    0: {"MaxSessions": "1"},
    1: {"MaxStartups": "1:100:1"},
    2: {"MaxSessions": "1", "MaxStartups": "2:100:2"},
    6: {"MaxSessions": "1", "MaxStartups": "2:100:2"},
}


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    """Seven, with two more behind the last of them."""
    direct = make_sshds(7, options=TIGHT)
    return [*direct, *make_sshds(2, jump=direct[6], name="far")]


@pytest.fixture(scope="module")
def file(servers: list[Sshd], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    make_models(folder)
    path = folder / "fleet.toml"
    path.write_text(fleet_toml(servers, folder / "state", sys.executable, MORE))
    return path


@pytest.fixture
def hdap(file: Path, capsys: pytest.CaptureFixture[str]) -> Hdap:
    return caller(file, capsys)


@pytest.fixture(autouse=True)
def tidy(servers: list[Sshd], file: Path) -> Iterator[None]:
    with nothing_left(servers=servers, state=file.parent / "state"):
        yield


def states(hdap: Hdap) -> dict[str, str]:
    return {d["name"]: d["state"] for d in hdap("devices", "list")[1]["devices"]}


def names(servers: list[Sshd]) -> set[str]:
    return {server.name for server in servers}


def measured(document: Any, model: str) -> set[str]:
    return {
        one["device"]
        for one in document["measurements"]
        if one["model"] == model and not one["error"] and one["median_ms"] > 0
    }


def errors_of(document: Any) -> dict[str, str]:
    """Return what went wrong with which device."""
    return {m["device"]: m["detail"] for m in document["measurements"] if m["error"]}


def test_every_device_answers_whatever_its_limits_are(hdap: Hdap, servers: list[Sshd]) -> None:
    status, document, _ = hdap("devices", "check")
    assert status == ExitCode.DONE, document
    assert {one["name"] for one in document["devices"] if one["ok"]} == names(servers)
    assert set(states(hdap).values()) == {"ok"}


def test_a_sweep_measures_every_device_whatever_its_limits_are(
    hdap: Hdap, servers: list[Sshd]
) -> None:
    status, document, _ = hdap("sweep")
    assert status == ExitCode.DONE, errors_of(document)
    assert measured(document, "tiny") == measured(document, "slow") == names(servers)
    assert not any(one["emulated"] for one in document["measurements"])
    assert set(states(hdap).values()) == {"ok"}


def test_two_devices_off_and_one_with_another_key_cost_only_themselves(
    hdap: Hdap, servers: list[Sshd]
) -> None:
    off, silent, changed = servers[3:6]
    off.stop()
    silent.freeze()
    changed.restart(new_host_key=True)
    try:
        status, document, _ = hdap("bench", "tiny")
    finally:
        off.restart()
        silent.thaw()
    assert status == ExitCode.PARTLY
    wrong = {one["device"]: one["error"] for one in document["measurements"] if one["error"]}
    assert wrong == {
        off.name: "refused",
        silent.name: "timeout",
        changed.name: "host key changed",
    }, errors_of(document)
    assert measured(document, "tiny") == names(servers) - set(wrong)
    shown = states(hdap)
    assert {name for name, state in shown.items() if state == "off"} == set(wrong)

    status, accepted, _ = hdap("devices", "trust", "--yes")
    assert status == ExitCode.DONE
    assert accepted["accepted"] == {changed.name: changed.host_key().fingerprint}
    assert hdap("devices", "check")[0] == ExitCode.DONE
    assert set(states(hdap).values()) == {"ok"}


def test_without_its_jump_host_only_what_lies_behind_it_is_off(
    hdap: Hdap, servers: list[Sshd]
) -> None:
    jump, *behind = servers[6:]
    jump.stop()
    try:
        status, document, _ = hdap("devices", "check")
    finally:
        jump.restart()
    assert status == ExitCode.PARTLY
    off = {one["name"]: one for one in document["devices"] if not one["ok"]}
    assert set(off) == {jump.name, *(server.name for server in behind)}
    assert all(str(jump.port) in off[server.name]["detail"] for server in behind)
    assert hdap("devices", "check")[0] == ExitCode.DONE


def test_a_deployment_reaches_devices_whatever_their_limits_are_and_behind_others(
    hdap: Hdap, servers: list[Sshd], file: Path
) -> None:
    chosen = [servers[0], servers[2], servers[8]]
    words = " or ".join(server.name for server in chosen)
    hdap("bench", str(file.parent / "fast.onnx"), "--select", chosen[2].name)
    status, document, said = hdap("deploy", "fast", "--yes", "--select", words)
    assert status == ExitCode.DONE, (document, said)
    shown = {one["name"]: one["model"] for one in hdap("devices", "list")[1]["devices"]}
    assert {name for name, model in shown.items() if model == "fast"} == names(chosen)
    for server in chosen:
        current = server.home / ".hdap" / "current"
        assert current.resolve().read_bytes() == (file.parent / "fast.onnx").read_bytes()


def test_nothing_on_a_device_lies_outside_of_its_folder(servers: list[Sshd]) -> None:
    for server in servers:
        assert {path.name for path in server.home.iterdir()} == {".hdap"}
