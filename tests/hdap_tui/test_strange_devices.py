"""Real devices that lack what others have, or that go down in the middle of a measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from left_over import nothing_left, watch
from operating import QUICK, errors, hdap, listed, make_models
from sshd import Sshd, fleet_toml, wait_for

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.ssh import pool
from hdap_tui.ssh.target import Target
from hdap_tui.stages import Stages

PLACE = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
READ_ONLY = 'home=${5%/*}/home; mount --bind "$home" "$home"; mount -o remount,bind,ro "$home"; '
NO_PROC = "mount -t tmpfs none /proc; "
GO_ON = 'exec "$@"'


def has_mounts() -> bool:
    """Whether this user may give a process mounts of its own."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    tried = subprocess.run([*PLACE, "mount -t tmpfs none /mnt"], capture_output=True)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(not has_mounts(), reason="needs root and mounts of its own")
needs_busybox = pytest.mark.skipif(not shutil.which("busybox"), reason="busybox is not installed")


def fleet_file(servers: list[Sshd], folder: Path) -> Path:
    make_models(folder)
    file = folder / "fleet.toml"
    file.write_text(fleet_toml(servers, folder / "state", sys.executable, QUICK))
    return file


def busybox_folder(folder: Path, *without: str) -> str:
    """Return a value of PATH that has busybox's commands but for some, and nothing else."""
    names = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    folder.mkdir()
    for name in set(names.stdout.split()) - set(without):
        (folder / name).symlink_to(str(shutil.which("busybox")))
    return str(folder)


@needs_busybox
@pytest.mark.parametrize("lacking", ["nothing", "setsid"])
def test_a_device_that_has_only_busybox_is_measured(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path, lacking: str
) -> None:
    path = busybox_folder(tmp_path / "bin", lacking)
    servers = make_sshds(1, options={0: {"SetEnv": f"PATH={path}"}})
    file = fleet_file(servers, tmp_path)
    with nothing_left(servers=servers, state=load(file).state_dir):
        ended = hdap(file, "bench", "tiny")
    assert ended.status == ExitCode.DONE, ended.data


@needs_busybox
def test_a_device_without_a_way_to_hash_says_so(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path
) -> None:
    path = busybox_folder(tmp_path / "bin", "sha256sum")
    servers = make_sshds(1, options={0: {"SetEnv": f"PATH={path}"}})
    file = fleet_file(servers, tmp_path)
    with nothing_left(servers=servers, state=load(file).state_dir):
        ended = hdap(file, "bench", "tiny")
    (shown,) = listed(file).values()
    assert ended.status == ExitCode.FAILED
    assert shown["state"] == "failed"
    assert "SHA-256" in shown["detail"]


def test_what_a_login_shell_prints_does_no_harm(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path
) -> None:
    servers = make_sshds(1)
    noise = "printf 'Welcome!\\033[2J\\n{\"event\": \"hello\"}\\n'; echo 'low disk' >&2\n"
    for name in (".bashrc", ".profile", ".zshenv"):
        (servers[0].home / name).write_text(noise)
    file = fleet_file(servers, tmp_path)
    with nothing_left(servers=servers, state=load(file).state_dir):
        assert hdap(file, "devices", "check").status == ExitCode.DONE
        assert hdap(file, "bench", "tiny").status == ExitCode.DONE


@needs_mounts
@pytest.mark.parametrize("place", [READ_ONLY, NO_PROC], ids=["home read-only", "no /proc"])
def test_a_device_of_a_strange_make_is_measured_or_told_apart_and_costs_only_itself(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path, place: str
) -> None:
    (strange,) = make_sshds(1, wrap=[*PLACE, place + GO_ON, "sh"], name="strange")
    (usual,) = make_sshds(1, name="usual")
    for server in (usual,):
        strange.identity.write_bytes(server.identity.read_bytes())
        strange.identity.with_suffix(".pub").write_bytes(
            server.identity.with_suffix(".pub").read_bytes()
        )
    with strange.known_hosts.open("a") as lines:
        lines.write(f"{usual.known_line()}\n")
    file = fleet_file([strange, usual], tmp_path)
    with nothing_left(servers=[strange, usual], state=load(file).state_dir):
        ended = hdap(file, "bench", "tiny")
    shown = listed(file)
    assert shown["usual-1"]["state"] == "ok"
    if place == READ_ONLY:
        assert errors(ended) == {"strange-1": "failed", "usual-1": ""}
        assert "ead-only" in shown["strange-1"]["detail"]
        assert shown["strange-1"]["state"] == "failed"
    else:
        assert errors(ended) == {"strange-1": "", "usual-1": ""}, shown


# Going down in the middle


@pytest.fixture
def in_vain(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that were connected to once more after they had been said to have failed."""
    failed: set[str] = set()
    found: list[str] = []
    said, connect = Stages.say, pool.connect

    def say(stages: Stages, device: str, stage: str) -> None:
        if stage.startswith("failed"):
            failed.add(device)
        said(stages, device, stage)

    def spy(target: Target, *given: Any, **options: Any) -> Any:
        if target.name in failed:
            found.append(target.name)
        return connect(target, *given, **options)

    monkeypatch.setattr(Stages, "say", say)
    monkeypatch.setattr(pool, "connect", spy)
    return found


@pytest.fixture
def at_timing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], None]]]:
    """What happens, by device, as soon as something is being timed on it."""
    planned: dict[str, Callable[[], None]] = {}
    said = Stages.say

    def say(stages: Stages, device: str, stage: str) -> None:
        if stage == "timing" and device in planned:
            planned.pop(device)()

        said(stages, device, stage)

    monkeypatch.setattr(Stages, "say", say)
    yield planned
    assert not planned, "nothing was timed"


def test_devices_that_go_down_in_the_middle_cost_only_themselves(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path,
    at_timing: dict[str, Callable[[], None]], in_vain: list[str],
) -> None:  # fmt: skip
    servers = make_sshds(5, name="weak")
    rebooted, crashed, cut, dead, well = servers
    file = fleet_file(servers, tmp_path)
    afterwards: list[threading.Timer] = []

    def later(action: Callable[[], None]) -> None:
        afterwards.append(threading.Timer(0.5, action))
        afterwards[-1].start()

    def crash() -> None:
        crashed.cut()
        crashed.close()
        later(crashed.restart)

    def reboot() -> None:
        rebooted.stop()
        later(rebooted.restart)

    at_timing.update(
        {rebooted.name: reboot, crashed.name: crash, cut.name: cut.cut, dead.name: dead.freeze}
    )
    with nothing_left(servers=[rebooted, crashed, cut, well], state=load(file).state_dir):
        ended = hdap(file, "bench", "tiny")
        for timer in afterwards:
            timer.join()

    assert dead.name not in in_vain  # gone is gone
    dead.thaw()
    shown = listed(file)
    assert errors(ended) == {
        rebooted.name: "failed",
        crashed.name: "",
        cut.name: "",
        dead.name: "timeout",
        well.name: "",
    }, {name: one["detail"] for name, one in shown.items()}
    assert {name: one["state"] for name, one in shown.items()} == {
        rebooted.name: "failed",
        crashed.name: "ok",
        cut.name: "ok",
        dead.name: "off",
        well.name: "ok",
    }
    wait_for(lambda: not watch([dead.home]).running())
    assert hdap(file, "bench", "tiny").status == ExitCode.DONE
