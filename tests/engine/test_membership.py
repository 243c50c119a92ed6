"""Clusters that last: ids, places, and moves that several rounds agree on."""

import json

import numpy as np
import pytest

from engine.fleet.membership import AGREE, Asked, Membership

LEVELS = np.array([[20.0, 12.0, 3.0, 9.0], [23.0, 12.2, 3.1, 10.0], [20.2, 14.5, 3.0, 9.9]])


class Fleet:
    """Three groups of devices that are measured round by round."""

    def __init__(self, each=5, noise=0.01, seed=0):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.names = [f"d{i}" for i in range(3 * each)]
        self.level = np.repeat(LEVELS, each, axis=0)

    def measure(self):
        return self.level * np.exp(self.rng.normal(0, self.noise, self.level.shape))

    def begin(self, **more):
        return Membership.begin(self.names, self.measure(), **more)

    def rounds(self, held, count=1):
        return [held.update(self.names, self.measure()) for _ in range(count)]


def test_nothing_moves_while_nothing_changes():
    fleet = Fleet(each=20)
    held = fleet.begin()
    first = held.labels
    assert sorted(np.bincount(first)) == [20, 20, 20]
    for _ in range(20):
        assert fleet.rounds(held) == [False]
        assert held.labels.tolist() == first.tolist()


def test_a_device_moves_when_rounds_agree_and_not_before():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    fleet.rounds(held, 4)
    fleet.level[0] = LEVELS[1]
    for _ in range(AGREE - 1):
        fleet.rounds(held)
        assert held.labels.tolist() == first.tolist()
    fleet.rounds(held)
    assert held.labels[0] == first[5]
    assert held.labels[1:].tolist() == first[1:].tolist()


def test_one_bad_round_moves_nothing():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    for _ in range(6):
        latencies = fleet.measure()
        latencies[0] *= 1.5
        held.update(fleet.names, latencies)
        assert held.labels.tolist() == first.tolist()
        fleet.rounds(held)


def test_what_all_devices_share_moves_nobody():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    fleet.level = fleet.level * 1.4
    assert not any(fleet.rounds(held, 5))
    assert held.labels.tolist() == first.tolist()


def test_a_whole_cluster_that_goes_elsewhere_is_found_anew_and_keeps_its_id():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    fleet.level[10:] *= [1.0, 1.5, 1.0, 1.2]
    assert fleet.rounds(held, AGREE) == [False] * (AGREE - 1) + [True]
    assert held.labels.tolist() == first.tolist()


def test_a_cluster_that_is_new_gets_an_id_that_was_never_used():
    fleet = Fleet(each=6)
    held = fleet.begin()
    first = held.labels
    fleet.level[16:] *= 1.6
    fleet.rounds(held, AGREE)
    assert held.labels[:16].tolist() == first[:16].tolist()
    assert set(held.labels[16:]) == {3}
    fleet.level[16:] /= 1.6
    fleet.rounds(held, AGREE)
    assert held.labels.tolist() == first.tolist()
    fleet.level[:2] *= 1.4
    fleet.rounds(held, AGREE)
    assert set(held.labels[:2]) == {4}


def test_a_new_device_is_placed_at_once_and_one_that_is_gone_is_forgotten():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    names = [*fleet.names[1:], "new", "off"]
    latencies = np.vstack([fleet.measure()[1:], LEVELS[1], np.full(4, np.nan)])
    held.update(names, latencies)
    assert held.names == names
    assert held.labels.tolist() == [*first[1:], first[5], -1]


def test_a_device_that_was_not_measured_stays_where_it_is():
    fleet = Fleet()
    held = fleet.begin()
    first = held.labels
    for _ in range(4):
        latencies = fleet.measure()
        latencies[:5] = np.nan
        held.update(fleet.names, latencies)
    assert held.labels.tolist() == first.tolist()
    found = held.clustering()
    assert np.isfinite(found.points).all()


def test_a_fleet_that_grows_by_half_is_clustered_anew():
    fleet = Fleet()
    held = fleet.begin()
    names = [*fleet.names, *(f"n{i}" for i in range(8))]
    latencies = np.vstack([fleet.measure(), 1.7 * fleet.measure()[:4], fleet.measure()[:4]])
    assert held.update(names, latencies)
    assert set(held.labels[15:19]) == {3}
    assert held.labels[19:].tolist() == held.labels[:4].tolist()


def test_clusters_begun_anew_keep_the_ids_of_before():
    fleet = Fleet()
    first = fleet.begin()
    renamed = {name: int(label) + 4 for name, label in zip(fleet.names, first.labels, strict=True)}
    again = Membership.begin(fleet.names, fleet.measure()[:, :3], before=renamed, next_id=9)
    assert again.labels.tolist() == list(renamed.values())
    assert again.next_id == 9


def test_the_state_comes_back_from_json_and_bytes():
    fleet, other = Fleet(), Fleet()
    held = fleet.begin(asked=Asked(eps_percent=5.0))
    other.measure()
    fleet.rounds(held, 2)
    held.clustering()
    records = np.frombuffer(bytearray(held.records.tobytes()), held.records.dtype)
    again = Membership(held.names, records, json.loads(json.dumps(held.to_state())))
    assert again.asked == held.asked
    for _ in range(4):
        latencies = fleet.measure()
        latencies[3] = LEVELS[2]
        assert held.update(fleet.names, latencies) == again.update(fleet.names, latencies)
        assert held.labels.tolist() == again.labels.tolist()
    one, two = held.clustering(), again.clustering()
    assert one.representatives == two.representatives
    np.testing.assert_array_equal(one.points, two.points)
    with pytest.raises(ValueError, match="no state"):
        Membership(held.names, records, {})
    with pytest.raises(ValueError, match="no state"):
        Membership(held.names[1:], records, held.to_state())


def test_the_clustering_that_stands_is_consistent_in_itself():
    fleet = Fleet()
    held = fleet.begin()
    heads = held.clustering().representatives
    fleet.level[0] = LEVELS[1]
    fleet.rounds(held, AGREE)
    found = held.clustering()
    assert found.labels.tolist() == held.labels.tolist()
    assert list(found.ids) == sorted(found.ids, key=lambda one: -np.sum(found.labels == one))
    assert sum(found.weights) == pytest.approx(1)
    for one, row in zip(found.ids, found.representatives, strict=True):
        assert found.labels[row] == one
    # Whoever stands for a cluster goes on to, as long as it is in it.
    assert set(found.representatives) >= set(heads) - {0}


def test_other_models_are_refused():
    fleet = Fleet()
    held = fleet.begin()
    with pytest.raises(ValueError, match="do not fit"):
        held.update(fleet.names, fleet.measure()[:, :2])
