"""The whole fleet's record in one file, taken while anything may go on.

The database is copied by SQLite itself, as it is in one moment, whoever writes meanwhile. What can
be made again (checkpoints, models that come along, locks) stays out.
"""

from __future__ import annotations

import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import replacing
from hdap_tui.errors import UserError
from hdap_tui.jobs.folder import JobFolder

if TYPE_CHECKING:
    from hdap_tui.config import Settings

_OF_A_JOB = ("request.json", "result.json", "events.jsonl", "log.txt")


def write(settings: Settings, target: Path) -> dict[str, int]:
    """Write a backup; return the bytes of every file in it, by its name in the state folder.

    Args:
        settings: of the fleet; their own file goes along as `fleet.toml`.
        target: the file to write (.tar.gz), replaced only when all went well.

    Raises:
        UserError: nothing has been recorded yet, the database is damaged, or the file cannot be
            written; the sentence says which.
    """
    if not settings.database.exists():
        raise UserError(f"{settings.database}: nothing has been recorded of this fleet yet.")
    target = target.absolute()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, replacing(target) as aside:
            database = Path(folder) / settings.database.name
            _copy(settings.database, database)
            aside.touch(mode=0o600)
            found = {}
            with tarfile.open(aside, "w:gz") as archive:
                for path, name in ((database, database.name), *_files(settings)):
                    archive.add(path, name, recursive=False)
                    found[name] = path.stat().st_size
            return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{target}: the backup cannot be written: {reason}.") from error


def _copy(database: Path, target: Path) -> None:
    """Write a copy of the database as it is in this moment."""
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        if "disk" in str(error) and "full" in str(error):
            raise OSError(28, "no space left on device") from error
        raise UserError(f"{database}: it cannot be copied: {error}.") from error
    finally:
        connection.close()


def _files(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Yield what goes along with the database, and its name in the backup."""
    state = settings.state_dir
    yield settings.path, "fleet.toml"
    if settings.known_hosts.is_file():
        yield settings.known_hosts, "known_hosts"
    for path in sorted((state / "models").glob("*.onnx")):
        yield path, f"models/{path.name}"
    for request in sorted((state / "jobs").glob("*/request.json")):
        job = JobFolder(request.parent)
        for path in (*(job.path / name for name in _OF_A_JOB), *job.measurements):
            if path.is_file():
                yield path, f"jobs/{path.relative_to(state / 'jobs')}"
