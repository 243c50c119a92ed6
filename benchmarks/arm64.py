"""A device of another architecture: an arm64 user space, emulated, provisioned and benchmarked.

    apt-get install -y qemu-user-static debootstrap      # once, as root
    python -m benchmarks.arm64
    python -m benchmarks.arm64 --qemu ~/qemu-10/qemu-aarch64-static --onnxruntime 1.31.1

Debian's arm64 packages are unpacked once into a folder (a Debian mirror is needed for that), with
an SSH server and a bare Python in it: no pip, no ensurepip. The real command then pushes wheels
for aarch64 and builds an environment; `hdap bench` runs in it. It shows that provisioning works
across architectures; QEMU is hundreds of times slower than a processor, so the latencies mean
nothing. ONNX Runtime 1.31 needs QEMU 10 or newer; with an older one 1.22.1 is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sshd import free_port, make_key, wait_for

from hdap_tui.provision.downloading import own_version

NAME = "arm64-emulated"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
# An ELF file for aarch64, as the kernel's binfmt_misc recognises it; F: also inside a chroot.
_MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
_START = (
    "mount -t proc proc /proc && mount -t sysfs -o ro sysfs /sys && mkdir -p /run/sshd && "
    "exec /usr/sbin/sshd -D -e -f /etc/ssh/hdap_config"
)


def missing(qemu: str | None, root: Path) -> str:
    """Return why it cannot be done here; empty where it can."""
    if os.uname().machine != "x86_64":
        return "this machine is no x86_64"
    if os.geteuid():
        return "root is needed for debootstrap, chroot and binfmt_misc"
    if not qemu:
        return "qemu-aarch64-static is not installed (apt-get install qemu-user-static)"
    if not complete(root) and not shutil.which("debootstrap"):
        return "debootstrap is not installed (apt-get install debootstrap)"
    return ""


def complete(root: Path) -> bool:
    return (root / "usr/sbin/sshd").exists() and not (root / "debootstrap").exists()


@contextlib.contextmanager
def registered(qemu: str) -> Iterator[None]:
    """Have the kernel start arm64 programs with that QEMU."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    entry = BINFMT / "hdap-benchmark"
    if entry.exists():
        entry.write_text("-1")
    # The newest entry goes first, so others that the system has do not matter.
    (BINFMT / "register").write_text(f":{entry.name}:M::{_MAGIC}:{qemu}:F")
    try:
        yield
    finally:
        entry.write_text("-1")


def bootstrap(root: Path, suite: str, mirror: str) -> None:
    """Unpack Debian for arm64, unless it is there."""
    if complete(root):
        return
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["debootstrap", "--arch=arm64", "--variant=minbase",
         "--include=openssh-server,python3", suite, str(root), mirror],
        check=True, stdout=sys.stderr,
    )  # fmt: skip


@contextlib.contextmanager
def server(root: Path, folder: Path) -> Iterator[int]:
    """Run the arm64 SSH server; gives its port."""
    shutil.rmtree(root / "root/.hdap", ignore_errors=True)
    port = free_port()
    key = make_key(folder / "id")
    for name in ("hdap_host", "hdap_host.pub"):
        (root / "etc/ssh" / name).unlink(missing_ok=True)
    host = make_key(root / "etc/ssh/hdap_host")
    (root / "etc/ssh/hdap_keys").write_text(key.with_suffix(".pub").read_text())
    (root / "etc/ssh/hdap_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey /etc/ssh/hdap_host\nUsePAM no\n"
        "AuthorizedKeysFile /etc/ssh/hdap_keys\nPidFile none\nStrictModes no\nUseDNS no\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    kind, text = host.with_suffix(".pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {text}\n")
    log = folder / "sshd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child",
             "chroot", str(root), "/bin/sh", "-c", _START],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: b"listening" in log.read_bytes() or process.poll() is not None, 60)
        if process.poll() is not None:
            raise SystemExit(f"the arm64 SSH server did not start: {log.read_text()}")
        yield port
    finally:
        process.kill()
        process.wait()


def settings(folder: Path, port: int) -> Path:
    path = folder / "fleet.toml"
    path.write_text(f"""
[fleet]
name = "arm64"
state = "{folder}/state"
[ssh]
user = "{getpass.getuser()}"
identity = "{folder}/id"
known_hosts = "{folder}/known_hosts"
connect_timeout_s = 60
command_timeout_s = 300
[[devices]]
name = "{NAME}"
host = "127.0.0.1"
port = {port}
[[models]]
name = "resnet20-digits"
path = "builtin:resnet20-digits"
[benchmark]
runs = 3
warmup_runs = 1
warmup_s = 0.0
block_s = 1.0
blocks_min = 2
blocks_max = 2
interval_percent = 1000
time_limit_s = 300
""")
    return path


def hdap(file: Path, *words: str) -> tuple[float, dict[str, Any]]:
    """Run a command of ours; return how long it took and its document."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hdap_tui", "--config", str(file), *words, "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"hdap {' '.join(words)}: status {done.returncode}\n{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return seconds, found


def version_for(qemu: str) -> tuple[str, str]:
    """Return QEMU's version, and that of the ONNX Runtime which runs under it."""
    said = subprocess.check_output([qemu, "--version"], text=True)
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    text = ".".join(found.groups()) if found else "unknown"
    return text, str(own_version()) if found and int(found[1]) >= 10 else "1.22.1"


def report(folder: Path, root: Path, qemu: str, runtime: str | None) -> None:
    emulator, fitting = version_for(qemu)
    wanted = ("devices", "provision", "--onnxruntime", runtime or fitting)
    with server(root, folder) as port:
        file = settings(folder, port)
        begun = time.perf_counter()
        _, planned = hdap(file, *wanted, "--dry-run")
        fetched = time.perf_counter() - begun
        provisioned, document = hdap(file, *wanted, "--yes")
        one = document["devices"][0]
        again, _ = hdap(file, *wanted, "--yes")
        benched, bench = hdap(file, "bench", "resnet20-digits")
        removed, _ = hdap(file, "devices", "provision", "--undo", "--yes")
    measured = bench["measurements"][0]
    megabytes = planned["devices"][0]["push_bytes"] / 1e6
    print(f"an arm64 user space emulated by QEMU {emulator}: {one['machine']}, {one['libc']},")
    print(f"Python {one['python']} without pip; ONNX Runtime {one['onnxruntime']},")
    print(f"{len(one['wheels'])} wheels, {megabytes:.0f} MB")
    print("| what | time |", "|---|---|", sep="\n")
    print(f"| plan, wheels fetched where they were not cached | {fetched:.1f} s |")
    print(f"| provision ({one['state']}) | {provisioned:.1f} s |")
    print(f"| provision again (nothing to do) | {again:.1f} s |")
    print(f"| `hdap bench`, {measured['runs']} runs in 2 blocks | {benched:.1f} s |")
    print(f"| one inference of ResNet-20, emulated | {measured['median_ms']:.0f} ms |")
    print(f"| undo | {removed:.1f} s |")


def main() -> int:
    cache = Path(platformdirs.user_cache_dir("hdap-tui"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=cache / "arm64-bookworm")
    parser.add_argument("--qemu", default=shutil.which("qemu-aarch64-static"))
    parser.add_argument("--onnxruntime", help="version; the newest that runs under that QEMU")
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    arguments = parser.parse_args()
    if reason := missing(arguments.qemu, arguments.root):
        print(f"skipped: {reason}")
        return 0
    qemu = str(Path(arguments.qemu).resolve())
    with registered(qemu), tempfile.TemporaryDirectory() as folder:
        try:
            bootstrap(arguments.root, arguments.suite, arguments.mirror)
        except subprocess.CalledProcessError as error:
            print(f"skipped: debootstrap ended with status {error.returncode}; is there a mirror?")
            return 0
        report(Path(folder), arguments.root, qemu, arguments.onnxruntime)
    return 0


if __name__ == "__main__":
    sys.exit(main())
