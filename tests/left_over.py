"""What must be gone once something has ended, however it ended: on this side and on the devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sshd import Sshd, environment, processes, sessions


@dataclass(frozen=True)
class _Own:
    """What this process holds."""

    threads: frozenset[threading.Thread]
    files: Counter[str]
    children: frozenset[int]

    @classmethod
    def now(cls) -> _Own:
        targets: Counter[str] = Counter()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                targets[os.readlink(f"/proc/self/fd/{name}")] += 1
        me = os.getpid()
        # The servers are the test's own, and a restarted one is another process.
        children = (p.pid for p in processes() if p.parent == me and "/sshd " not in p.command)
        return cls(frozenset(threading.enumerate()), targets, frozenset(children))


@dataclass(frozen=True)
class Watched:
    """Where to look for what was left over."""

    homes: tuple[Path, ...]
    servers: tuple[Sshd, ...] = ()
    state: Path | None = None
    """Folder of the fleet's database, with the locks."""
    sessions: dict[str, int] = field(default_factory=dict)
    own: _Own = field(default_factory=_Own.now)

    def left_over(self) -> list[str]:
        """Return a line for everything that was not there before and should have gone."""
        return [*self._here(), *self.on_devices(), *self._locks()]

    def on_devices(self) -> list[str]:
        """Return a line for everything that is left on a device."""
        return [*self.running(), *self._job_folders()]

    def _here(self) -> Iterator[str]:
        now = _Own.now()
        for thread in now.threads - self.own.threads:
            yield f"thread {thread.name}"
        for target, count in (now.files - self.own.files).items():
            if "/.onnxruntime/" in target:
                continue  # ONNX Runtime keeps a database of its own, from its first use to the end
            yield f"{count} times open: {target}"
        for pid in now.children - self.own.children:
            yield f"process {pid}: {_command(pid)}"

    def running(self) -> list[str]:
        """Return a line for every process that is left on a device, detached or not."""
        return list(self._running())

    def _running(self) -> Iterator[str]:
        wanted = {f"HOME={home}".encode(): home for home in self.homes}
        everything = processes()
        for one in everything:
            if one.command:
                for home in (wanted[word] for word in environment(one.pid) if word in wanted):
                    yield f"{home}: process {one.pid}: {one.command}"
        for server in self.servers:
            extra = len(sessions(server, everything)) - self.sessions.get(server.name, 0)
            if extra > 0:
                yield f"{server.name}: {extra} more processes of connections"

    def _job_folders(self) -> Iterator[str]:
        for home in self.homes:
            for folder in (home / ".hdap" / "jobs").glob("*"):
                yield f"{folder}: {sorted(file.name for file in folder.iterdir())}"

    def _locks(self) -> Iterator[str]:
        if self.state is None:
            return
        for path in (*self.state.glob("slots/*"), *self.state.glob("*.lock")):
            with path.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield f"locked: {path}"


def watch(
    homes: Iterable[Path], servers: Iterable[Sshd] = (), state: Path | None = None
) -> Watched:
    """Note what there is now, to be compared with later."""
    servers, everything = tuple(servers), processes()
    return Watched(
        (*homes, *(server.home for server in servers)),
        servers,
        state,
        {server.name: len(sessions(server, everything)) for server in servers},
    )


@contextlib.contextmanager
def nothing_left(
    homes: Iterable[Path] = (),
    servers: Iterable[Sshd] = (),
    state: Path | None = None,
    seconds: float = 5.0,
) -> Iterator[Watched]:
    """Fail where something that was begun inside is left over a little later."""
    watched = watch(homes, servers, state)
    yield watched
    deadline = time.monotonic() + seconds
    while left := watched.left_over():
        assert time.monotonic() < deadline, "\n".join(["left over:", *left])
        time.sleep(0.05)


def _command(pid: int) -> str:
    return next((one.command for one in processes() if one.pid == pid), "")
