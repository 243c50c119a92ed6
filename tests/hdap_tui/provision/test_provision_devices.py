"""Provisioning of real SSH servers with an empty home: from the command to a benchmark."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sshd import Sshd, fleet_toml, wait_for
from wheels import interpreter, make_wheel, repack

from hdap_tui.cli.app import run
from hdap_tui.errors import ExitCode
from hdap_tui.provision import building, planning

FAKE = """
import os, time
while os.path.exists(os.path.expanduser("~/hold")):
    time.sleep(0.01)
print('{"ok": true}', flush=True)
os._exit(0)
"""
"""An ONNX Runtime that only says that it works, once nothing holds it."""

Provision = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    return make_sshds(2, options={1: {"MaxSessions": "1"}})


@pytest.fixture
def file(servers: list[Sshd], tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(fleet_toml(servers, tmp_path / "state", ""))
    return path


@pytest.fixture(autouse=True)
def empty_homes(servers: list[Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test begins with bare devices, and an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for server in servers:
        subprocess.run(["rm", "-rf", "--", str(server.home)], check=True)
        server.home.mkdir()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of an ONNX Runtime that only says that it works."""
    folder = tmp_path_factory.mktemp("fake")
    files = {f"onnxruntime/m{n}.py": b"" for n in range(300)}
    files |= {"onnxruntime/__init__.py": FAKE.encode(), "onnxruntime/big": os.urandom(8 << 20)}
    make_wheel(folder, "onnxruntime", "1.22", requires=["numpy"], files=files)
    make_wheel(folder, "numpy", "2.4")
    return folder


@pytest.fixture
def hdap(file: Path, capsys: pytest.CaptureFixture[str]) -> Provision:
    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        status = run(["--config", str(file), *words, "--json"], lambda _context: 0)
        captured = capsys.readouterr()
        document = json.loads(captured.out) if captured.out else {}
        devices = {one["name"]: one for one in document.get("devices", []) if isinstance(one, dict)}
        return status, devices or document, captured.err

    return call


def command(file: Path, wheels: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "hdap_tui", "--config", str(file), "devices", "provision", "--wheels",
        str(wheels), "--python", interpreter(), "--yes", "--json", *more,
    ]  # fmt: skip


def words(wheels: Path, *more: str) -> tuple[str, ...]:
    return ("devices", "provision", "--wheels", str(wheels), "--python", interpreter(), *more)


def root(server: Sshd) -> Path:
    return server.home / ".hdap"


def at_work(server: Sshd, word: str) -> bool:
    return any(word in process.command for process in server.running())


def environments(server: Sshd) -> list[str]:
    return sorted(path.name for path in root(server).glob("environment.[!l]*"))


def test_a_bare_device_is_provisioned_measured_and_made_bare_again(
    hdap: Provision, servers: list[Sshd], tmp_path: Path
) -> None:
    wheels, name = repack(tmp_path / "wheels"), servers[0].name
    status, devices, _ = hdap(*words(wheels, "--select", name, "--yes"))
    assert (status, devices[name]["state"]) == (ExitCode.DONE, "provisioned"), devices
    assert devices[name]["push_bytes"] > 10**7
    assert not (root(servers[0]) / "wheels").exists()
    before = os.readlink(root(servers[0]) / "environment")

    status, devices, _ = hdap(*words(wheels, "--select", name, "--yes"))
    assert (status, devices[name]["state"]) == (ExitCode.DONE, "ready")
    assert os.readlink(root(servers[0]) / "environment") == before
    status, devices, _ = hdap("devices", "check", "--select", name)
    assert (status, devices[name]["ok"]) == (ExitCode.DONE, True), devices

    status, devices, _ = hdap("devices", "provision", "--undo", "--yes", "--select", name)
    assert (status, devices[name]["state"]) == (ExitCode.DONE, "removed")
    assert devices[name]["freed_bytes"] > 10**7
    assert environments(servers[0]) == []
    _, devices, _ = hdap("devices", "check", "--select", name)
    assert not devices[name]["ok"]
    _, devices, _ = hdap("devices", "provision", "--undo", "--yes", "--select", name)
    assert devices[name]["detail"] == "there was nothing to remove"


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    hdap: Provision, servers: list[Sshd], fake: Path
) -> None:
    status, devices, _ = hdap(*words(fake, "--dry-run"))
    assert status == ExitCode.DONE
    for server in servers:
        found = devices[server.name]
        assert (found["state"], found["onnxruntime"]) == ("to do", "1.22")
        assert found["interpreter"] == interpreter()
        assert 8 << 20 < found["push_bytes"] < found["needed_bytes"] < found["free_bytes"]
        assert list(server.home.iterdir()) == []


def test_without_a_word_of_consent_nothing_is_changed(
    hdap: Provision, servers: list[Sshd], fake: Path
) -> None:
    status, _, said = hdap(*words(fake))
    assert status == ExitCode.REFUSED
    assert "Nothing was changed" in said
    assert list(servers[0].home.iterdir()) == []


def test_a_device_that_cannot_be_reached_costs_only_itself(
    hdap: Provision, servers: list[Sshd], file: Path, fake: Path
) -> None:
    # Under that name its host key is not known.
    more = f'[[devices]]\nname = "unknown"\nhost = "localhost"\nport = {servers[0].port}\n'
    file.write_text(file.read_text() + more)
    status, devices, _ = hdap(*words(fake, "--yes"))
    assert status == ExitCode.PARTLY
    assert devices.pop("unknown")["error"] == "host key unknown"
    assert {one["state"] for one in devices.values()} == {"provisioned"}


def test_wheels_that_somebody_took_away_are_sent_again(
    hdap: Provision, servers: list[Sshd], fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, taken = building._push, []

    def taking_away(*arguments: Any) -> None:
        push(*arguments)
        if not taken:
            taken.append(True)
            shutil.rmtree(root(servers[0]) / "wheels")

    monkeypatch.setattr(building, "_push", taking_away)
    status, _, _ = hdap(*words(fake, "--yes", "--select", servers[0].name))
    assert (status, len(environments(servers[0]))) == (ExitCode.DONE, 1)


def test_a_wheel_for_another_architecture_is_named(
    hdap: Provision, servers: list[Sshd], tmp_path: Path
) -> None:
    path = make_wheel(tmp_path / "odd", "onnxruntime", "1.22", "cp311-cp311-manylinux_2_28_s390x")
    status, devices, _ = hdap(*words(tmp_path / "odd", "--yes"))
    assert status == ExitCode.FAILED
    for server in servers:
        assert devices[server.name]["state"] == "lacking"
        assert path.name in devices[server.name]["detail"]
        assert "the device needs Python" in devices[server.name]["detail"]


@pytest.mark.parametrize("stage", ["upload", "unpacking", "checking"])
def test_killed_at_any_stage_it_is_gone_on_with(
    hdap: Provision, servers: list[Sshd], file: Path, fake: Path, stage: str
) -> None:
    server = servers[0]
    reached: dict[str, Callable[[], object]] = {
        "upload": lambda: [*root(server).glob("parts/*"), *root(server).glob("wheels")],
        "unpacking": lambda: (root(server) / "environment.new").exists(),
        "checking": lambda: at_work(server, "--check"),
    }
    (server.home / "hold").touch()
    with subprocess.Popen(
        command(file, fake, "--select", server.name),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        until = time.monotonic() + 60
        while not reached[stage]():
            assert time.monotonic() < until, f"{stage} was not reached"
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not at_work(server, ".hdap/runner/"))
    assert not (root(server) / "environment").exists()
    (server.home / "hold").unlink()
    status, devices, _ = hdap(*words(fake, "--yes", "--select", server.name))
    assert (status, devices[server.name]["state"]) == (ExitCode.DONE, "provisioned"), devices
    assert environments(server) == [f"environment.{devices[server.name]['plan']}"]


def test_two_at_once_make_one_environment(servers: list[Sshd], file: Path, fake: Path) -> None:
    both = [
        subprocess.Popen(
            command(file, fake), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == ExitCode.DONE, out + err
    for server in servers:
        assert len(environments(server)) == 1
        assert (root(server) / "environment" / "hdap.json").exists()


@pytest.fixture
def small(servers: list[Sshd]) -> Iterator[Sshd]:
    """A device whose disk has 12 MB."""
    server = servers[0]
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(server.home)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be had only as root, where mounting is allowed")
    yield server
    subprocess.run(["umount", "-l", str(server.home)], check=True)


def test_a_disk_that_is_too_small_is_said_to_be(hdap: Provision, small: Sshd, fake: Path) -> None:
    status, devices, _ = hdap(*words(fake, "--yes", "--select", small.name))
    assert status == ExitCode.FAILED
    assert "its disk is too full: 84 MB are needed" in devices[small.name]["detail"]
    assert list(small.home.iterdir()) == []


def test_a_disk_that_fills_up_while_building_leaves_nothing_broken(
    hdap: Provision, small: Sshd, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.Plan, "needed", 0)
    status, devices, _ = hdap(*words(fake, "--yes", "--select", small.name))
    assert (status, devices[small.name]["error"]) == (ExitCode.FAILED, "disk full"), devices
    assert not (root(small) / "environment").exists()
    (small.home / "hold").touch()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small.home)], check=True)
    (small.home / "hold").unlink()
    status, _, _ = hdap(*words(fake, "--yes", "--select", small.name))
    assert status == ExitCode.DONE


def test_below_a_benchmark_nothing_is_changed(
    hdap: Provision, servers: list[Sshd], fake: Path
) -> None:
    server = servers[0]
    hdap(*words(fake, "--yes", "--select", server.name))
    job = root(server) / "jobs" / "job-1"
    job.mkdir(parents=True)
    with subprocess.Popen(["sh", "-c", "sleep 60; :", str(job)]) as process:
        (job / "pid").write_text(str(process.pid))
        status, devices, _ = hdap("devices", "provision", "--undo", "--yes")
        process.kill()
    assert status == ExitCode.PARTLY
    assert (devices[server.name]["state"], devices[server.name]["error"]) == ("failed", "busy")
    assert (root(server) / "environment").exists()


def test_an_interpreter_in_the_settings_goes_first(
    hdap: Provision, servers: list[Sshd], file: Path, fake: Path, tmp_path: Path
) -> None:
    file.write_text(fleet_toml(servers, tmp_path / "state", interpreter()))
    _, devices, _ = hdap(*words(fake, "--yes"))
    assert {one["state"] for one in devices.values()} == {"lacking"}
    assert "remove that key" in devices[servers[0].name]["detail"]
    file.write_text(fleet_toml(servers, tmp_path / "state", sys.executable))
    status, devices, _ = hdap("devices", "provision", "--yes")
    assert (status, {one["state"] for one in devices.values()}) == (ExitCode.DONE, {"ready"})
    assert "already" in devices[servers[0].name]["detail"]


def test_emulated_devices_have_theirs_from_the_lab(
    fleet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(fleet_file), "devices", "provision", "--json"], lambda _c: 0) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert {(one["state"], one["emulated"]) for one in devices} == {("ready", True)}
    assert "nothing to do" in devices[0]["detail"]
