"""Trust and check a fleet behind a jump host, as one who has only an SSH configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from operating import Hdap, caller
from sshd import Sshd

from hdap_tui.config import load
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.reach import targets

PYTHON = "no-such-python"  # what a device has is of no matter here


@dataclass
class Hall:
    """A jump host and four devices behind it."""

    bastion: Sshd
    devices: list[Sshd]
    file: Path


@pytest.fixture
def hall(make_sshds: Callable[..., list[Sshd]], tmp_path: Path) -> Hall:
    (bastion,) = make_sshds(1, name="bastion")
    devices = make_sshds(4, jump=bastion, name="inner")
    lines = [f"Host gate\n  HostName 127.0.0.1\n  Port {bastion.port}"]
    lines += [f"Host {one.name}\n  Port {one.port}" for one in devices]
    lines += ["Host inner-*\n  HostName 127.0.0.1\n  ProxyJump gate"]
    lines += [f"Host *\n  IdentityFile {bastion.identity}\n  User {bastion.user}"]
    (tmp_path / "ssh_config").write_text("\n".join(lines) + "\n")
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'[fleet]\nstate = "state"\n[ssh]\nconfig = "ssh_config"\npython = "{PYTHON}"\n'
        'connect_timeout_s = 5\n[[devices]]\nname = "inner-[1:4]"\n'
    )
    return Hall(bastion, devices, file)


def test_host_keys_are_accepted_from_the_jump_host_inwards(
    hall: Hall, capsys: pytest.CaptureFixture[str]
) -> None:
    hdap: Hdap = caller(hall.file, capsys)
    status, _, said = hdap("devices", "trust")
    assert status == ExitCode.REFUSED
    assert "jump host gate: host key unknown" in said
    assert hall.bastion.host_key().fingerprint in said

    status, document, _ = hdap("devices", "trust", "--yes")
    assert status == ExitCode.DONE
    assert document["jump_hosts"] == {"gate": hall.bastion.host_key().fingerprint}
    assert document["accepted"] == {d.name: d.host_key().fingerprint for d in hall.devices}

    old = hall.devices[0].host_key().fingerprint
    hall.devices[0].restart(new_host_key=True)
    status, document, _ = hdap("devices", "trust", "--yes")
    assert document["replaced"] == {"inner-1": [old]}
    assert (len(document["accepted"]), document["known"]) == (1, 3)

    hall.bastion.stop()
    status, document, _ = hdap("devices", "check")
    assert status == ExitCode.UNREACHABLE
    details = {one["detail"].partition(": ")[2] for one in document["devices"]}
    assert details == {f"behind gate (127.0.0.1:{hall.bastion.port}): nothing listens on that port"}


def test_devices_that_fail_alike_share_a_row(
    hall: Hall, capsys: pytest.CaptureFixture[str]
) -> None:
    from hdap_tui.cli.app import run

    hall.bastion.stop()
    status = run(["--config", str(hall.file), "devices", "check"], lambda _context: 0)
    shown = capsys.readouterr().out
    assert status == ExitCode.UNREACHABLE
    assert "inner-1, inner-2 and 2 more" in shown
    assert shown.count("nothing listens on that port") == 1
    assert "0 of 4 devices ok, 4 refused." in shown


def test_what_the_settings_say_of_a_way_reaches_the_connections(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        '[ssh]\nconfig = "none"\nproxy_jump = "ops@gate:2022"\nidentity = "fleet"\n'
        'certificate = "fleet-cert.pub"\npassword_command = "pass"\nask_password = true\n'
        '[[devices]]\nname = "one"\nport = 23\n'
        '[[devices]]\nname = "two"\nproxy_jump = "none"\ncertificate = "two-cert.pub"\n'
    )
    one, two = targets(load(file))
    assert (one.proxy_jump, two.proxy_jump) == ("ops@gate:2022", "none")
    assert (one.port, two.port) == (23, 0)
    assert one.certificate == tmp_path / "fleet-cert.pub"
    assert two.certificate == tmp_path / "two-cert.pub"
    assert one.ask_password
    assert one.password_command == "pass"
    file.write_text('[[devices]]\nname = "one"\nproxy_jump = "a b"\n')
    with pytest.raises(SettingsError, match=r"fleet\.toml:3: .*names no jump host"):
        load(file)
