"""The emulated lab: start it, stop it, look at it, break it."""

from __future__ import annotations

import time
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import RefusedError
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.profiles import Plan


def up(context: Context, devices: int | None = None, foreground: bool = False) -> Outcome:
    """Start the lab that the settings describe; one that runs already is left as it is."""
    settings = context.settings
    info = start(context, devices or settings.lab.devices)
    if foreground:
        context.reporter.noted("lab", f"{len(info.devices)} emulated devices; Ctrl-C stops them.")
        try:
            while not context.cancelled() and control.status(settings.state_dir):
                time.sleep(0.5)
        finally:
            control.down(settings.state_dir)
    return _outcome(info)


def start(context: Context, devices: int, end_with: int | None = None) -> LabInfo:
    """Start the lab with the make-up of the settings' section [lab]."""
    lab = context.settings.lab
    plan = Plan(
        seed=lab.seed,
        step_at_s=lab.drift_after_s or None,
        step_percent=lab.drift_percent,
    )
    return control.up(
        context.settings.state_dir,
        devices,
        lab.base_port or None,
        plan=plan,
        end_with=end_with,
    )


def down(context: Context, yes: bool = False) -> Outcome:
    """Stop the lab and every process of its devices."""
    info = control.status(context.settings.state_dir)
    names = [device.name for device in info.devices] if info else []
    if info and not yes and not context.confirm("Stop the emulated lab?", names):
        raise RefusedError("The lab goes on.")
    stopped = control.down(context.settings.state_dir)
    text = "The emulated lab is stopped." if stopped else "No emulated lab was running."
    return Outcome(data={"stopped": stopped}, text=text)


def status(context: Context) -> Outcome:
    """Show the running lab with its faults."""
    info = control.status(context.settings.state_dir)
    if info is None:
        return Outcome(
            data={"running": False, "devices": []},
            text='No emulated lab is running; "hdap lab up" starts one.',
        )
    return _outcome(info)


def fault(context: Context, device: str, kind: str) -> Outcome:
    """Make an emulated device fail in a chosen way from now on, or mend it."""
    control.fault(context.settings.state_dir, device, kind)
    text = f"{device} is mended." if kind == "none" else f"{device} now fails: {kind}."
    return Outcome(data={"device": device, "fault": kind, "emulated": True}, text=text)


def drift(context: Context, device: str, percent: float = 25.0) -> Outcome:
    """Make an emulated device slower from now on."""
    control.drift(context.settings.state_dir, device, percent)
    return Outcome(
        data={"device": device, "percent": percent, "emulated": True},
        text=f"{device} (emulated) is {percent:g} % slower from now on.",
    )


def _outcome(info: LabInfo) -> Outcome:
    devices: list[dict[str, Any]] = [
        {
            "name": d.name,
            "host": d.host,
            "port": d.port,
            "user": d.user,
            "host_key": d.host_key_sha256,
            "group": d.group,
            "fault": d.fault,
            "emulated": True,
        }
        for d in info.devices
    ]
    rows = tuple(
        (d.name, f"{d.host}:{d.port}", "emulated", d.group, "" if d.fault == "none" else d.fault)
        for d in info.devices
    )
    return Outcome(
        data={"running": True, "pid": info.pid, "devices": devices},
        table=Table(("device", "address", "", "group", "fault"), rows),
    )
