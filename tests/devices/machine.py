"""Devices with a network, process table, file system and sensors of their own, on this machine.

    with machines(folder, 2) as (first, second):
        first.link.shape(delay_s=0.01, loss=0.01)
        first.write("/sys/class/thermal/thermal_zone0/temp", "81000")

Each is a process tree in namespaces of its own with an OpenSSH server, behind a link of its own.
What it writes goes to memory and is gone with it; nothing of it outlives the process that made it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sshd import QUICK, SSHD, HostKey, make_key

from devices.link import TUN, Link
from hdap_tui.ssh.hostkeys import KnownHosts
from hdap_tui.ssh.target import Target

BOARD = "Raspberry Pi 5 Model B Rev 1.0"
HOME = "/var/device"
_NEEDED = ("ip", "unshare", "nsenter", "setpriv", "mount", "taskset", "ssh-keygen")
_SPACES = ("--mount", "--uts", "--pid", "--net", "--fork", "--kill-child")
_INIT = r"""
set -e
files=$1 name=$2 board=$3; shift 3
mount -t tmpfs -o size=1g tmpfs "$files"/memory
mkdir "$files"/memory/upper "$files"/memory/work "$files"/memory/root
root=$files/memory/root
mount -t overlay overlay \
  -o "lowerdir=/,upperdir=$files/memory/upper,workdir=$files/memory/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for place in run tmp sys/class/thermal sys/firmware; do mount -t tmpfs tmpfs "$root/$place"; done
for place; do mkdir -p "$root$place"; mount --rbind "$place" "$root$place"; done
hostname "$name"
mkdir -p "$root"/run/sshd "$root/var/device" "$root"/sys/class/thermal/thermal_zone0
echo cpu-thermal >"$root"/sys/class/thermal/thermal_zone0/type
echo 48500 >"$root"/sys/class/thermal/thermal_zone0/temp
mkdir -p "$root"/sys/firmware/devicetree/base
printf '%s\0' "$board" >"$root"/sys/firmware/devicetree/base/model
printf '#!/bin/sh\n[ "$1" = get_throttled ] && cat /run/throttled\n' >"$root"/usr/bin/vcgencmd
chmod 755 "$root"/usr/bin/vcgencmd
echo throttled=0x0 >"$root"/run/throttled
cp "$files"/host_ed25519 "$files"/config "$files"/authorized "$root"/run/sshd/
exec chroot "$root" /usr/sbin/sshd -D -e -f /run/sshd/config
"""
_CONFIG = f"""
Port 22
HostKey /run/sshd/host_ed25519
AuthorizedKeysFile /run/sshd/authorized
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
Subsystem sftp internal-sftp -d {HOME}
SetEnv HOME={HOME}
"""


def missing() -> str:
    """Return why no such device can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "devices with a network of their own need root"
    lacking = [name for name in _NEEDED if not shutil.which(name)]
    if lacking or not os.path.exists(SSHD):
        return f"not installed: {', '.join(lacking or ['sshd'])}"
    if not TUN.exists():
        return f"there is no {TUN}"
    tried = subprocess.run(["unshare", *_SPACES, "mount", "-t", "tmpfs", "none", "/mnt"],
                           capture_output=True)  # fmt: skip
    return "" if tried.returncode == 0 else "namespaces are not allowed here"


@dataclass
class Machine:
    """One running device."""

    name: str
    host: str
    folder: Path
    identity: Path
    known_hosts: Path
    link: Link
    pid: int
    """Number of its first process, as seen from here."""
    _process: subprocess.Popen[bytes]
    port: int = 22
    user: str = "root"

    @property
    def home(self) -> Path:
        """Home folder of whoever logs in, as seen from here."""
        return self.path(HOME)

    def path(self, path: str) -> Path:
        """Return a path of the device as this machine sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str) -> None:
        """Write a file on the device, a sensor for example."""
        self.path(path).write_text(text + "\n")

    def target(self, **changes: Any) -> Target:
        """Return how to reach it, with limits for tests."""
        values: dict[str, Any] = {
            "name": self.name,
            "host": self.host,
            "user": self.user,
            "identity": self.identity,
            "known_hosts": self.known_hosts,
            "timeouts": QUICK,
            "python": sys.executable,
        }
        return Target(**{**values, **changes})

    def stop(self) -> None:
        """End all of it."""
        self._process.kill()
        self._process.wait()
        self.link.close()


@contextlib.contextmanager
def machines(
    folder: Path, count: int, board: str = BOARD, cpus: Sequence[int] = ()
) -> Iterator[list[Machine]]:
    """Start devices that share a client key and a known hosts file; all end with the block.

    `cpus` are the processors that they may use, before every ordinary process where that is
    allowed: what else this machine does takes nothing from them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / "id")
    started: list[Machine] = []
    try:
        for number in range(count):
            started.append(_start(folder, f"board-{number + 1}", board, cpus))
        yield started
    finally:
        for machine in started:
            machine.stop()


@functools.cache
def comes_first() -> bool:
    """Return whether a process of ours may run before every ordinary one (SCHED_FIFO)."""
    if not hasattr(os, "sched_setscheduler") or not shutil.which("chrt"):
        return False
    tried = subprocess.run(["chrt", "--fifo", "1", "true"], stderr=subprocess.DEVNULL)
    return tried.returncode == 0


def _start(folder: Path, name: str, board: str, cpus: Sequence[int]) -> Machine:
    own = folder / name
    (own / "memory").mkdir(parents=True)
    make_key(own / "host_ed25519")
    (own / "config").write_text(_CONFIG)
    shutil.copy(folder / "id.pub", own / "authorized")
    bound = ["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []
    if cpus and comes_first():
        bound += ["chrt", "--fifo", "1"]
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *bound, "unshare", *_SPACES, "--propagation",
             "private", "sh", "-c", _INIT, "sh", str(own), name, board, *_other_mounts()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    pid = _first_process(process, own)
    network = f"10.{random.randrange(200, 250)}.{random.randrange(256)}"
    label = f"dev{process.pid % 10**7}"
    link = Link(label, f"{network}.1", f"{network}.2", pid)
    machine = Machine(
        name, f"{network}.2", own, folder / "id", folder / "known_hosts", link, pid, process
    )
    key = (own / "host_ed25519.pub").read_text().split()
    KnownHosts(machine.known_hosts, others=()).trust(machine.host, 22, HostKey(key[0], key[1]))
    deadline = time.monotonic() + 10
    while not _listens(pid):
        assert process.poll() is None, (own / "log").read_text()
        assert time.monotonic() < deadline, f"{name} does not listen"
        time.sleep(0.005)
    return machine


def _other_mounts() -> list[str]:
    """Return the folders of this Python that a device would not see without being given them."""
    here = Path(__file__).resolve().parents[2]
    root = os.stat("/").st_dev
    places = {sys.prefix, sys.base_prefix, str(here)}
    return sorted(
        place for place in places if os.stat(place).st_dev != root or place.startswith("/tmp/")
    )


def _first_process(process: subprocess.Popen[bytes], own: Path) -> int:
    deadline = time.monotonic() + 5
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := children.read_text().split()):
        assert process.poll() is None, (own / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return int(found[0])


def _listens(pid: int) -> bool:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
        return any("00000000:0016 00000000:0000 0A" in line for line in lines)
    return False
