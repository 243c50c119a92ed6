"""Hosts of an OpenSSH client configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdap_tui.inventory import InventoryError, read
from hdap_tui.inventory.arguments import jump_of_arguments, jump_of_command
from hdap_tui.inventory.found import PROXY, Found, Host

CONFIG = """\
Include conf.d/*
Host Bastion b2
\tHostName=203.0.113.5
    User "ops"
    Port 2022
    IdentityFile ~/.ssh/ops
Host edge-* !edge-99
    User pi
    ProxyJump bastion
    IdentityFile %d/.ssh/%h
Host edge-01
    HostName 10.0.0.1   # the first
    IdentityFile ~/.ssh/second
Host edge-01
    User ignored
Host github.com
    User git
Host old
    ProxyCommand ssh -q -W %h:%p bastion
Host strange
    ProxyCommand nc -X 5 %h %p
Host direct
    ProxyJump none
    Port 70000
Host a/b
    HostName x
Match host foo exec "touch PWNED"
    User nobody
Host *
    Port 2200
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / ".ssh"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "conf.d" / "10").write_text("Host edge-02 edge-99\n  HostName %h.lab\n")
    (folder / "config").write_text(CONFIG.replace("PWNED", str(tmp_path / "pwned")))
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(tmp_path)
    return folder


def by_name(found: Found) -> dict[str, Host]:
    return {host.name: host for host in found.hosts}


def test_the_first_value_of_each_key_counts_as_ssh_has_it(home: Path) -> None:
    hosts = by_name(read(home / "config"))
    assert list(hosts) == ["edge-02", "edge-99", "Bastion", "b2", "edge-01", "old"]
    assert hosts["edge-01"] == Host(
        name="edge-01", host="10.0.0.1", port=2200, user="pi", identity="~/.ssh/10.0.0.1",
        proxy_jump="bastion",
    )  # fmt: skip
    assert hosts["edge-02"].settings == {
        "name": "edge-02", "host": "edge-02.lab", "port": 2200, "user": "pi",
        "identity": "~/.ssh/edge-02.lab", "proxy_jump": "bastion",
    }  # fmt: skip
    assert hosts["edge-99"].user == ""
    assert hosts["b2"].settings == {
        "name": "b2", "host": "203.0.113.5", "port": 2022, "user": "ops",
        "identity": "~/.ssh/ops",
    }  # fmt: skip
    assert hosts["old"].proxy_jump == "bastion"


def test_what_cannot_be_taken_is_said_with_its_place(home: Path, tmp_path: Path) -> None:
    found = read(home / "config")
    config = "home/.ssh/config"
    assert found.left_out == [
        f'{config}:20: "strange" {PROXY}',
        f'{config}:22: "direct" has the port "70000"; it must be from 1 to 65535.',
        f'{config}:25: "a/b" is no name for a device: at most 63 letters, digits, dots, dashes and'
        " underscores, the first no sign.",
    ]
    said = "\n".join(found.notes)
    assert f"{config}:16: github.com is a Git server" in said
    assert "Match blocks are not looked into" in said
    assert not (tmp_path / "pwned").exists(), "nothing in a configuration is run"


def test_a_jump_host_of_another_file_is_written_out(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "lab.conf"
    other.write_text(
        "Host outer\n HostName 192.0.2.1\nHost inner\n HostName ::2\n User ops\n ProxyJump outer\n"
        "Host edge\n ProxyJump inner\n IdentityFile k\nHost inner\n IdentityFile ~/.ssh/inner\n"
    )
    found = read(other)
    assert by_name(found)["edge"].proxy_jump == "192.0.2.1,ops@[::2]"
    assert "the jump host inner has a key of its own (~/.ssh/inner)" in found.notes[0]


def test_ten_thousand_hosts_are_read(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "big"
    other.write_text("".join(f"Host h{i}\n HostName 10.0.{i // 250}.{i % 250}\n"
                             for i in range(10_000)) + "Host *\n User pi\n")  # fmt: skip
    hosts = read(other, "ssh-config").hosts
    assert len(hosts) == 10_000
    assert hosts[777].address == "pi@10.0.3.27"


def test_a_configuration_needs_its_file() -> None:
    with pytest.raises(InventoryError, match="cannot be read: no such file"):
        read(Path("/nowhere/config"), "ssh-config")


@pytest.mark.parametrize(
    ("text", "jump", "other"),
    [
        ("-J bastion", "bastion", False),
        ("-qJbastion -p 22", "bastion", False),
        ("-o ProxyJump=a@b:2,c", "a@b:2,c", False),
        ('-o "ProxyJump a"', "a", False),
        ("-oProxyCommand='ssh -W %h:%p -p 2022 -l ops gate'", "ops@gate:2022", False),
        ('-o ProxyCommand="nc %h %p"', "", True),
        ("-o ProxyCommand=none", "", False),
        ("-o StrictHostKeyChecking=no -i key", "", False),
        ("-J 'open", "", False),
        ("-o", "", False),
    ],
)
def test_jump_hosts_are_found_in_the_arguments_of_ssh(text: str, jump: str, other: bool) -> None:
    assert jump_of_arguments(text) == (jump, other)


@pytest.mark.parametrize(
    ("command", "jump"),
    [
        ("ssh -W %h:%p gate", "gate"),
        ("/usr/bin/ssh -q -o StrictHostKeyChecking=no ops@gate -W [%h]:%p", "ops@gate"),
        ("ssh gate nc %h %p", ""),
        ("ssh -W other:22 gate", ""),
        ("cloudflared access ssh", ""),
        ("", ""),
        ("ssh 'open", ""),
    ],
)
def test_only_a_plain_proxy_command_is_a_jump_host(command: str, jump: str) -> None:
    assert jump_of_command(command) == jump
