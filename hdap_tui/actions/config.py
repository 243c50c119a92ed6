"""The settings: show them, check them."""

from __future__ import annotations

from typing import Any

import msgspec

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode
from hdap_tui.figures import count

_SECTIONS = (
    "fleet", "ssh", "benchmark", "watch", "clusters", "drift", "compression", "recipes", "deploy",
    "lab",
)  # fmt: skip


def show(context: Context) -> Outcome:
    """Show every setting in force, defaults included."""
    settings = context.settings
    sections: dict[str, Any] = {
        name: msgspec.to_builtins(getattr(settings, name)) for name in _SECTIONS
    }
    devices = [
        {"name": d.name, "host": d.host, "port": d.port, "user": d.user, "emulated": d.emulated}
        for d in settings.devices
    ]
    rows = [(f"{section}.{key}", _said(value)) for section, values in sections.items()
            for key, value in values.items()]  # fmt: skip
    return Outcome(
        data={
            "path": str(settings.path),
            "state": str(settings.state_dir),
            "database": str(settings.database),
            "settings": sections,
            "devices": devices,
            "models": [{"name": m.name, "probe": m.probe} for m in settings.models],
        },
        table=Table(("key", "value"), tuple(rows), title=str(settings.path)),
        text=f"{count(len(devices), 'device')}; state in {settings.state_dir}",
    )


def check(context: Context) -> Outcome:
    """Check the settings file, and that what it names exists."""
    settings = context.settings
    missing = list(settings.missing())
    return Outcome(
        data={"path": str(settings.path), "valid": not missing, "problems": missing},
        text="\n".join(missing)
        or f"{settings.path}: {count(len(settings.devices), 'device')}, no mistake.",
        exit_code=ExitCode.USAGE if missing else ExitCode.DONE,
    )


def _said(value: Any) -> str:
    return msgspec.json.encode(value).decode()
