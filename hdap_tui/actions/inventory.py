"""Devices taken over from inventories that people have already."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hdap_tui.config import FILE_NAME, find, load_text
from hdap_tui.config.selector import check, parse
from hdap_tui.config.source import Source
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, RefusedError, SettingsError
from hdap_tui.figures import count
from hdap_tui.inventory import read
from hdap_tui.inventory.comparing import Comparison, compare
from hdap_tui.inventory.found import Found, Host, valid_tag
from hdap_tui.inventory.writing import new_file, save, with_devices
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.config import Settings

SHOWN = 20
"""Hosts that a question lists."""


def import_devices(
    context: Context,
    source: Path,
    format: str | None = None,
    only: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> Outcome:
    """Add the hosts of an inventory to the settings file, after asking."""
    found = read(source, format or "")
    hosts = _tagged(_chosen(found.hosts, only), tag)
    path, text, before = _settings_file(context)
    settings = load_text(path, text)
    result = compare(hosts, settings if before is not None else None)
    added = with_devices(text, result.new)
    load_text(path, added)  # what would be written is known to be right before anybody is asked
    written = False
    if result.new and not dry_run:
        _ask(context, path, result.new, yes)
        save(path, added, before)
        written = True
    return _outcome(found, result, path, written, settings)


def _chosen(hosts: list[Host], only: str | None) -> list[Host]:
    """Return the hosts that a selector picks.

    Raises:
        SettingsError: it makes no sense, or picks none.
    """
    wanted = parse(only or "")
    if not wanted.fields:
        return hosts
    known = {"name", "host", "user", "port", "tag", "group"}
    if unknown := sorted(wanted.fields - known):
        raise SettingsError(
            f"--only: an inventory knows no {unknown[0]}, only {', '.join(sorted(known))}."
        )
    check(
        wanted,
        {
            "name": frozenset(host.name for host in hosts),
            "tag": frozenset(tag for host in hosts for tag in host.tags),
        },
    )
    chosen = [host for host in hosts if wanted.matches(_record(host))]
    if not chosen:
        raise SettingsError(f"--only: no host matches {clean(only, 200)}.")
    return chosen


def _record(host: Host) -> dict[str, object]:
    return {
        "name": host.name,
        "host": host.host or host.name,
        "user": host.user,
        "port": host.port or None,
        "tag": host.tags,
        "group": host.host_group,
    }


def _tagged(hosts: list[Host], tag: str | None) -> list[Host]:
    tags = (tag or "").replace(",", " ").split()
    for one in tags:
        if not valid_tag(one):
            raise SettingsError(
                f'--tag: "{clean(one, 60)}" is no tag; tags are letters, digits and . _ : / -'
            )
    return [replace(host, tags=tuple(dict.fromkeys((*host.tags, *tags)))) for host in hosts]


def _settings_file(context: Context) -> tuple[Path, str, bytes | None]:
    """Return the settings file, its text, and what it holds; None where it would be new."""
    named = context.config or (
        Path(os.environ["HDAP_CONFIG"]) if os.environ.get("HDAP_CONFIG") else None
    )
    if named is not None:
        named = named.expanduser().absolute()
        named = named / FILE_NAME if named.is_dir() else named
        path = named if not named.exists() else find(context.config)
    else:
        try:
            path = find()
        except SettingsError:
            path = Path.cwd() / FILE_NAME
    if not path.exists():
        return path, new_file(path.parent), None
    source = Source.read(path)
    return path, source.text, path.read_bytes()


def _ask(context: Context, path: Path, new: list[Host], yes: bool) -> None:
    """Ask whether to write.

    Raises:
        RefusedError: nobody says yes.
    """
    lines = [f"{host.name}: {_described(host)}" for host in new[:SHOWN]]
    if len(new) > SHOWN:
        lines.append(f"… and {len(new) - SHOWN} more")
    if not yes and not context.confirm(f"Add {count(len(new), 'device')} to {path}?", lines):
        raise RefusedError(f"{path}: nothing was added.")


def _outcome(
    found: Found, result: Comparison, path: Path, written: bool, settings: Settings
) -> Outcome:
    rows = [
        *((host.name, "added" if written else "new", _described(host)) for host in result.new),
        *((host.name, "changed", f"not touched: {why}") for host, why in result.changed),
        *((host.name, "there", _described(host)) for host in result.there),
    ]
    counts = (
        f"{len(result.new)} {'added' if written else 'new'}, {len(result.there)} there already, "
        f"{len(result.changed)} changed (not touched)"
    )
    left_out = f", {len(found.left_out)} left out" if found.left_out else ""
    sentences = [f"{path}: {counts}{left_out}.", *_noted(found.left_out), *_noted(found.notes)]
    if written and settings.devices and all(device.emulated for device in settings.devices):
        sentences.append(
            "The devices that were there are emulated; for a fleet of its own name another file "
            "with --config."
        )
    if written:
        sentences.append(
            'Next: "hdap devices trust" shows the host keys, "hdap devices check" what each has; '
            "an open dashboard must be opened again."
        )
    return Outcome(
        data={
            "file": str(path),
            "format": found.format,
            "written": written,
            "new": [{"name": host.name, **host.settings} for host in result.new],
            "there": [host.name for host in result.there],
            "changed": {host.name: why for host, why in result.changed},
            "left_out": found.left_out,
            "notes": found.notes,
        },
        table=Table(("device", "", ""), tuple(rows)) if rows else None,
        text="\n".join(sentences),
        exit_code=ExitCode.PARTLY if found.left_out else ExitCode.DONE,
    )


def _described(host: Host) -> str:
    key = f", key {host.identity}" if host.identity else ""
    tags = f" ({', '.join(host.tags)})" if host.tags else ""
    return clean(f"{host.address}{key}{tags}", 200)


def _noted(sentences: list[str]) -> Iterable[str]:
    yield from sentences[:SHOWN]
    if len(sentences) > SHOWN:
        yield f"… and {len(sentences) - SHOWN} more of this kind; --json has them all."
