"""Which silences keep which alerts quiet.

A silence names alerts in the language that names devices: `edge-07`, `tag=hall-a`,
`kind=spread and not edge-*`, `scope=fleet`, `"cluster 2"`. A bare word is the alert's subject.
What is said of devices holds for the alerts of single devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hdap_tui.config import Settings
from hdap_tui.config.expression import Expression
from hdap_tui.config.fields import FIELDS
from hdap_tui.config.selector import check, parse
from hdap_tui.errors import SettingsError
from hdap_tui.selection import cluster_words, known_values, records
from hdap_tui.store import alerts, clusters, silences
from hdap_tui.store.database import Store
from hdap_tui.store.records import AlertRow, Silence


def begin(
    settings: Settings, store: Store, selector: str, length: timedelta, reason: str, who: str
) -> tuple[Silence, tuple[AlertRow, ...]]:
    """Begin a silence; return it with the open alerts that it keeps quiet.

    Raises:
        SettingsError: the selector makes no sense, or nothing is called so.
    """
    wanted = parse(selector)
    if not wanted.fields:
        raise SettingsError('a silence needs a selector; "*" stands for all alerts.')
    until = (datetime.now(UTC) + length).isoformat(timespec="milliseconds")
    with store.write():
        check(wanted, _known(settings, store))
        made = silences.add(store, selector, until, reason, who)
        apply(settings, store)
        return made, tuple(a for a in alerts.open_rows(store) if a.silence == made.id)


def apply(settings: Settings, store: Store) -> None:
    """Put every open alert under the silence that holds for it now, or under none."""
    in_force = silences.on(store)
    opened = alerts.open_rows(store)
    if not in_force and not any(alert.silence for alert in opened):
        return
    with store.write():
        chosen: dict[int, Silence] = {}
        for silence in in_force:  # the one that ends last goes before the others
            for alert in matching(settings, store, parse(silence.selector), opened):
                chosen.setdefault(alert.id, silence)
        for alert in opened:
            over = chosen.get(alert.id)
            if over is not None:
                text = f"silence {over.id}: {over.reason}"
                alerts.quieten(store, alert, over.id, text, over.who)
            elif alert.silence is not None:
                before = silences.row(store, alert.silence)
                alerts.quieten(store, alert, None, f"silence {before.id} is over", before.ended_by)


def matching(
    settings: Settings, store: Store, wanted: Expression, rows: Sequence[AlertRow]
) -> list[AlertRow]:
    """Return the alerts that an expression names."""
    of_devices = frozenset(f for f in wanted.fields if FIELDS[f].home != "alert")
    known = records(settings.devices, of_devices, lambda: store)
    found = []
    for alert in rows:
        record: dict[str, object] = {
            **(known.get(alert.subject, {}) if alert.scope == "device" else {}),
            "name": alert.subject,
            "subject": alert.subject,
            "scope": alert.scope,
            "kind": alert.kind,
            "direction": alert.direction,
            "model": alert.model,
            "alert": alert.state,
            "emulated": alert.emulated,
        }
        if alert.scope == "cluster" and alert.subject.startswith("cluster "):
            record["cluster"] = cluster_words(int(alert.subject.rpartition(" ")[2]))
        if wanted.matches(record):
            found.append(alert)
    return found


def selector_of(alert: AlertRow) -> str:
    """Return a selector that names what an alert is about."""
    word = alert.subject
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", word)
    return word if plain else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _known(settings: Settings, store: Store) -> dict[str, frozenset[str]]:
    """Return the names and tags that there are, the subjects of alerts among them."""
    known = known_values(settings.devices)
    subjects = {alert.subject for alert in alerts.rows(store)}
    subjects |= {"fleet", *(f"cluster {c.id}" for c in clusters.latest(store).clusters)}
    names = known["name"] | subjects
    return {**known, "name": names, "subject": names}
