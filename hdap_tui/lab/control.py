"""Start, stop and ask the emulated lab, and make its devices fail.

The lab is a process of its own. It answers on a socket in its folder; a lock that it holds says
that it is alive, so a process killed in any way never leaves a lab that seems to run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import hdap_tui
from engine import files
from hdap_tui.errors import SettingsError, TimedOutError, UserError
from hdap_tui.lab.layout import Layout, holder, socket_address
from hdap_tui.lab.processes import end_processes
from hdap_tui.lab.profiles import Plan, fingerprint, profiles, read_plan

_PATIENCE_S = 20.0
_started: dict[Path, subprocess.Popen[bytes]] = {}
"""Labs that this process started, so that it can collect them when they end."""


@dataclass(frozen=True, kw_only=True)
class LabDevice:
    """One emulated device, as a client needs to know it."""

    name: str
    host: str
    port: int
    user: str
    home: Path
    host_key_sha256: str
    """As OpenSSH shows it: "SHA256:" and base64."""
    profile: Path
    group: str
    """Name of the group that it was made in: what a clustering should find."""
    fault: str = "none"
    clients: int = 0
    """Connections to it now."""


@dataclass(frozen=True, kw_only=True)
class LabInfo:
    """A running lab."""

    state: Path
    pid: int
    started_at: float
    """Unix time that the schedules count from."""
    identity: Path
    """Private key that every device accepts."""
    known_hosts: Path
    devices: tuple[LabDevice, ...]

    def device(self, name: str) -> LabDevice:
        """Return one device; raises KeyError where there is none of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)


def up(
    state: Path,
    devices: int = 12,
    base_port: int | None = None,
    *,
    plan: Plan | Path | None = None,
    detach: bool = True,
    end_with: int | None = None,
    timeout_s: float = _PATIENCE_S,
) -> LabInfo:
    """Start a lab and return when every device listens; one that runs already is left as it is.

    The first device listens on `base_port`, the others follow; without one, devices keep the
    ports that they had in this folder, or get free ones. A lab that is not detached ends with
    the process that called, `end_with` names another process to end with.

    Raises UserError where a port is taken, where the extra `lab` is not installed, where a lab
    of another make-up runs in this folder, or where it cannot start; SettingsError for a wrong
    plan; TimedOutError where it is not up in time.
    """
    layout = Layout.of(state)
    if importlib.util.find_spec("asyncssh") is None:
        raise UserError(
            "The emulated lab needs asyncssh, which is not installed: "
            "install it with  pip install 'hdap-tui[lab]'."
        )
    make_up = read_plan(plan) if isinstance(plan, Path) else plan or Plan()
    profiles(make_up, devices)
    asked = {"devices": devices}
    if base_port is not None:
        asked["base_port"] = base_port
    if plan is not None:
        asked["plan"] = fingerprint(make_up)
    if not detach:
        end_with = os.getpid()

    def start() -> subprocess.Popen[bytes]:
        return _start(layout, make_up, devices, base_port, end_with)

    return _wait_until_up(layout, asked, start, timeout_s)


def down(state: Path, timeout_s: float = _PATIENCE_S) -> bool:
    """Stop the lab and all processes of its devices; says whether one was running.

    Raises TimedOutError where it cannot be stopped.
    """
    layout = Layout.of(state)
    pid = holder(layout.lock)
    if pid is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if _wait_until_free(layout, timeout_s / 2):
                break
        else:
            raise TimedOutError(f"The lab in {layout.folder} does not end; see {layout.log}.")
    if layout.folder.is_dir():
        end_processes(layout.devices)
        layout.info.unlink(missing_ok=True)
        layout.control.unlink(missing_ok=True)
    child = _started.pop(layout.state, None)
    if child is not None:
        child.wait(timeout_s)
    return pid is not None


def status(state: Path) -> LabInfo | None:
    """Return the running lab with its faults, or None where none answers."""
    layout = Layout.of(state)
    try:
        return _info(layout, _ask(layout, {"do": "status"}))
    except _NotAnsweringError:
        return None


def fault(state: Path, device: str, kind: str, **options: Any) -> None:
    """Make a device fail in one of the ways of `faults.Fault`, from now on; "none" mends it.

    Options are that fault's: `after_s`, `delay_s`, `style`, `times`. It is in force on return.
    Raises SettingsError for a kind, option or device that there is not.
    """
    _ask(Layout.of(state), {"do": "fault", "device": device, "kind": kind, "options": options})


def drift(state: Path, device: str, percent: float = 25.0) -> None:
    """Make a device slower by a step, from now until the lab ends; below zero, faster.

    It takes the place of the plan's steps and of an earlier drift, so zero mends the device.
    Raises SettingsError for a device that there is not.
    """
    _ask(Layout.of(state), {"do": "drift", "device": device, "percent": percent})


def _start(
    layout: Layout, plan: Plan, devices: int, base_port: int | None, end_with: int | None
) -> subprocess.Popen[bytes]:
    layout.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(layout.plan, msgspec.json.encode(plan), 0o600)
    command = [sys.executable, "-m", "hdap_tui.lab", str(layout.state), f"--devices={devices}"]
    command.append(f"--plan={layout.plan}")
    if base_port is not None:
        command.append(f"--base-port={base_port}")
    if end_with is not None:
        command.append(f"--end-with={end_with}")
    # The package may lie beside the working folder rather than be installed.
    package = str(Path(hdap_tui.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with layout.log.open("wb") as log:
        child = _started[layout.state] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
    return child


def _wait_until_up(
    layout: Layout,
    asked: Mapping[str, Any],
    start: Callable[[], subprocess.Popen[bytes]],
    timeout_s: float,
) -> LabInfo:
    deadline = time.monotonic() + timeout_s
    child: subprocess.Popen[bytes] | None = None
    while True:
        try:
            answer = _ask(layout, {"do": "status"})
        except _NotAnsweringError:
            if holder(layout.lock) is None:
                if child is None:
                    child = start()
                elif child.poll() is not None:
                    raise UserError(_why_it_ended(layout)) from None
            if time.monotonic() > deadline:
                if child is not None:
                    child.kill()
                    child.wait()
                raise TimedOutError(
                    f"The lab was not up after {timeout_s:g} s; see {layout.log}."
                ) from None
            time.sleep(0.02)
        else:
            _check_same(layout, answer, asked)
            return _info(layout, answer)


def _check_same(layout: Layout, answer: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    running = answer["asked"]
    if any(running[key] != value for key, value in asked.items()):
        raise UserError(
            f"A lab of {running['devices']} devices with other settings is already running in "
            f"{layout.state}: stop it first with  hdap lab down."
        )


def _why_it_ended(layout: Layout) -> str:
    lines = layout.log.read_text(errors="replace").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[-1] if told else f"The lab ended before it was up; see {layout.log}."


def _wait_until_free(layout: Layout, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while holder(layout.lock) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class _NotAnsweringError(UserError):
    """No lab answers in this folder."""


def _ask(layout: Layout, request: Mapping[str, Any]) -> dict[str, Any]:
    """Put one question to the running lab; raises its objections as errors of the operator."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(_PATIENCE_S)
    try:
        with channel, socket_address(layout.control) as address:
            channel.connect(address)
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        raise _NotAnsweringError(
            f"No emulated lab is running in {layout.state}: start one with  hdap lab up."
        ) from error
    if "error" in answer:
        raise (SettingsError if answer.get("settings") else UserError)(answer["error"])
    return dict(answer)


def _info(layout: Layout, answer: Mapping[str, Any]) -> LabInfo:
    return LabInfo(
        state=layout.state,
        pid=answer["pid"],
        started_at=answer["started_at"],
        identity=layout.client_key,
        known_hosts=layout.known_hosts,
        devices=tuple(
            LabDevice(
                name=one["name"],
                host=one["host"],
                port=one["port"],
                user=one["user"],
                home=Path(one["home"]),
                host_key_sha256=one["host_key_sha256"],
                profile=Path(one["profile"]),
                group=one["group"],
                fault=answer["faults"][one["name"]],
                clients=answer["clients"][one["name"]],
            )
            for one in answer["devices"]
        ),
    )
