"""Commands on an emulated device: `sh -c` in a session of its own, as OpenSSH runs them.

A process outlives its connection: only its pipes are closed. What it was started with says which
device it belongs to, so that it is found when the lab ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import asyncssh

from hdap_tui.lab.processes import MARK

if TYPE_CHECKING:
    from hdap_tui.lab.device import Device

_CHUNK = 65536
_SITE = Path(__file__).parent / "device_site"
_PASSED_ON = ("LD_LIBRARY_PATH", "TZ")
"""What Python may need to start where it lives; nothing else of the lab's environment goes on."""
_FULL = """trap '' XFSZ; ulimit -S -f 0; exec sh -c "$1" """
_USUAL_PATH = "/usr/local/bin:/usr/bin:/bin"


def environment(home: Path, user: str, profile: Path, cache: Path) -> dict[str, str]:
    """Environment of every process of one device."""
    own = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return own | {
        "HOME": str(home),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/sh",
        "PATH": f"{home / '.lab' / 'bin'}:{os.environ.get('PATH') or _USUAL_PATH}",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "PYTHONPATH": str(_SITE),
        MARK: str(profile),
        "HDAP_LAB_CACHE": str(cache),
    }


def install_python(home: Path) -> None:
    """Give a device its `python3`: the interpreter that the lab itself runs in."""
    path = home / ".lab" / "bin" / "python3"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    path.chmod(0o755)


async def serve(session: Any, device: Device) -> None:
    """Run the command of one SSH session and answer with its output and exit status."""
    device.started(session.channel.get_connection())
    try:
        await device.pace(session)
    except ConnectionError:
        return
    if session.command is None or session.subsystem is not None:
        _refuse(session, "No interactive shell and no subsystem but sftp; give a command.")
        return
    try:
        child = _Child(session.command, device)
    except OSError as error:
        _refuse(session, f"No process can be started: {error.strerror}.")
        return
    answered = asyncio.create_task(_answer(session, child, device))
    gone = asyncio.create_task(session.wait_closed())
    try:
        await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (answered, gone):
            task.cancel()
        await asyncio.gather(answered, gone, return_exceptions=True)
        child.close_pipes()


def _refuse(session: Any, sentence: str) -> None:
    with contextlib.suppress(OSError):
        session.stderr.write(f"Emulated device: {sentence}\n".encode())
        session.exit(255)


async def _answer(session: Any, child: _Child, device: Device) -> None:
    """Carry the three streams, then tell how the command ended, once nothing more can come."""
    feeding = asyncio.create_task(_feed(session, child))
    try:
        await asyncio.gather(
            _drain(child.stdout, session.stdout, session, device, spoilt=True),
            _drain(child.stderr, session.stderr, session, device),
        )
        status = await asyncio.shield(child.ended)
    finally:
        # Awaited, so that it has let go of its pipe's number before the pipe is closed.
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    with contextlib.suppress(OSError):
        if status < 0:
            session.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            session.exit(status)


class _Child:
    """A started process, its pipes, and a future that its exit status comes to."""

    def __init__(self, command: str, device: Device) -> None:
        arguments = [_FULL, "sh", command] if device.fault.kind == "full-disk" else [command]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=device.home,
            env=device.environment,
            start_new_session=True,
        )
        self.stdin, self.stdout, self.stderr = map(
            _pipe, (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._watch = os.pidfd_open(self._process.pid)
        loop.add_reader(self._watch, self._collect)

    def _collect(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watch)
        os.close(self._watch)
        self.ended.set_result(self._process.wait())

    def send(self, name: str) -> None:
        """Signal the whole group, as OpenSSH does for a user who is not root."""
        with contextlib.suppress(KeyError, ProcessLookupError):
            os.killpg(self._process.pid, signal.Signals[f"SIG{name}"])

    def close_pipes(self) -> None:
        """Let go of the process: it lives on, and sees its streams closed."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # all three were asked for
    os.set_blocking(pipe.fileno(), False)
    return pipe


async def _feed(session: Any, child: _Child) -> None:
    """Client to process, its end of input and its signals too."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await session.stdin.read(_CHUNK)
            except asyncssh.SignalReceived as received:
                child.send(received.signal)
                continue
            except (asyncssh.BreakReceived, asyncssh.TerminalSizeChanged):
                continue
            if not data:
                break
            left = memoryview(data)
            while left:
                try:
                    left = left[os.write(child.stdin.fileno(), left) :]
                except BlockingIOError:
                    await _ready(child.stdin, loop.add_writer, loop.remove_writer)
    child.stdin.close()


async def _drain(
    pipe: IO[bytes], writer: Any, session: Any, device: Device, spoilt: bool = False
) -> None:
    """Process to client, until its end."""
    loop = asyncio.get_running_loop()
    garbled = spoilt and device.strike("garbage")
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = os.read(pipe.fileno(), _CHUNK)
            except BlockingIOError:
                await _ready(pipe, loop.add_reader, loop.remove_reader)
                continue
            if not data:
                break
            if not garbled:
                await device.pace(session)
                writer.write(data)
                await writer.drain()
            await asyncio.sleep(0)
        if garbled:
            writer.write(garbled.garbage)
            await writer.drain()


async def _ready(
    pipe: IO[bytes], add: Callable[..., object], remove: Callable[[int], object]
) -> None:
    descriptor = pipe.fileno()
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not waiting.done():
            waiting.set_result(None)

    add(descriptor, wake)
    try:
        await waiting
    finally:
        remove(descriptor)
