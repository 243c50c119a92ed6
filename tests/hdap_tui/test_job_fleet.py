"""The clusters as a job takes them: whom to measure, and for whom it counts."""

from __future__ import annotations

import math

import pytest

from hdap_tui.jobs.fleet import groups
from hdap_tui.store.records import ClusterMap, ClusterRow

NOWHERE = (math.nan, math.nan)
PLACES = {"a": (0.0, 0.0), "b": (3.0, 0.0), "c": (1.0, 0.0), "d": (20.0, 0.0), "x": (15.0, 0.0)}


def fleet(head: str = "a", **places: tuple[float, float]) -> ClusterMap:
    points = {**PLACES, **places}
    labels = {"a": 0, "b": 0, "c": 0, "d": 1, "x": -1}
    return ClusterMap(
        devices=tuple(points),
        labels=tuple(labels[name] for name in points),
        points=tuple(points.values()),
        clusters=(
            ClusterRow(id=0, size=3, representative=head),
            ClusterRow(id=1, size=1, representative="d"),
        ),
    )


def test_the_representative_comes_first_and_noise_counts_with_the_nearest() -> None:
    first, second = groups(fleet(), {"a": 10.0, "b": 11.0, "c": 9.0, "d": 20.0, "x": 30.0})
    assert (first["devices"], first["members"]) == (["a", "c", "b"], ["a", "b", "c"])
    assert first["levels"] == pytest.approx([0.9, 1.0, 1.1])
    assert (second["devices"], second["members"]) == (["d"], ["d", "x"])
    assert second["levels"] == pytest.approx([1.0, 1.5])


def test_who_was_not_reached_by_the_last_sweep_is_measured_last() -> None:
    first, _ = groups(fleet(c=NOWHERE))
    assert first["devices"] == ["a", "b", "c"]
    first, _ = groups(fleet(a=NOWHERE))  # the representative itself
    assert first["devices"] == ["b", "c", "a"]
    assert first["members"] == ["a", "b", "c"]
    _, second = groups(fleet(d=NOWHERE))
    assert second["devices"] == ["d"]
    first, second = groups(fleet(a=NOWHERE, b=NOWHERE, c=NOWHERE, d=NOWHERE))
    assert (first["members"], second["members"]) == (["a", "b", "c", "x"], ["d"])


def test_a_fleet_without_a_cluster_is_one() -> None:
    lonely = ClusterMap(devices=("a", "b"), labels=(-1, -1), points=((0.0, 0.0), NOWHERE))
    (whole,) = groups(lonely)
    assert (whole["devices"], whole["members"]) == (["a"], ["a", "b"])
