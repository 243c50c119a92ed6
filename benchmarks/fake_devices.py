"""Fake devices: SSH servers in one process that answer what a device's shell would.

They run no command. Files are "there" already, and a benchmark is a recorded result of the real
runner that comes to an end after a given time, on all of them at once. Started by
`benchmarks.servers.fake`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import asyncssh

from hdap_tui.ssh import receiving, remote

_MARK = re.compile(r"hdap:[0-9a-f]{16}")


class Device:
    """What one fake device remembers."""

    def __init__(self, lines: list[bytes], seconds: float) -> None:
        self._lines, self._seconds = lines, seconds
        self._began: dict[str, float] = {}
        # Until the end, a runner has told no more than what it is going to do.
        first = next((n for n, line in enumerate(lines) if b'"block"' in line), len(lines))
        self._early = b"".join(lines[:first])
        self._whole = b"".join(lines)

    def answer(self, command: str) -> bytes:
        """Return what a command prints."""
        found = _MARK.search(command)
        if found is None:
            return b""
        words = shlex.split(command.rpartition(" hdap ")[2])
        return f"\n{found[0]}\n".encode() + self._script(command, words)

    def _script(self, command: str, words: list[str]) -> bytes:
        if _CLAIM in command:
            lines = [f"{part} there 0 -" for part in words[4::3]]
            return "\n".join(["free / 1 1 9999999 1% /", *lines, ""]).encode()
        if _START in command:
            self._began[words[0]] = time.monotonic()
        elif _FETCH in command:
            if words[0] not in self._began:
                return b"gone 0\n"
            ended = time.monotonic() - self._began[words[0]] >= self._seconds
            text = self._whole if ended else self._early
            state = "ended" if ended else "running"
            return f"{state} {len(text)}\n".encode() + text[int(words[1]) - 1 :]
        return b""


def _quoted(script: str) -> str:
    return shlex.quote(script)[1:-1]


_CLAIM = _quoted(receiving._CLAIM)
_START = _quoted(remote._START)
_FETCH = _quoted(remote._FETCH)


async def main(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    lines = []
    if request["results"]:
        lines = Path(request["results"]).read_bytes().splitlines(keepends=True)
    authorized = asyncssh.read_authorized_keys(str(folder / "id.pub"))
    known = []
    for port in request["ports"]:
        key = asyncssh.generate_private_key("ssh-ed25519")
        public = key.export_public_key().decode().split()
        known.append(f"[127.0.0.1]:{port} {public[0]} {public[1]}")
        device = Device(lines, request["seconds"])

        async def serve(process: Any, device: Device = device) -> None:
            if process.stdin is not None and _START in (process.command or ""):
                await process.stdin.read()
            process.stdout.write(device.answer(process.command or ""))
            process.exit(0)

        await asyncssh.listen(
            "127.0.0.1", port, server_host_keys=[key], authorized_client_keys=authorized,
            process_factory=serve, encoding=None, backlog=64, login_timeout=120,
            compression_algs=None, keepalive_interval=0,
        )  # fmt: skip
    (folder / "known_hosts").write_text("\n".join(known) + "\n")
    gc.freeze()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    from hdap_tui.ssh.limits import allow_connections

    asked = json.loads(Path(sys.argv[1]).read_text())
    allow_connections(2 * len(asked["ports"]))
    asyncio.run(main(asked))
