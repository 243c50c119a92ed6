"""Check this machine, the settings, the database and the terminal."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, UserError
from hdap_tui.figures import count

_PACKAGES = (
    "textual", "paramiko", "sqlite-utils", "numpy", "scikit-learn", "onnxruntime", "onnx",
    "torch", "torch-pruning",
)  # fmt: skip


def doctor(context: Context) -> Outcome:
    """Run every check; one that fails says what would mend it."""
    checks: tuple[tuple[str, Callable[[Context], str]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("settings", _settings),
        ("state folder", _state),
        ("database", _database),
        ("terminal", _terminal),
    )
    found = []
    for name, check in checks:
        try:
            found.append((name, True, check(context)))
        except (UserError, OSError) as error:
            found.append((name, False, str(error)))
    rows = tuple(("ok" if good else "WRONG", name, text) for name, good, text in found)
    return Outcome(
        data={"checks": [{"name": n, "ok": good, "text": t} for n, good, t in found]},
        table=Table(("", "check", "found"), rows),
        exit_code=ExitCode.DONE if all(good for _, good, _ in found) else ExitCode.FAILED,
    )


def _python(_context: Context) -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} cores"


def _packages(_context: Context) -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError as error:
            raise UserError(f'{name} is not installed; run "make setup".') from error
    return ", ".join(found)


def _settings(context: Context) -> str:
    settings = context.settings
    missing = list(settings.missing())
    if missing:
        raise UserError(" ".join(missing))
    emulated = sum(d.emulated for d in settings.devices)
    kind = f", {emulated} of them emulated" if emulated else ""
    return f"{settings.path}: {count(len(settings.devices), 'device')}{kind}"


def _state(context: Context) -> str:
    folder = context.settings.state_dir
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: no permission to write there.")
    free = shutil.disk_usage(existing).free / 1e9
    if free < 1:
        raise UserError(f"{existing}: only {free:.1f} GB free; measurements and models need room.")
    return f"{folder}, {free:.0f} GB free"


def _database(context: Context) -> str:
    path: Path = context.settings.database
    if not path.exists():
        return f"{path}: not there yet; the first sweep makes it"
    broken = context.store.check()
    if broken:
        raise UserError(f"{path}: {broken}; put a backup back in its place.")
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, intact"


def _terminal(_context: Context) -> str:
    if not sys.stdout.isatty():
        return "no terminal: the command line works, the dashboard needs one"
    size = shutil.get_terminal_size()
    if os.environ.get("TERM", "dumb") == "dumb":
        raise UserError("TERM is dumb: the dashboard needs a real terminal.")
    if size.columns < 80 or size.lines < 24:
        raise UserError(f"{size.columns}x{size.lines}: the dashboard wants 80x24 at least.")
    return f"{size.columns}x{size.lines}, TERM={os.environ.get('TERM')}"
