"""Devices that come to behave like another cluster's.

The clusters are those of `engine.fleet.membership`: their ids last, and a device changes its own
only where several rounds agree, so whoever has another one than before has moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.fleet.monitor import Change
from engine.fleet.peers import PEERS
from engine.fleet.signals import Chart, Clearance, Said, Scope, Signal, signal


@dataclass(frozen=True)
class Move:
    """A device has left its cluster for another."""

    device: str
    origin: int
    target: int
    back: bool
    """It is back where it was at home."""
    left_behind: int = 0
    """How many devices that came to `origin` from elsewhere are still there."""


class Homes:
    """The cluster that each device belongs to; noise is none."""

    def __init__(self) -> None:
        self._homes: dict[str, int] = {}
        self._former: dict[str, int] = {}

    def update(self, labels: Mapping[str, int]) -> list[Move]:
        """Take the clusters as they are now; return who has moved.

        A device whose cluster is gone altogether has a new one and has not moved: it is the
        clusters that have changed.
        """
        left = set(labels.values())
        moves = []
        for device, label in labels.items():
            home = self._homes.get(device, label)
            if label < 0:
                continue
            self._homes[device] = label
            if label == home or home not in left:
                continue
            back = self._former.setdefault(device, home) == label
            if back:
                del self._former[device]
            moves.append(Move(device, home, label, back))
        guests = Counter(self._homes[device] for device in self._former)
        return [replace(move, left_behind=guests[move.origin]) for move in moves]

    def settle(self, devices: Iterable[str]) -> None:
        """Take devices as being at home where they are."""
        for name in devices:
            self._former.pop(name, None)

    def forget(self, devices: Collection[str]) -> None:
        """Take devices as being at home where they are next."""
        for name in devices:
            self._homes.pop(name, None)
            self._former.pop(name, None)

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return {"homes": dict(self._homes), "former": dict(self._former)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Homes:
        """Return what goes on where `to_state` left off."""
        homes = cls()
        homes._homes, homes._former = dict(state["homes"]), dict(state["former"])
        return homes


def tell(moves: Sequence[Move], charts: Mapping[str, Chart], now: int) -> list[Said]:
    """Return what is to be said of moves: more than `PEERS` that go the same way are one signal.

    That signal is over once no more than `PEERS` of the devices that came are left.


    Args:
        moves: who has moved.
        charts: those of the devices; who is still being learned has nothing to compare with.
        now: the round.
    """
    back = [move for move in moves if move.back]
    ends: list[tuple[Scope, str]] = [("device", move.device) for move in back]
    went = Counter(move.origin for move in back)
    left = {move.origin: move.left_behind for move in back}
    ends += [
        ("cluster", f"cluster {origin}")
        for origin, count in went.items()
        if left[origin] <= PEERS < left[origin] + count
    ]
    said: list[Said] = [
        Clearance(scope=scope, subject=subject, round=now, kind="migration")
        for scope, subject in ends
    ]
    groups: dict[tuple[int, int], list[Move]] = {}
    for move in moves:
        chart = charts.get(move.device)
        if not move.back and chart is not None and not chart.monitor.learning:
            groups.setdefault((move.origin, move.target), []).append(move)
    for (_, target), group in groups.items():
        if len(group) > PEERS:
            said.append(_signal("cluster", f"cluster {target}", group, charts, now))
        else:
            said += [_signal("device", move.device, [move], charts, now) for move in group]
    return said


def _signal(
    scope: Scope, subject: str, group: Sequence[Move], charts: Mapping[str, Chart], now: int
) -> Signal:
    monitors = [charts[move.device].monitor for move in group]
    level = float(np.median([m.baseline for m in monitors if m.baseline is not None]))
    size = float(np.median([m.deviation or 0.0 for m in monitors]))
    chart = Chart(monitors[0], now)
    change = Change(0, 0, "step", "up" if size >= 0 else "down", size, level, True)
    told = signal(scope, subject, chart, change, level, len(group), now)
    note = f"from cluster {group[0].origin} to cluster {group[0].target}"
    return replace(told, kind="migration", note=note)
