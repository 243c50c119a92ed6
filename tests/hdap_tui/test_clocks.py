"""Devices whose clock is more than a year off, or is set right in the middle of something."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from left_over import nothing_left
from operating import QUICK, errors, hdap, make_models, network
from sshd import Sshd, fleet_toml, wait_for
from wheels import WORKS, interpreter, make_wheel

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.stages import Stages
from hdap_tui.store import deployments
from hdap_tui.store.database import open_store

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
SOURCE = Path(__file__).parents[1] / "devices" / "clock.c"
DAYS = {"clock-1": -400, "clock-2": 400}
DEPLOY = """
[deploy]
stages = ["1", "100 %"]
blocks = 4
margin_percent = 5
"""


def set_clock(server: Sshd, days: int) -> None:
    part = server.folder / "clock.part"
    part.write_text(str(86400 * days))
    part.rename(server.folder / "clock")


@pytest.fixture(scope="module")
def servers(
    make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory
) -> list[Sshd]:
    """Two devices whose commands see the clock that a file of each names."""
    folder = tmp_path_factory.mktemp("clocks")
    shim = folder / "clock.so"
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", "-o", shim, SOURCE, "-ldl"], check=True)
    options = {
        n: {"SetEnv": f"LD_PRELOAD={shim} HDAP_CLOCK={folder}/clock-{n + 1}"} for n in range(2)
    }
    started: list[Sshd] = make_sshds(2, options=options, name="clock")
    for server in started:
        (folder / server.name).symlink_to(server.folder / "clock")
    return started


@pytest.fixture(autouse=True)
def wrong(servers: list[Sshd]) -> None:
    for server in servers:
        set_clock(server, DAYS[server.name])


@pytest.fixture
def file(servers: list[Sshd], tmp_path: Path) -> Path:
    make_models(tmp_path)
    network(tmp_path / "slow.onnx", layers=12)  # so much that a busy machine sees it, too
    path = tmp_path / "fleet.toml"
    path.write_text(fleet_toml(servers, tmp_path / "state", sys.executable, QUICK + DEPLOY))
    return path


@pytest.fixture(autouse=True)
def tidy(servers: list[Sshd], file: Path) -> Iterator[None]:
    with nothing_left(servers=servers, state=load(file).state_dir):
        yield


def current(server: Sshd) -> str:
    link = server.home / ".hdap" / "current"
    return str(link.readlink().stem)


def test_a_wrong_clock_is_told_and_measurements_are_those_of_today(file: Path) -> None:
    ended = hdap(file, "bench", "tiny")
    assert (ended.status, set(errors(ended).values())) == (ExitCode.DONE, {""}), "\n".join(
        map(str, ended.data["measurements"])
    )
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert {one["at"][:10] for one in ended.data["measurements"]} == {today}
    facts = hdap(file, "devices", "facts", "--columns", "clock_offset_s").data["devices"]
    off = {one["name"]: round(one["facts"]["clock_offset_s"] / 86400) for one in facts}
    assert off == DAYS


def test_a_clock_that_is_set_in_the_middle_of_a_measurement_does_no_harm(
    servers: list[Sshd], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NTP does a while after the start: one jumps forwards, the other back."""
    blocks = re.sub(r"blocks_m(in|ax) = 1\b", r"blocks_m\1 = 4", file.read_text())
    file.write_text(blocks)
    say, touched = Stages.say, set()

    def set_then_say(stages: Stages, device: str, stage: str) -> None:
        if stage == "timing":
            touched.add(device)
            server = next(one for one in servers if one.name == device)
            set_clock(server, 0)
        say(stages, device, stage)

    monkeypatch.setattr(Stages, "say", set_then_say)
    ended = hdap(file, "bench", "slow")
    assert (ended.status, set(errors(ended).values())) == (ExitCode.DONE, {""}), "\n".join(
        map(str, ended.data["measurements"])
    )
    assert touched == set(DAYS)
    assert all(0 < one["median_ms"] < 5000 for one in ended.data["measurements"])


def test_a_deployment_is_killed_resumed_and_rolled_back(servers: list[Sshd], file: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hdap_tui", "--config", str(file), "deploy",
         str(file.parent / "fast.onnx"), "--yes"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for((servers[0].home / ".hdap" / "previous").is_symlink)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for server in servers:  # and is set right before anybody comes again
        set_clock(server, 0)
    ended = hdap(file, "deploy", "--resume", "--yes")
    assert ended.status == ExitCode.DONE, ended.data
    store = open_store(load(file).database)
    new, _, _ = deployments.kept_plan(store, 1)
    store.close()
    assert {current(server) for server in servers} == {new}
    assert hdap(file, "rollback", "--yes").status == ExitCode.DONE
    assert new not in {current(server) for server in servers}


def test_an_environment_is_built_and_removed(
    servers: list[Sshd], file: Path, tmp_path: Path
) -> None:
    file.write_text(fleet_toml(servers, tmp_path / "state", ""))
    make_wheel(tmp_path / "wheels", "onnxruntime", "1.22", requires=["numpy"],
               files={"onnxruntime/__init__.py": WORKS})  # fmt: skip
    make_wheel(tmp_path / "wheels", "numpy", "2.4")
    words = ("devices", "provision", "--yes")
    build = (*words, "--wheels", str(tmp_path / "wheels"), "--python", interpreter())
    for state in ("provisioned", "ready"):
        ended = hdap(file, *build)
        assert ended.status == ExitCode.DONE, ended.data
        assert {one["state"] for one in ended.data["devices"]} == {state}
    ended = hdap(file, *words, "--undo")
    assert {one["state"] for one in ended.data["devices"]} == {"removed"}
