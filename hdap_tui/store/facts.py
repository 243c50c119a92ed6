"""What devices are: the latest facts of each, and a line of history wherever they changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hdap_tui.fact_names import PROBED, VOLATILE, Fact, Facts, checked, steady
from hdap_tui.store.database import Store
from hdap_tui.store.devices import device_id
from hdap_tui.store.held import held, load
from hdap_tui.store.values import from_micros, now, to_micros

KEPT = 500
"""Lines of history of one device; a device that changes at every look does not fill the disk."""
USUAL_MULTIPLE = 8
"""Channel multiple of devices that nobody probed: a block of AVX2, half of one of AVX-512."""
_SPEED = ("machine", "cpu_model", "isa", "onnxruntime")
"""Where one of these changed, what was measured of the device's speed holds no longer."""


@dataclass(frozen=True)
class Change:
    """One fact that changed; None is where it was not known."""

    name: str
    before: Fact | None
    after: Fact | None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A line of a device's history."""

    at: str
    facts: Mapping[str, Fact]
    """All facts that do not change by themselves."""
    changes: tuple[Change, ...]
    """Against the line before; the first line has none."""


def save(store: Store, device: str, facts: Mapping[str, Any]) -> tuple[Change, ...]:
    """Keep all that a look at a device found; return what changed since the last one.

    What was measured of it is kept as well, unless processor or runtime are other ones now.

    Raises:
        StoreError: the store has never heard of the device.
    """
    new = checked(facts)
    with store.write():
        before = latest_of(store, device)
        is_other = any(n in before and n in new and before[n] != new[n] for n in _SPEED)
        probed = {} if is_other else {n: before[n] for n in PROBED if n in before}
        return _keep(store, device, before, {**probed, **new})


def add(store: Store, device: str, facts: Mapping[str, Any]) -> tuple[Change, ...]:
    """Keep some facts beside those that are known; return what changed.

    Raises:
        StoreError: the store has never heard of the device.
    """
    with store.write():
        before = latest_of(store, device)
        return _keep(store, device, before, {**before, **checked(facts)})


def latest_of(store: Store, device: str) -> Facts:
    """Return what is known of a device; nothing where it was never looked at.

    Raises:
        StoreError: the store has never heard of the device.
    """
    found = store.row(
        "SELECT facts FROM device_facts_latest WHERE device_id = ?", (device_id(store, device),)
    )
    return load(found["facts"]) if found else {}


def latest(store: Store) -> dict[str, Mapping[str, Fact]]:
    """Return what is known of each device of the settings that was looked at, in their order."""
    with store.read():
        found = store.rows(
            """SELECT d.id, d.name, f.stamp FROM devices d
            JOIN device_facts_latest f ON f.device_id = d.id
            WHERE d.position IS NOT NULL ORDER BY d.position"""
        )
        kept = held(store, {row["id"]: row["stamp"] for row in found})
    return {row["name"]: kept[row["id"]].facts for row in found}


def at(store: Store, moment: str) -> dict[int, Facts]:
    """Return what was known of each device at a moment, by its number.

    Without what changes by itself, of which there is no history.
    """
    found = store.rows(
        """SELECT f.device_id, f.facts FROM device_facts f JOIN (
            SELECT device_id, max(at) AS at FROM device_facts WHERE at <= ? GROUP BY device_id
        ) USING (device_id, at)""",
        (moment,),
    )
    return {row["device_id"]: load(row["facts"]) for row in found}


def history(store: Store, device: str, limit: int = KEPT, until: str = "") -> list[Moment]:
    """Return when a device's facts changed, and how; oldest first.

    With a moment only what had been written by then.

    Raises:
        StoreError: the store has never heard of the device.
    """
    rows = store.rows(
        """SELECT at, facts FROM device_facts WHERE device_id = ?1 AND (?3 = '' OR at <= ?3)
        ORDER BY at DESC LIMIT ?2""",
        (device_id(store, device), limit + 1, until),
    )
    moments: list[Moment] = []
    before: Facts | None = None
    for row in reversed(rows):
        facts = load(row["facts"])
        changes = () if before is None else changed(before, facts)
        moments.append(Moment(at=row["at"], facts=facts, changes=changes))
        before = facts
    return moments[-limit:]


def changed(before: Mapping[str, Fact], after: Mapping[str, Fact]) -> tuple[Change, ...]:
    """Return the facts that are others now, apart from those that change by themselves."""
    names = sorted((before.keys() | after.keys()) - VOLATILE)
    pairs = ((name, before.get(name), after.get(name)) for name in names)
    return tuple(Change(*pair) for pair in pairs if pair[1] != pair[2])


def common_multiple(store: Store, devices: Collection[str] | None = None) -> int | None:
    """Return the channel multiple that most devices were measured to have, the larger of equals.

    None where none of these devices (default: all) was probed.
    """
    votes = Counter(
        multiple
        for device, known in latest(store).items()
        if type(multiple := known.get("channel_multiple")) is int
        and multiple > 0
        and (devices is None or device in devices)
    )
    return max(votes, key=lambda multiple: (votes[multiple], multiple)) if votes else None


def _keep(store: Store, device: str, before: Facts, facts: Facts) -> tuple[Change, ...]:
    if facts == before:
        return ()
    changes, number = changed(before, facts), device_id(store, device)
    text = json.dumps(facts, sort_keys=True)
    store.connection.execute(
        """INSERT INTO device_facts_latest VALUES (?1, 1, ?2, ?3)
        ON CONFLICT (device_id) DO UPDATE SET stamp = stamp + 1, at = ?2, facts = ?3""",
        (number, now(), text),
    )
    if not changes:
        return ()
    last = store.row("SELECT max(at) AS at FROM device_facts WHERE device_id = ?", (number,))
    # Later than the last line, whatever this machine's clock says.
    earliest = to_micros(last["at"]) + 1000 if last and last["at"] else 0
    store.connection.execute(
        "INSERT INTO device_facts VALUES (?, ?, ?)",
        (
            number,
            from_micros(max(to_micros(now()), earliest)),
            json.dumps(steady(facts), sort_keys=True),
        ),
    )
    store.connection.execute(
        """DELETE FROM device_facts WHERE device_id = ?1 AND at < (
            SELECT min(at) FROM (SELECT at FROM device_facts WHERE device_id = ?1
                ORDER BY at DESC LIMIT ?2))""",
        (number, KEPT),
    )
    return changes if before else ()
