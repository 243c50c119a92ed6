"""Facts that were read once and are read again only when they changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from weakref import WeakKeyDictionary

from hdap_tui.fact_names import Fact, Facts, checked
from hdap_tui.store.database import Store

_MANY = 100
"""Devices from which on all are read at once."""


class Held:
    """A device's facts; the same object for as long as they are the same."""

    __slots__ = ("facts",)

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        self.facts = MappingProxyType(dict(facts))


NOTHING = Held({})
_caches: WeakKeyDictionary[Store, dict[int, tuple[int, Held]]] = WeakKeyDictionary()


def held(store: Store, stamps: Mapping[int, int]) -> dict[int, Held]:
    """Return the facts of devices by their numbers; only those with a new stamp are read.

    `stamps` are those of `device_facts_latest`, read in the same transaction.
    """
    cache = _caches.setdefault(store, {})
    stale = [number for number, stamp in stamps.items() if cache.get(number, (-1,))[0] != stamp]
    for row in _rows(store, stale):
        cache[row["device_id"]] = (row["stamp"], Held(load(row["facts"])))
    return {number: cache[number][1] for number in stamps}


def load(text: str) -> Facts:
    """Return facts as they were written."""
    return checked(json.loads(text))


def _rows(store: Store, numbers: Sequence[int]) -> list[sqlite3.Row]:
    query = "SELECT device_id, stamp, facts FROM device_facts_latest"
    if len(numbers) > _MANY:
        return store.rows(query)
    one = f"{query} WHERE device_id = ?"
    return [row for number in numbers for row in store.rows(one, (number,))]
