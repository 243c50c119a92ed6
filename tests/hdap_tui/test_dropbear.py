"""Dropbear, the server of routers and small boards: with an SFTP server beside it, and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from operating import QUICK, errors, hdap, make_models
from sshd import HOST, _listens, fleet_toml, free_port, make_key, wait_for
from sshd import QUICK as LIMITS
from wheels import WORKS, interpreter, make_wheel

from hdap_tui.errors import ExitCode
from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.target import Target

SFTP = "/usr/lib/sftp-server"
# Dropbear goes by the account's own home and shell, whatever else is said.
PLACE = """
mount --bind "$1" /etc/passwd
[ "$2" = yes ] || mount --bind /dev/null "$(readlink -f "$3")"
shift 3
exec "$@"
"""


def missing() -> str:
    """Return why no Dropbear can be started here; empty where one can."""
    lacking = [name for name in ("dropbear", "dropbearkey", "unshare") if not shutil.which(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if os.geteuid() != 0:
        return "mounts of its own need root"
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
                           capture_output=True)  # fmt: skip
    return "" if tried.returncode == 0 else "mounts of its own are not allowed here"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@dataclass
class Dropbear:
    """One server."""

    name: str
    folder: Path
    port: int
    identity: Path
    known_hosts: Path
    host: str = HOST
    user: str = "root"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self, options: tuple[str, ...] = (), sftp: bool = True) -> subprocess.Popen[bytes]:
        (self.home / ".ssh").mkdir(parents=True)
        make_key(self.identity)
        shutil.copy(f"{self.identity}.pub", self.home / ".ssh" / "authorized_keys")
        for path in (self.home, self.home / ".ssh", self.home / ".ssh" / "authorized_keys"):
            path.chmod(0o700)
        key = self.folder / "host"
        (self.folder / "passwd").write_text(f"root:x:0:0:root:{self.home}:/bin/sh\n")
        said = subprocess.run(["dropbearkey", "-t", "ed25519", "-f", str(key)],
                              capture_output=True, text=True, check=True).stdout  # fmt: skip
        kind, blob = next(line for line in said.splitlines() if line.startswith("ssh-")).split()[:2]
        KnownHosts(self.known_hosts, ()).trust(HOST, self.port, HostKey(kind, blob))
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
             "sh", "-ec", PLACE, "sh", str(self.folder / "passwd"), "yes" if sftp else "no", SFTP,
             "dropbear", "-F", "-E", "-m", "-r", str(key), "-p", f"{HOST}:{self.port}",
             "-P", str(self.folder / "pid"), *options],
            stdin=subprocess.DEVNULL, stderr=(self.folder / "log").open("wb"),
        )  # fmt: skip
        wait_for(lambda: _listens(self.port))
        return process

    def target(self, **changes: object) -> Target:
        values = {
            "name": self.name, "host": HOST, "port": self.port, "user": self.user,
            "identity": self.identity, "known_hosts": self.known_hosts, "timeouts": LIMITS,
        }  # fmt: skip
        return Target(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Dropbear]:
    folder = tmp_path / "dropbear"
    folder.mkdir()
    made = Dropbear("small", folder, free_port(), folder / "id", folder / "known_hosts")
    process = made.start(**getattr(request, "param", {}))
    yield made
    process.kill()
    process.wait()


def fleet(server: Dropbear, folder: Path) -> Path:
    make_models(folder)
    file = folder / "fleet.toml"
    more = "[deploy]\nblocks = 4\nmargin_percent = 5\n"
    file.write_text(fleet_toml([server], folder / "state", sys.executable, QUICK + more))
    return file


@pytest.mark.parametrize("server", [{"sftp": True}, {"sftp": False}], indirect=True)
def test_a_device_with_dropbear_is_measured_deployed_to_and_rolled_back(
    server: Dropbear, tmp_path: Path
) -> None:
    file = fleet(server, tmp_path)
    ended = hdap(file, "bench", "slow")
    assert (ended.status, errors(ended)) == (ExitCode.DONE, {"small": ""}), ended.data
    (told,) = hdap(file, "devices", "facts").data["devices"]
    assert told["facts"]["machine"] == os.uname().machine
    for words in (("deploy", str(tmp_path / "fast.onnx"), "--yes"), ("rollback", "--yes")):
        ended = hdap(file, *words)
        assert ended.status == ExitCode.DONE, (ended.data, ended.said)


@pytest.mark.parametrize("server", [{"sftp": False}], indirect=True)
def test_a_device_with_dropbear_and_without_sftp_is_provisioned(
    server: Dropbear, tmp_path: Path
) -> None:
    file, wheels = tmp_path / "fleet.toml", tmp_path / "wheels"
    file.write_text(fleet_toml([server], tmp_path / "state", ""))
    make_wheel(wheels, "onnxruntime", "1.22", requires=["numpy"],
               files={"onnxruntime/__init__.py": WORKS})  # fmt: skip
    make_wheel(wheels, "numpy", "2.4")
    words = ("devices", "provision", "--yes")
    ended = hdap(file, *words, "--wheels", str(wheels), "--python", interpreter())
    assert [one["state"] for one in ended.data["devices"]] == ["provisioned"], ended.said
    ended = hdap(file, *words, "--undo")
    assert [one["state"] for one in ended.data["devices"]] == ["removed"], ended.said


@pytest.mark.parametrize("server", [{"options": ("-T", "2")}], indirect=True)
def test_a_server_that_hangs_up_without_a_word_after_enough_keys_is_not_asked_again(
    server: Dropbear, tmp_path: Path
) -> None:
    keys = tuple(make_key(tmp_path / f"id{number}") for number in range(3))
    target = server.target(identity=None, identities=keys)
    with pytest.raises(DeviceError) as caught:
        connect(target, KnownHosts(server.known_hosts, ()))
    assert caught.value.kind is ErrorKind.AUTHENTICATION
    assert not caught.value.transient
    assert "refused the login" in str(caught.value)
