"""Many devices that change within a day, whatever the reason: one alert instead of hundreds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from engine.fleet.peers import PEERS
from engine.fleet.signals import Clearance, Said, Signal

WINDOW = 24
"""Rounds within which changes count as one event."""
_SHARE = 0.01
"""Share of the fleet that is a crowd, if it is more than `PEERS` devices."""


class Crowd:
    """Devices that changed about the same time.

    When more than a few change the same way within the window, they are told as one; as long as
    more than a few go on to change, whichever way, these are added and not told. A crowd is over
    once only a few of it are left and none of them has come back for as long as the window; they
    are told then.
    """

    def __init__(self) -> None:
        self._recent: list[Signal] = []
        self._members: set[str] = set()
        self._silent: dict[str, Signal] = {}
        self._left = (0, 0)  # how many are not back, and since which round

    def __len__(self) -> int:
        """Return how many devices it is; 0 where there is no crowd."""
        return len(self._members)

    @property
    def silent(self) -> tuple[Signal, ...]:
        """What its devices would have told, each by itself."""
        return tuple(self._silent.values())

    @property
    def members(self) -> Collection[str]:
        """The devices that it is."""
        return self._members

    def sift(
        self, said: Sequence[Said], now: int, devices: int, active: Collection[str]
    ) -> list[Said]:
        """Return what is to be said: what the crowd stands for is left out.

        Args:
            said: what the charts say in this round.
            now: the round.
            devices: how many are watched.
            active: those whose change is not over.
        """
        fresh = [
            one
            for one in said
            if isinstance(one, Signal) and one.scope == "device" and one.kind in ("step", "ramp")
        ]
        self._recent = [one for one in self._recent if now - one.round < WINDOW] + fresh
        least = max(PEERS, math.floor(_SHARE * devices))
        if self._members:
            told = self._ended(now, active, least)
            joining = fresh if self._members and len(self._recent) > least else []
        else:
            ways = Counter(one.direction for one in self._recent).most_common(1)
            way = ways[0][0] if ways and ways[0][1] > least else None
            group = [one for one in self._recent if one.direction == way]
            told = [_summed(group, now)] if group else []
            self._members = {one.subject for one in group}
            joining = [one for one in fresh if one in group]
        self._members |= {one.subject for one in joining}
        self._silent |= {one.subject: one for one in joining}
        return [*told, *(one for one in said if one not in joining)]

    def forget(self, names: Collection[str]) -> None:
        """Take devices out: they learn anew."""
        gone = set(names)
        self._members -= gone
        self._recent = [one for one in self._recent if one.subject not in gone]
        self._silent = {name: one for name, one in self._silent.items() if name not in gone}

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return {
            "recent": [asdict(one) for one in self._recent],
            "members": sorted(self._members),
            "silent": [asdict(one) for one in self._silent.values()],
            "left": list(self._left),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Crowd:
        """Return what goes on where `to_state` left off."""
        crowd = cls()
        crowd._recent = [Signal(**one) for one in state["recent"]]
        crowd._members = set(state["members"])
        crowd._silent = {one["subject"]: Signal(**one) for one in state["silent"]}
        crowd._left = (int(state["left"][0]), int(state["left"][1]))
        return crowd

    def _ended(self, now: int, active: Collection[str], least: int) -> list[Said]:
        """Return that it is over and what is left of it, once it is."""
        left = self._members & set(active)
        if len(left) != self._left[0]:
            self._left = (len(left), now)
        waiting = left and now - self._left[1] < WINDOW
        if waiting or len(left) > least or 2 * len(left) >= len(self._members):
            return []
        rest = [replace(one, round=now) for name, one in self._silent.items() if name in left]
        self._members, self._silent = set(), {}
        return [Clearance(scope="fleet", subject="fleet", round=now), *rest]


def _summed(group: Sequence[Signal], now: int) -> Signal:
    """Return one signal for many."""
    sizes = [one.size_percent for one in group if one.size_percent is not None]
    size = float(np.median(sizes))
    level = float(np.median([one.baseline_ms for one in group]))
    return replace(
        group[0],
        scope="fleet",
        subject="fleet",
        kind="step",
        size_percent=size,
        baseline_ms=level,
        now_ms=level * (1 + size / 100),
        onset_round=int(np.median([one.onset_round for one in group])),
        round=now,
        devices=len(group),
        note=f"{len(group)} devices within {WINDOW} rounds",
    )
