"""The operator's SSH configuration: what it decides, and what it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hdap_tui.ssh.config import SshConfig, configuration, resolve
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.jumps import Hop, parse_jumps
from hdap_tui.ssh.target import Target

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's client is missing")
Write = Callable[[str], SshConfig]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["ssh", "without ssh"])
def write(home: Path, request: pytest.FixtureRequest) -> Write:
    """Write ~/.ssh/config and return its reader: with OpenSSH's client, and without."""
    if request.param == "ssh" and not shutil.which("ssh"):
        pytest.skip("OpenSSH's client is missing")

    def config(text: str) -> SshConfig:
        (home / ".ssh" / "config").write_text(text)
        program = shutil.which("ssh") if request.param == "ssh" else None
        return SshConfig(None, program=program)

    return config


def target(config: SshConfig | None, host: str = "orin", **changes: object) -> Target:
    values = {"name": "edge", "host": host, "port": 0, "user": "", "known_hosts": Path("/fleet")}
    return Target(**{**values, "config": config, **changes})  # type: ignore[arg-type]


def test_everything_that_leads_to_a_device_is_taken_from_the_file(write: Write, home: Path) -> None:
    found = resolve(
        target(
            write("""
Host orin*
  HostName 10.0.0.7
  Port 2222
  User pi
  IdentityFile ~/.ssh/lab
  IdentityFile ~/.ssh/of-%h
  IdentitiesOnly yes
  CertificateFile ~/lab-cert.pub
  HostKeyAlias the-orin
  UserKnownHostsFile ~/.ssh/lab_hosts ~/.ssh/more_hosts
  GlobalKnownHostsFile /etc/lab_hosts
""")
        )
    )
    assert (found.host, found.port, found.user) == ("10.0.0.7", 2222, "pi")
    assert found.identities == (home / ".ssh" / "lab", home / ".ssh" / "of-10.0.0.7")
    assert found.identities_only
    assert found.certificates == (home / "lab-cert.pub",)
    assert found.known_as == ("the-orin", 0)
    assert found.other_known_hosts == (
        home / ".ssh" / "lab_hosts",
        home / ".ssh" / "more_hosts",
        Path("/etc/lab_hosts"),
    )
    assert found.config is None


@pytest.mark.parametrize(
    "names",
    [
        ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa"),
        ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss"),
        ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"),
    ],
)
def test_keys_that_ssh_lists_by_itself_are_not_named_ones(
    home: Path, names: tuple[str, ...]
) -> None:
    program = home / "ssh"  # of OpenSSH 9, 10, and one without XMSS
    said = "\n".join(["user pi", *(f"identityfile ~/.ssh/{name}" for name in names)])
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    (home / ".ssh" / "config").write_text("Host orin\n  User pi\n")
    found = resolve(target(SshConfig(None, program=str(program))))
    assert (found.user, found.identities) == ("pi", ())


def test_the_settings_go_before_the_file_and_the_file_before_the_defaults(write: Write) -> None:
    config = write("Host orin\n  Port 2222\n  User pi\n  ProxyJump bastion\n")
    found = resolve(target(config, port=23, user="root", proxy_jump="none"))
    assert (found.port, found.user, found.jumps) == (23, "root", ())
    found = resolve(target(config))
    assert (found.port, found.user, [jump.host for jump in found.jumps]) == (
        2222,
        "pi",
        ["bastion"],
    )
    other = resolve(target(config, "other"))
    assert (other.host, other.port, other.jumps) == ("other", 22, ())
    assert other.user
    assert resolve(target(None)).port == 22


def test_the_first_value_counts_and_negated_patterns_exclude(write: Write) -> None:
    config = write("Host * !orin-3\n  User pi\nHost *\n  User root\n  Port 2200\n")
    assert resolve(target(config, "orin-1")).user == "pi"
    assert resolve(target(config, "orin-3")).user == "root"


def test_jump_hosts_have_their_own_settings_and_their_own_way(write: Write) -> None:
    config = write("""
Host outer
  HostName 192.0.2.1
  User gate
Host inner
  HostName 192.0.2.2
  ProxyJump outer
Host orin
  ProxyJump inner,op@last:2022
""")
    jumps = resolve(target(config)).jumps
    assert [(j.name, j.host, j.port) for j in jumps] == [
        ("outer", "192.0.2.1", 22),
        ("inner", "192.0.2.2", 22),
        ("last", "last", 2022),
    ]
    assert (jumps[0].user, jumps[2].user) == ("gate", "op")
    same = resolve(target(config, name="another")).jumps
    assert same == jumps  # so that they share a connection


def test_a_jump_host_that_the_file_has_no_key_for_gets_the_fleets(write: Write, home: Path) -> None:
    config = write("Host own\n  IdentityFile ~/.ssh/own\n")
    found = resolve(target(config, proxy_jump="plain,own", jump_identity=Path("/keys/fleet")))
    assert [jump.identities for jump in found.jumps] == [
        (Path("/keys/fleet"),),
        (home / ".ssh" / "own",),
    ]


def test_jump_hosts_in_a_circle_are_refused(write: Write) -> None:
    config = write("Host *\n  ProxyJump bastion\n")
    with pytest.raises(DeviceError, match=r"in a circle \(orin -> bastion -> bastion\).*!bastion"):
        resolve(target(config))


def test_a_jump_host_may_share_its_address_with_what_lies_behind_it(write: Write) -> None:
    found = resolve(target(write(""), "gateway", port=2201, proxy_jump="gateway:2200"))
    assert [(jump.host, jump.port) for jump in found.jumps] == [("gateway", 2200)]


def test_a_proxy_command_is_not_ignored_in_silence(write: Write) -> None:
    config = write("Host orin\n  ProxyCommand nc %h %p\n")
    with pytest.raises(DeviceError, match="ProxyCommand, which is not supported"):
        resolve(target(config))
    assert resolve(target(config, proxy_jump="bastion")).jumps
    assert resolve(target(config, proxy_jump="none")).jumps == ()


def test_included_files_count(write: Write, home: Path) -> None:
    (home / ".ssh" / "lab").mkdir()
    (home / ".ssh" / "lab" / "one").write_text("Host orin\n  Port 2201\n")
    config = write("Include lab/*\nHost *\n  Port 2200\n")
    assert resolve(target(config)).port == 2201
    assert resolve(target(config, "other")).port == 2200


def test_a_changed_file_is_read_again(write: Write, home: Path) -> None:
    config = write("Host orin\n  Port 2201\n")
    assert resolve(target(config)).port == 2201
    (home / ".ssh" / "config").write_text("Host orin\n  Port 22022\n")
    assert resolve(target(config)).port == 22022


@needs_ssh
def test_match_blocks_are_for_ssh_itself_to_judge(home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        'Match host orin exec "true"\n  Port 2201\nMatch tagged x\n  Port 2202\n'
        "Match final all\n  User pi\n"
    )
    try:
        found = resolve(target(SshConfig(None)))
    except DeviceError:  # an ssh that does not know `tagged` says so
        (home / ".ssh" / "config").write_text('Match host orin exec "true"\n  Port 2201\n')
        found = resolve(target(SshConfig(None)))
    assert found.port == 2201


def test_without_ssh_match_blocks_are_left_out_and_said_so_once(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  Port 2200\nMatch all\n  Port 2201\n  User x\n")
    said: list[str] = []
    config = SshConfig(None, warn=said.append, program=None)
    assert resolve(target(config)).port == 2200
    assert resolve(target(config, "other")).user != "x"
    assert len(said) == 1
    assert "Match blocks are left out" in said[0]


@needs_ssh
def test_hosts_that_match_the_same_blocks_are_asked_about_once(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *.lab\n  User pi\n  IdentityFile ~/.ssh/%h\n")
    config = SshConfig(None)
    found = [resolve(target(config, f"edge-{n}.lab")) for n in range(200)]
    assert {one.user for one in found} == {"pi"}
    assert found[7].host == "edge-7.lab"
    assert found[7].identities == (home / ".ssh" / "edge-7.lab",)
    assert config.asked == 1
    assert resolve(target(config, "10.0.0.1")).port == 22
    assert config.asked == 1, "the file says nothing of that host"


@needs_ssh
def test_a_file_that_ssh_does_not_understand_is_quoted(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host orin\n  User pi\nFooBar yes\n")
    with pytest.raises(DeviceError, match=r"edge: the SSH configuration cannot be used:.*line 3"):
        resolve(target(SshConfig(None)))


def test_a_named_file_takes_the_place_of_the_operators(home: Path, tmp_path: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  User wrong\n")
    (tmp_path / "lab").write_text("Host orin\n  Port 2201\n")
    found = resolve(target(configuration(tmp_path / "lab")))
    assert found.port == 2201
    assert found.user != "wrong"


@pytest.mark.parametrize(
    ("written", "hops"),
    [
        ("none", []),
        ("a", [Hop("a")]),
        ("u@a:22, b", [Hop("a", "u", 22), Hop("b")]),
        ("ssh://u@[2001:db8::1]:23/", [Hop("2001:db8::1", "u", 23)]),
        ("a@b@c", [Hop("c", "a@b")]),
    ],
)
def test_jump_hosts_are_written_as_ssh_writes_them(written: str, hops: list[Hop]) -> None:
    assert parse_jumps(written) == hops


@pytest.mark.parametrize("written", ["", "a,", "@a", "a:0", "a:65536", "a:b", "-oProxy", "a b"])
def test_what_names_no_jump_host_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="names no jump host"):
        parse_jumps(written)
