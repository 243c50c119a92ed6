"""One emulated device: its port, host key, user, home folder, and the fault in force."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import socket
import struct
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import asyncssh
import msgspec

from hdap_tui.lab import processes, shell
from hdap_tui.lab.faults import RECONNECT, Fault
from hdap_tui.lab.layout import HOST, Layout
from hdap_tui.lab.profiles import Profile, Step, write_profile
from hdap_tui.lab.sftp import HomeFiles

KEY_TYPE = "ssh-ed25519"
_LOGIN_TIMEOUT_S = 30
_CUT = struct.pack("ii", 1, 0)
"""SO_LINGER of zero: the client sees a reset, as from a device that lost its power."""


class Device:
    """One SSH server. Everything of it that lasts lies in its folder."""

    def __init__(self, layout: Layout, profile: Profile, client_key: Any) -> None:
        self.name = profile.name
        self.user = profile.name
        self.profile = profile
        self.fault = Fault()
        self.folder = layout.device(self.name)
        self.profile_path = layout.profile(self.name)
        self.home = self.folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        shell.install_python(self.home)
        self.environment = shell.environment(self.home, self.user, self.profile_path, layout.cache)
        self.host_key = load_or_make_key(self.folder / "host_key")
        self._other_key: Any = None
        self._client_key = client_key
        self.connections: WeakSet[Any] = WeakSet()
        """Clients that are connected now."""
        self._doomed: WeakSet[Any] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._listener: socket.socket | None = None

    @property
    def port(self) -> int:
        """Port that it listens on, or listened on before it refused."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def describe(self) -> dict[str, Any]:
        """Return what others need to know to connect, and how it stands."""
        return {
            "name": self.name,
            "host": HOST,
            "port": self.port,
            "user": self.user,
            "home": str(self.home),
            "host_key_sha256": self.host_key.get_fingerprint(),
            "profile": str(self.profile_path),
            "group": self.profile.group,
        }

    @property
    def public_key(self) -> str:
        """Host key as a line of known hosts has it: type and base64."""
        exported: bytes = self.host_key.export_public_key("openssh")
        return " ".join(exported.decode().split()[:2])

    def serve(self, listener: socket.socket) -> None:
        """Accept clients from now on."""
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, cut every connection, forget what was waiting."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
        self._cut_all()
        for task in self._tasks:
            task.cancel()

    # Profile

    def start_profile(self, started_at: float) -> None:
        """Write the profile with its schedule counted from now on."""
        self.profile = msgspec.structs.replace(self.profile, started_at=started_at)
        write_profile(self.profile, self.profile_path)

    def drift(self, percent: float) -> None:
        """Make it slower by a step from now on, in place of all other steps."""
        now = round(time.time() - self.profile.started_at, 3)
        past = (
            msgspec.structs.replace(one, until_s=min(one.until_s or now, now))
            if isinstance(one, Step)
            else one
            for one in self.profile.schedule
        )
        schedule = (*past, Step(at_s=now, percent=percent))
        self.profile = msgspec.structs.replace(self.profile, schedule=schedule)
        write_profile(self.profile, self.profile_path)

    # Faults

    def set_fault(self, fault: Fault) -> None:
        """Replace the fault in force.

        Raises OSError where a port that was closed has been taken by somebody else meanwhile.
        """
        before = self.fault.kind
        assert self._listener is not None
        if before == "refuse" and fault.kind != "refuse":
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
        if before != "refuse" and fault.kind == "refuse":
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            # It stays bound, and clients are refused.
            self._listener.shutdown(socket.SHUT_RDWR)
        if "full-disk" in (before, fault.kind) and before != fault.kind:
            processes.allow_writing(self.folder, allowed=before == "full-disk")
        if fault.kind == "host-key-changed":
            self._other_key = asyncssh.generate_private_key(KEY_TYPE)
        self.fault = fault
        if fault.kind in RECONNECT:
            self._cut_all()
        self._doomed.clear()
        if fault.kind == "drop":
            for connection in list(self.connections):
                self.started(connection)
        self._changed.set()
        self._changed = asyncio.Event()

    def strike(self, kind: str) -> Fault | None:
        """Use the fault once if it is of this kind; the last of its times ends it."""
        fault = self.fault
        if fault.kind != kind:
            return None
        if fault.times is not None:
            left = fault.times - 1
            self.fault = msgspec.structs.replace(fault, times=left) if left else Fault()
        return fault

    def started(self, connection: Any) -> None:
        """Doom a connection that began a command or transfer, where the fault is to drop it."""
        if self.fault.kind != "drop" or connection in self._doomed:
            return
        self._doomed.add(connection)
        asyncio.get_running_loop().call_later(self.fault.after_s, self._cut_doomed, connection)

    async def pace(self, channel: Any) -> None:
        """Wait before an answer for as long as the fault wants it.

        Raises ConnectionResetError where the client goes while nothing answers.
        """
        await self._hang("hang-after-auth", channel)
        if self.fault.kind == "slow":
            await asyncio.sleep(self.fault.delay_s)

    async def pace_login(self) -> None:
        """Wait before a login for as long as the fault wants it."""
        if self.fault.kind == "slow":
            await asyncio.sleep(self.fault.delay_s)

    async def _hang(self, kind: str, channel: Any = None) -> None:
        while self.fault.kind == kind:
            waits = [asyncio.create_task(self._changed.wait())]
            if channel is not None:
                waits.append(asyncio.create_task(channel.wait_closed()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if channel is not None and waits[1].done():
                    raise ConnectionResetError
            finally:
                for wait in waits:
                    wait.cancel()

    def _cut_doomed(self, connection: Any) -> None:
        if connection not in self._doomed:
            return  # the fault was cleared, or set anew, in between
        self._doomed.discard(connection)
        # Only one that is still there counts.
        if connection in self.connections and _is_there(connection) and self.strike("drop"):
            _cut(connection)

    def _cut_all(self) -> None:
        for connection in list(self.connections):
            _cut(connection)

    # Connections

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            task = asyncio.create_task(self._converse(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _converse(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            await self._hang("hang")
            key = self._other_key if self.fault.kind == "host-key-changed" else self.host_key
            await asyncssh.run_server(
                client,
                server_factory=functools.partial(_Login, self, self._client_key),
                server_host_keys=[key],
                process_factory=functools.partial(_serve, self),
                sftp_factory=functools.partial(HomeFiles, device=self),
                encoding=None,
                line_editor=False,
                allow_pty=False,
                agent_forwarding=False,
                gss_host=None,
                login_timeout=_LOGIN_TIMEOUT_S,
            )
        except (OSError, asyncssh.Error, TimeoutError):
            client.close()  # a client that does not get in is its own affair
        except asyncio.CancelledError:
            client.close()
            raise


class _Login(asyncssh.SSHServer):  # type: ignore[misc]
    """Lets in one user with one key."""

    def __init__(self, device: Device, client_key: Any) -> None:
        self._device = device
        self._client_key = client_key
        self._connection: Any = None

    def connection_made(self, conn: Any) -> None:
        """Remember the connection, so that it can be cut."""
        self._connection = conn
        self._device.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._device.connections.discard(self._connection)

    async def begin_auth(self, username: str) -> bool:
        """Everybody has to show a key."""
        await self._device.pace_login()
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys only."""
        return True

    def validate_public_key(self, username: str, key: Any) -> bool:
        """Only this device's user, only the lab's key."""
        offered: bytes = key.public_data
        expected: bytes = self._client_key.public_data
        return username == self._device.user and secrets.compare_digest(offered, expected)


async def _serve(device: Device, session: Any) -> None:
    await shell.serve(session, device)


def _is_there(connection: Any) -> bool:
    """Say whether the client is still there: that it has gone may not have been noticed yet."""
    raw = connection.get_extra_info("socket")
    try:
        with socket.socket(fileno=os.dup(raw.fileno())) as same:
            return same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        return False


def _cut(connection: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        raw = connection.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT)
    connection.abort()


def load_or_make_key(path: Path) -> Any:
    """Read an ed25519 private key, or make one that only its owner can read."""
    if path.exists():
        return asyncssh.read_private_key(path)
    key = asyncssh.generate_private_key(KEY_TYPE)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.export_private_key("openssh"))
    return key
