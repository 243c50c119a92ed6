"""Devices that are separate machines in all but their processor: facts, links, real slowness."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import hog, machine
from devices.machine import BOARD, Machine, machines
from left_over import nothing_left
from operating import QUICK, errors, hdap, listed, make_models
from sshd import fleet_toml

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.transfer import Payload, upload

pytestmark = pytest.mark.skipif(bool(machine.missing()), reason=machine.missing() or "-")
CPU = max(os.sched_getaffinity(0))
DRIFTING = """
[benchmark.canary]
runs = 20
blocks_min = 1
blocks_max = 1
[drift]
baseline = 4
jump_consecutive = 2
sigma_floor = 0.05
effect_percent = 20
"""


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    with machines(tmp_path_factory.mktemp("boards"), 3, cpus=[CPU]) as started:
        yield started


@pytest.fixture(scope="module")
def file(boards: list[Machine], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    make_models(folder)
    path = folder / "fleet.toml"
    path.write_text(fleet_toml(boards, folder / "state", sys.executable, QUICK + DRIFTING))
    return path


@pytest.fixture(autouse=True)
def straight(boards: list[Machine]) -> Iterator[None]:
    yield
    for board in boards:
        board.link.shape()


def test_a_device_tells_what_it_is_and_not_what_the_operators_machine_is(
    boards: list[Machine], file: Path
) -> None:
    ended = hdap(file, "devices", "check")
    assert ended.status == ExitCode.DONE, ended.said
    told = {one["name"]: one for one in ended.data["devices"]}
    for board in boards:
        assert told[board.name]["hostname"] == board.name
        assert BOARD in (told[board.name].get("board"), told[board.name].get("cpu_model"))
    assert os.uname().nodename not in {one["hostname"] for one in told.values()}


def test_a_device_tells_its_own_temperature(boards: list[Machine], file: Path) -> None:
    hot = boards[1]
    hot.write("/sys/class/thermal/thermal_zone0/temp", "81250")
    assert hdap(file, "bench", "tiny", "--select", f"{boards[0].name} {hot.name}").status == 0
    shown = [
        hdap(file, "devices", "show", board.name).data["conditions"]["temperature_c"]
        for board in boards[:2]
    ]
    assert [list(zones.values()) for zones in shown] == [[48.5], [81.2]]


def test_a_sweep_over_slow_and_lossy_links_completes(boards: list[Machine], file: Path) -> None:
    for board in boards:
        board.link.shape(delay_s=0.01, loss=0.01)
    with nothing_left([board.home for board in boards], state=load(file).state_dir):
        ended = hdap(file, "sweep")
    assert ended.status == ExitCode.DONE, ended.data
    assert set(errors(ended)) == {board.name for board in boards}


def test_a_link_cut_in_the_middle_of_a_command_or_an_upload_is_noticed(
    boards: list[Machine], tmp_path: Path
) -> None:
    big = tmp_path / "big.onnx"
    big.write_bytes(os.urandom(8 << 20))
    commanded, sent = boards[:2]
    sent.link.shape(rate_mbit=20)
    noticed: dict[str, float] = {}
    errors_: dict[str, DeviceError] = {}

    def lose(name: str, device: Machine) -> None:
        connection = connect(device.target())
        try:
            began.wait()
            if name == "command":
                connection.run("sleep 60", timeout=60)
            else:
                upload(connection, [Payload.of(big)])
        except DeviceError as error:
            noticed[name], errors_[name] = time.monotonic(), error
        finally:
            connection.close()

    began = threading.Barrier(3)
    threads = [
        threading.Thread(target=lose, args=given)
        for given in (("command", commanded), ("upload", sent))
    ]
    with nothing_left():
        for thread in threads:
            thread.start()
        began.wait()
        time.sleep(0.5)
        cut = time.monotonic()
        commanded.link.cut()
        sent.link.cut()
        for thread in threads:
            thread.join(30)
    assert set(noticed) == {"command", "upload"}
    assert all(seconds - cut < 20 for seconds in noticed.values())
    assert all(error.transient for error in errors_.values()), errors_


def test_a_device_that_vanishes_during_a_sweep_costs_only_itself(
    boards: list[Machine], file: Path
) -> None:
    lost = boards[2]
    timer = threading.Timer(0.4, lost.link.cut)
    timer.start()
    ended = hdap(file, "bench", "slow")
    timer.join()
    wrong = {name: error for name, error in errors(ended).items() if error}
    assert set(wrong) <= {lost.name}
    assert set(wrong.values()) <= {"timeout", "disconnected", "unreachable"}
    shown = listed(file)
    assert shown[lost.name]["state"] == ("off" if wrong else "ok")
    assert {shown[board.name]["state"] for board in boards[:2]} == {"ok"}


@pytest.mark.flaky(reruns=2)  # the boards are parts of a machine that does other things, too
@pytest.mark.skipif(bool(hog.missing()), reason=hog.missing() or "-")
def test_a_device_that_becomes_slower_for_real_is_seen_to_drift(
    boards: list[Machine], tmp_path: Path
) -> None:
    board = boards[0]
    make_models(tmp_path)
    file = tmp_path / "fleet.toml"
    file.write_text(fleet_toml([board], tmp_path / "state", sys.executable, QUICK + DRIFTING))
    ended = hdap(file, "watch", "--rounds", "5")
    assert ended.status == ExitCode.DONE
    assert ended.data["alerts"] == []
    before = listed(file)[board.name]["latency_ms"]
    thief = hog.Hog(tmp_path, CPU)
    try:
        thief.take(0.7)
        ended = hdap(file, "watch", "--rounds", "20", "--until-alert")
    finally:
        thief.close()
    assert [alert["subject"] for alert in ended.data["alerts"]] == [board.name]
    assert listed(file)[board.name]["latency_ms"] > 1.5 * before
