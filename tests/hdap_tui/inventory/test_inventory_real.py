"""Imported devices are reached: real OpenSSH servers, one of them behind the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sshd import Sshd

from hdap_tui.actions.inventory import import_devices
from hdap_tui.context import Context
from hdap_tui.reach import connections, targets


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    """A jump host and a device."""
    return make_sshds(2)


def ansible(gate: Sshd, device: Sshd) -> tuple[str, str]:
    """An inventory with a jump host in the arguments of ssh."""
    return "hosts.ini", (
        f"[edge]\ndevice ansible_host={device.host} ansible_port={device.port}\n"
        f"[edge:vars]\nansible_user={device.user}\n"
        f"ansible_ssh_private_key_file={device.identity}\n"
        f"ansible_ssh_common_args='-o ProxyCommand=\"ssh -W %h:%p -p {gate.port} "
        f"{gate.user}@{gate.host}\"'\n"
    )


def ssh_config(gate: Sshd, device: Sshd) -> tuple[str, str]:
    """A configuration whose jump host has a block of its own."""
    return "lab.conf", (
        f"Host gate\n  HostName {gate.host}\n  Port {gate.port}\n  User {gate.user}\n"
        f"Host device\n  HostName {device.host}\n  Port {device.port}\n  ProxyJump gate\n"
        f"Host *\n  User {device.user}\n  IdentityFile {device.identity}\n"
    )


def table(gate: Sshd, device: Sshd) -> tuple[str, str]:
    """A table of one row."""
    return "hosts.csv", (
        "name;host;port;user;key;jump host\n"
        f"device;{device.host};{device.port};{device.user};{device.identity};"
        f"{gate.user}@{gate.host}:{gate.port}\n"
    )


@pytest.mark.parametrize("written", [ansible, ssh_config, table])
def test_an_imported_device_is_reached_behind_its_jump_host(
    servers: list[Sshd],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: Callable[[Sshd, Sshd], tuple[str, str]],
) -> None:
    gate, device = servers
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HDAP_STATE", raising=False)
    (tmp_path / "fleet.toml").write_text(
        f'[fleet]\nstate = "state"\n[ssh]\nidentity = "{gate.identity}"\n'
        f'known_hosts = "{gate.known_hosts}"\n'
    )
    name, text = written(gate, device)
    (tmp_path / name).write_text(text)
    import_devices(Context(), Path(name), only="device", yes=True)
    logins = gate.log.read_text().count("Accepted publickey")
    context = Context()
    with connections(context) as pool:
        [target] = targets(context.settings, context.select("device"))
        assert pool.get(target).run("echo ~").out.decode().strip() == str(device.home)
    assert gate.log.read_text().count("Accepted publickey") == logins + 1
