"""The lab's process: every device's SSH server, and the socket that faults come through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from engine import files
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.lab.device import Device, load_or_make_key
from hdap_tui.lab.faults import parse
from hdap_tui.lab.layout import (
    Layout,
    holding,
    socket_address,
    update_known_hosts,
)
from hdap_tui.lab.ports import open_ports
from hdap_tui.lab.processes import end_processes
from hdap_tui.lab.profiles import Plan, fingerprint, profiles

ALREADY = "The lab is already running."
"""What a second process for the same folder ends with."""
_REQUEST_LIMIT = 65536


def run(
    layout: Layout, plan: Plan, devices: int, base_port: int | None, end_with: int | None
) -> None:
    """Serve until told to stop, by the control socket, a signal, or the end of process `end_with`.

    Raises UserError where a port is taken or the lab is already running.
    """
    layout.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with holding(layout.lock) as free:
        if not free:
            raise UserError(ALREADY)
        layout.info.unlink(missing_ok=True)
        layout.control.unlink(missing_ok=True)
        # Left over where an earlier lab was killed.
        end_processes(layout.devices)
        _raise_file_limit()
        try:
            asyncio.run(_Lab(layout, plan, devices, base_port).serve(end_with))
        finally:
            layout.info.unlink(missing_ok=True)
            layout.control.unlink(missing_ok=True)
            end_processes(layout.devices)


class _Lab:
    """All devices of one folder."""

    def __init__(self, layout: Layout, plan: Plan, devices: int, base_port: int | None) -> None:
        self._layout = layout
        self._stop = asyncio.Event()
        self._started_at = round(time.time(), 3)
        self._asked = {"devices": devices, "base_port": base_port, "plan": fingerprint(plan)}
        layout.cache.mkdir(exist_ok=True)
        client_key = load_or_make_key(layout.client_key)
        self._devices = {
            profile.name: Device(layout, profile, client_key.convert_to_public())
            for profile in profiles(plan, devices)
        }
        self._listeners = open_ports(layout, list(self._devices), base_port)

    async def serve(self, end_with: int | None) -> None:
        """Open the ports, say so, and stay."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        if end_with is not None:
            _when_ended(end_with, self._stop.set)
        for device in self._devices.values():
            device.start_profile(self._started_at)
            device.serve(self._listeners[device.name])
        update_known_hosts(
            self._layout.known_hosts,
            [(device.port, device.public_key) for device in self._devices.values()],
        )
        files.write(self._layout.info, json.dumps(self._describe(), indent=1) + "\n", 0o600)
        control = await self._open_control()
        try:
            await self._stop.wait()
        finally:
            control.close()
            for device in self._devices.values():
                device.close()

    async def _open_control(self) -> asyncio.Server:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(self._layout.control) as address:
            channel.bind(address)
        self._layout.control.chmod(0o600)
        channel.listen(16)
        return await asyncio.start_unix_server(self._on_request, sock=channel, limit=_REQUEST_LIMIT)

    async def _on_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            request = json.loads(await reader.readline())
            try:
                answer = self._answer(request)
            except UserError as error:
                answer = {"error": str(error), "settings": isinstance(error, SettingsError)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "status":
                faults = {name: one.fault.kind for name, one in self._devices.items()}
                clients = {name: len(one.connections) for name, one in self._devices.items()}
                return self._describe() | {"faults": faults, "clients": clients}
            case "fault":
                fault = parse(str(request.get("kind")), request.get("options") or {})
                device = self._device(request.get("device"))
                try:
                    device.set_fault(fault)
                except OSError as error:
                    raise UserError(
                        f"Port {device.port} of {device.name} cannot be opened again: "
                        f"{error.strerror}."
                    ) from error
                return {}
            case "drift":
                percent = request.get("percent")
                if not isinstance(percent, int | float) or not -90 <= percent <= 1000:
                    raise SettingsError("A drift is between -90 and 1000 per cent.")
                self._device(request.get("device")).drift(percent)
                return {}
            case other:
                raise SettingsError(f"The lab does not know how to {other!r}.")

    def _device(self, name: object) -> Device:
        device = self._devices.get(str(name))
        if device is None:
            near = get_close_matches(str(name), self._devices, 1)
            names = list(self._devices)
            hint = f"did you mean {near[0]}?" if near else f"it has {names[0]} to {names[-1]}."
            raise SettingsError(f"The lab has no device {name!r}: {hint}")
        return device

    def _describe(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "asked": self._asked,
            "devices": [device.describe() for device in self._devices.values()],
        }


def _when_ended(pid: int, stop: Callable[[], None]) -> None:
    """Call `stop` when another process ends, however it ends; at once where it has already."""
    loop = asyncio.get_running_loop()
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        stop()
        return

    def ended() -> None:
        loop.remove_reader(watch)
        os.close(watch)
        stop()

    loop.add_reader(watch, ended)


def _raise_file_limit() -> None:
    """Each device needs a few open files: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
