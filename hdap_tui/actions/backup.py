"""Put all that has been recorded of a fleet into one file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from hdap_tui import backup as archive
from hdap_tui.context import Context, Outcome
from hdap_tui.figures import count


def backup(context: Context, file: Path | None = None) -> Outcome:
    """Write a backup of the database, known hosts, models and jobs, while anything goes on."""
    settings = context.settings
    named = f"{settings.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz"
    target = (file or Path(named)).expanduser().absolute()
    if target.is_dir():
        target /= named
    found = archive.write(settings, target)
    size = target.stat().st_size
    return Outcome(
        data={"file": str(target), "bytes": size, "files": found},
        text=f"{target}: {count(len(found), 'file')}, {size / 1e6:.1f} MB.",
    )
