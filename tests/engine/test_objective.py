"""What the search minimises."""

from dataclasses import dataclass

import numpy as np
import pytest

from engine.search.objective import Fitness, FleetLatency


@dataclass(frozen=True)
class Cluster:
    size: int
    levels: tuple[float, ...] = ()


def test_the_mean_weights_clusters_by_size_or_plainly():
    clusters, ms = (Cluster(3), Cluster(1)), np.array([[1.0, 2.0], [5.0, 2.0]])
    assert FleetLatency.of(clusters, "mean", "size")(ms) == pytest.approx([2.0, 2.0])
    assert FleetLatency.of(clusters, "mean", "plain")(ms) == pytest.approx([3.0, 2.0])


def test_devices_are_as_far_from_their_representative_as_they_were_measured():
    clusters = (Cluster(2, (1.0, 1.2)), Cluster(2, (1.0, 0.8)))
    ms = np.array([[10.0], [20.0]])
    assert FleetLatency.of(clusters, "mean", "size")(ms) == pytest.approx([(10 + 12 + 20 + 16) / 4])
    assert FleetLatency.of(clusters, "worst", "size")(ms) == pytest.approx([20.0])


def test_the_95th_percentile_is_what_95_percent_of_the_devices_stay_within():
    # 96 devices of 1 ms and 4 of 9 ms: 95 % stay within 1 ms; of 94 and 6 they do not.
    ms = np.array([[1.0], [9.0]])
    assert FleetLatency.of((Cluster(96), Cluster(4)), "percentile-95", "size")(ms) == [1.0]
    assert FleetLatency.of((Cluster(94), Cluster(6)), "percentile-95", "size")(ms) == [9.0]
    levels = tuple(np.linspace(1.0, 2.0, 101))
    spread = FleetLatency.of((Cluster(101, levels),), "percentile-95", "size")
    assert spread(np.array([[3.0, 6.0]])) == pytest.approx([3 * 1.95, 6 * 1.95])


def test_whatever_keeps_enough_accuracy_is_better_than_whatever_does_not():
    random = np.random.default_rng(0)
    latency, accuracy = random.uniform(0.1, 1.3, 400), random.uniform(0.3, 1.05, 400)
    values = Fitness(0.9)(latency, accuracy)
    good = accuracy >= 0.9
    assert values[good].max() < values[~good].min()
    fast = latency[good] < 1
    assert (np.argsort(values[good][fast]) == np.argsort(latency[good][fast])).all()
    worse = np.argsort(values[~good])
    assert (np.diff(accuracy[~good][worse]) <= 0).all()


def test_the_values_are_those_of_the_authors_code():
    latency, accuracy = np.array([0.5, 1.7, 0.1, 0.9]), np.array([0.95, 1.0, 0.8999, 0.2])
    assert Fitness(0.9)(latency, accuracy) == pytest.approx([0.5, 1.0, 1.001, 8.0])
    values = Fitness(0.9, "add")(np.array([0.5, 0.5]), np.array([0.95, 0.85]))
    assert values == pytest.approx([0.5, 1.0])


def test_a_latency_to_reach_makes_accuracy_what_is_sought():
    random = np.random.default_rng(1)
    latency, accuracy = random.uniform(0.1, 1.3, 400), random.uniform(0.3, 1.05, 400)
    values = Fitness(0.9, latency=0.5)(latency, accuracy)
    reached = latency <= 0.5
    assert values[reached].max() < values[~reached].min()
    assert accuracy[np.argmin(values)] == accuracy[reached].max()
    assert latency[~reached][np.argmin(values[~reached])] == latency[~reached].min()


def test_adding_the_penalty_lets_a_candidate_miss_a_little():
    near = Fitness(0.9, "add")(np.array([0.5, 0.6]), np.array([0.899, 0.95]))
    assert near[0] < near[1]
    near = Fitness(0.9, "add", latency=0.5)(np.array([0.501, 0.4]), np.array([0.95, 0.9]))
    assert near[0] < near[1]
