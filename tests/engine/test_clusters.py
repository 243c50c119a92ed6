"""Clusters of devices: small fleets, large ones, gaps in the data, and what is said about them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from benchmarks.clusters import large_fleet
from benchmarks.small_fleets import fleet
from engine.fleet import bins, density
from engine.fleet.bins import weighted_dbscan
from engine.fleet.clusters import cluster
from engine.fleet.matching import match
from engine.fleet.placing import Places
from engine.fleet.quality import UNSTABLE, quality
from engine.fleet.words import explain


def simulated(seed, groups, devices=None, models=4, noise=0.02, gap=0.08):
    rng = np.random.default_rng([seed, groups])
    devices = devices or int(rng.integers(max(4, 2 * groups), 30))
    return fleet(rng, devices, groups, models, noise, gap)


def mean_index(groups, known=None, seeds=12, **more):
    indices = []
    for seed in range(seeds):
        latencies, truth = simulated(seed, groups, **more)
        indices.append(adjusted_rand_score(truth, cluster(latencies, known).labels))
    return np.mean(indices)


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("known", [None, 0.02])
def test_groups_eight_per_cent_apart_are_found_in_a_small_fleet(groups, known):
    assert mean_index(groups, known) >= 0.95


def test_twelve_devices_in_three_groups_are_found_with_three_probes():
    assert mean_index(3, devices=12, models=3) >= 0.95


def test_groups_are_found_between_the_small_and_the_large_fleet():
    for devices in (30, 45, 60, 90):
        assert mean_index(3, devices=devices, seeds=5, noise=0.01) >= 0.95


@pytest.mark.parametrize("models", [1, 2, 4])
@pytest.mark.parametrize("known", [None, 0.02])
def test_a_fleet_of_one_group_stays_one_cluster(models, known):
    whole = 0
    for seed in range(40):
        latencies, _ = simulated(seed, 1, models=models)
        whole += bool(np.all(cluster(latencies, known).labels == 0))
    assert whole >= 38


def test_a_probe_that_repeats_badly_does_not_hide_the_groups():
    sigma = np.array([0.005, 0.005, 0.005, 0.04])
    for known in (None, sigma):
        indices = []
        for seed in range(20):
            latencies, truth = simulated(seed, 3, noise=sigma)
            indices.append(adjusted_rand_score(truth, cluster(latencies, known).labels))
        assert np.mean(indices) >= 0.95


def test_the_result_is_consistent_in_itself():
    latencies, truth = simulated(3, 3, devices=20)
    found = cluster(latencies)
    clusters = len(np.unique(truth))
    sizes = np.bincount(found.labels[found.labels >= 0])
    assert len(sizes) == len(found.representatives) == len(found.weights) == clusters
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sum(found.weights) == pytest.approx(1)
    for label, row in enumerate(found.representatives):
        assert found.labels[row] == label
    assert found.points.shape == (20, 2)
    assert found.features.shape[0] == 20
    assert 1 >= found.explained[0] >= found.explained[1] >= 0
    assert found.eps_percent == pytest.approx(100 * np.expm1(found.eps))
    assert found.min_samples == 2


def test_the_representative_is_the_device_in_the_middle():
    latencies = np.array([[10.0], [10.1], [10.2], [10.3], [10.4]])
    assert cluster(latencies, eps_percent=5).representatives == (2,)


def test_a_device_that_is_slower_by_a_tenth_lies_ten_per_cent_away_on_the_map():
    rng = np.random.default_rng(0)
    level = np.array([20.0, 12.0, 3.0, 9.0])
    latencies = level * np.exp(rng.normal(0, 1e-4, (8, 4)))
    latencies[4:] *= 1.1
    points = cluster(latencies).points
    apart = points[4:, 0].mean() - points[:4, 0].mean()
    assert apart == pytest.approx(100 * np.log(1.1), rel=0.01)


def test_clusters_do_not_depend_on_the_order_or_on_the_unit():
    latencies, _ = simulated(5, 3, devices=24)
    order = np.random.default_rng(1).permutation(24)
    found, shuffled = cluster(latencies), cluster(latencies[order] * 1000)
    assert adjusted_rand_score(found.labels[order], shuffled.labels) == 1
    assert shuffled.eps == pytest.approx(found.eps)


def test_a_lone_device_is_noise_and_counts_with_its_nearest_cluster():
    latencies, _ = simulated(2, 1, devices=10, noise=0.01)
    odd = np.vstack([latencies, latencies[0] * 1.6])
    found = cluster(odd)
    assert found.labels[:10].max() == found.labels[:10].min() == 0
    assert found.labels[10] == -1
    assert found.nearest[10] == 0
    assert found.weights == (1.0,)


def test_two_devices_far_apart_are_both_noise():
    found = cluster([[10.0, 5.0], [20.0, 5.0]])
    assert found.labels.tolist() == [-1, -1]
    assert found.nearest.tolist() == [0, 0]
    assert found.representatives == found.weights == ()


def test_a_single_device_is_a_cluster_of_its_own():
    found = cluster([[10.0, 5.0]])
    assert found.labels.tolist() == [0]
    assert found.representatives == (0,)
    assert found.weights == (1.0,)


def test_devices_that_measure_the_very_same_are_one_cluster():
    for devices in (2, 12, 100):
        assert cluster(np.full((devices, 3), 7.0)).labels.tolist() == [0] * devices


def test_a_device_that_lacks_a_probe_is_placed_by_the_others():
    right = 0
    for seed in range(20):
        latencies, truth = simulated(seed, 3, devices=15, noise=0.01, gap=0.15)
        holes = latencies.copy()
        holes[[0, 5], [2, 0]] = np.nan
        holes[9, 1:3] = np.nan
        found = cluster(holes)
        right += adjusted_rand_score(truth, found.labels) >= 0.8
        assert np.isfinite(found.features).all()
        assert not set(found.representatives) & {0, 5, 9}
    assert right >= 18


def test_a_device_without_any_measurement_is_noise_and_has_no_place():
    latencies, _ = simulated(1, 2, devices=12, noise=0.01)
    latencies[4] = np.nan
    found = cluster(latencies)
    assert found.labels[4] == -1
    assert np.isnan(found.points[4]).all()
    assert np.isfinite(np.delete(found.points, 4, axis=0)).all()
    assert sum(found.weights) == pytest.approx(1)


def test_a_model_that_nobody_measured_is_left_out():
    latencies, truth = simulated(1, 3, devices=15, noise=0.01)
    latencies = np.column_stack([latencies, np.full(15, np.nan)])
    assert adjusted_rand_score(truth, cluster(latencies, [0.01] * 5).labels) >= 0.95


def test_eps_and_min_samples_can_be_told():
    latencies = np.array([[10.0], [10.4], [10.8], [12.0], [12.1]])
    assert cluster(latencies, eps_percent=5).labels.tolist() == [0, 0, 0, 1, 1]
    assert cluster(latencies, eps_percent=20).labels.tolist() == [0] * 5
    found = cluster(latencies, eps_percent=5, min_samples=3)
    assert found.labels.tolist() == [0, 0, 0, -1, -1]
    assert (found.eps_percent, found.min_samples) == (pytest.approx(5), 3)


@pytest.mark.parametrize(
    ("latencies", "more", "words"),
    [
        ([[1.0, -2.0]], {}, "positive"),
        ([[1.0, 0.0]], {}, "positive"),
        ([[1.0, np.inf]], {}, "finite"),
        ([[np.nan], [np.nan]], {}, "nothing to cluster"),
        ([1.0, 2.0], {}, "devices x models"),
        ([[1.0], [2.0]], {"eps_percent": -1}, "eps_percent"),
        ([[1.0], [2.0]], {"min_samples": -1}, "min_samples"),
        ([[1.0], [2.0]], {"repeatability": [0.1, 0.1]}, "repeatability"),
        ([[1.0], [2.0]], {"repeatability": -0.1}, "repeatability"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(latencies, more, words):
    with pytest.raises(ValueError, match=words):
        cluster(latencies, **more)


def test_min_samples_of_a_large_fleet_grow_with_it():
    rng = np.random.default_rng(0)
    for devices, least in ((100, 8), (4000, 16), (90_000, 90)):
        latencies = 10 * np.exp(rng.normal(0, 0.01, (devices, 4)))
        found = cluster(latencies)
        assert found.min_samples == least
        assert found.labels.max() == 0
        assert np.mean(found.labels < 0) < 0.05


def test_bins_give_what_exact_dbscan_gives(monkeypatch):
    latencies, truth = simulated(0, 4, devices=5000, noise=0.01)
    rng = np.random.default_rng(0)
    odd = rng.random(5000) < 0.01
    latencies[odd] *= np.exp(rng.uniform(-0.3, 0.8, (int(odd.sum()), 4)))
    binned = cluster(latencies).labels
    monkeypatch.setattr(density, "EXACT_UP_TO", 10**6)
    exact = cluster(latencies).labels
    assert adjusted_rand_score(exact, binned) > 0.99
    assert adjusted_rand_score(truth[~odd], binned[~odd]) > 0.95


def test_weighted_points_cluster_as_scikit_learn_has_them():
    rng = np.random.default_rng(0)
    for _ in range(5):
        points = np.concatenate([rng.normal(middle, 0.3, (150, 3)) for middle in (0, 2, 3)])
        weights = rng.integers(1, 20, len(points))
        labels, core = weighted_dbscan(points, weights, 0.35, 60)
        model = DBSCAN(eps=0.35, min_samples=60).fit(points, sample_weight=weights)
        assert np.flatnonzero(core).tolist() == model.core_sample_indices_.tolist()
        assert adjusted_rand_score(model.labels_[core], labels[core]) == 1
        assert (labels < 0).tolist() == (model.labels_ < 0).tolist()
    labels, core = weighted_dbscan(np.array([[0.0], [5.0]]), np.array([1, 1]), 1.0, 9)
    assert (labels.tolist(), core.tolist()) == ([-1, -1], [False, False])


def test_bins_agree_with_another_exact_dbscan():
    other = pytest.importorskip("dbscan", reason="dbscan, of the extra dev, is not installed")
    found = cluster(large_fleet(np.random.default_rng(0), 30_000))
    points = np.ascontiguousarray(found.features, dtype=float)
    exact, _ = other.DBSCAN(points, found.eps, found.min_samples)
    ids, member, counts = np.unique(exact, return_inverse=True, return_counts=True)
    exact = np.where(counts >= 300, ids, -1)[member]
    assert len(found.ids) == 5
    assert adjusted_rand_score(exact, found.labels) >= 0.985


@pytest.mark.parametrize("spread", [1.0, 1e6])
def test_bins_are_few_enough_whatever_the_points(spread, monkeypatch):
    points = np.random.default_rng(0).normal(0, spread, (5000, 5))
    member, counts, means = bins._grid(points, 0.5)
    assert len(counts) == len(np.unique(member)) == len(means)
    assert counts.sum() == 5000
    points /= spread
    fine = len(bins._grid(points, 2.0)[1])
    monkeypatch.setattr(bins, "MAX_BINS", 300)
    coarse = len(bins._grid(points, 2.0)[1])
    assert coarse < fine
    monkeypatch.setattr(bins, "MAX_BINS", 10_000)
    monkeypatch.setattr(bins, "MAX_NEAR", 1)
    assert len(bins._grid(points, 2.0)[1]) == coarse


def test_small_clusters_of_a_large_fleet_are_noise():
    rng = np.random.default_rng(0)
    latencies = 10 * np.exp(rng.normal(0, 0.005, (500, 3)))
    latencies[:3] *= 2
    assert cluster(latencies).labels[:3].tolist() == [-1, -1, -1]


def test_words_say_what_tells_a_cluster_from_the_rest():
    latencies = np.array([[10.0, 5.0, 2.0]] * 4 + [[11.8, 5.05, 1.7]] * 3)
    latencies[0, 0] = np.nan
    words = explain(latencies, [0, 0, 0, 0, 1, 1, 1], ["compute", "dispatch", "bandwidth"])
    assert words[1] == "compute 18 % slower, bandwidth 15 % faster, dispatch as the rest"
    assert words[0] == "compute 15 % faster, bandwidth 18 % slower, dispatch as the rest"


def test_words_for_a_fleet_of_one_cluster_compare_with_nothing():
    assert explain([[1.0], [1.0]], [0, 0], ["a"]) == {0: "nothing to compare with"}
    assert explain([[1.0], [1.0], [1.01]], [0, 0, -1], ["a"]) == {0: "as the rest"}
    with pytest.raises(ValueError, match="do not fit"):
        explain([[1.0], [1.0]], [0], ["a"])


def test_words_put_together_what_differs_alike():
    models = ["compute", "bandwidth", "dispatch", "copy"]
    fast, slow = np.ones((3, 4)), np.array([[1.2, 1.21, 1.0, 1.0]] * 2)
    words = explain(np.vstack([fast, slow]), [0, 0, 0, 1, 1], models)
    assert words[1] == "bandwidth and compute 20 % slower, the others as the rest"
    words = explain(np.vstack([fast, fast[:2] * 1.3]), [0, 0, 0, 1, 1], models)
    assert words[1] == "30 % slower on all models"
    many = np.exp(np.arange(8) * 0.1)
    words = explain([np.ones(8), many], [0, 1], list("abcdefgh"))
    assert words[1] == "h 101 % slower, g 82 % slower, f 65 % slower, 4 more by less, a as the rest"


def test_words_name_a_fact_that_nine_of_ten_have_and_few_others():
    latencies = np.array([[1.0]] * 20 + [[1.3]] * 10)
    labels = [0] * 20 + [1] * 10
    system = ["Debian 12"] * 19 + ["Debian 13"] * 10 + [None]
    board = ["one"] * 30
    facts = {"board": board, "system": system}
    words = explain(latencies, labels, ["a"], facts)
    assert words[1] == "a 30 % slower; system Debian 13 on 9 of 10"
    assert words[0] == "a 23 % faster"  # what one of the others has is not known
    facts["governor"] = ["performance"] * 20 + ["powersave"] * 10
    assert explain(latencies, labels, ["a"], facts)[0].endswith("; governor performance")
    with pytest.raises(ValueError, match="board"):
        explain(latencies, labels, ["a"], {"board": board[:-1]})


def test_devices_that_come_later_are_assigned_without_clustering_anew():
    for devices in (24, 4000):
        latencies, truth = simulated(5, 3, devices=devices, noise=0.01, gap=0.15)
        old, later = latencies[: devices // 2], latencies[devices // 2 :].copy()
        found = cluster(old)
        assigned = found.places.assign(later)
        assert adjusted_rand_score(truth[devices // 2 :], assigned) > 0.95
        assert np.mean(found.places.assign(old) == found.labels) > 0.99
        later[0, 1] = np.nan
        assert found.places.assign(later)[0] == assigned[0]
        strange = [[1000.0] * 4, [np.nan] * 4]
        assert found.places.assign(strange).tolist() == [-1, -1]
        again = Places.from_state(json.loads(json.dumps(found.places.to_state())))
        assert again.assign(later).tolist() == found.places.assign(later).tolist()
        for wrong in (later[:, :2], -later):
            with pytest.raises(ValueError, match="latencies must be"):
                found.places.assign(wrong)
    with pytest.raises(ValueError, match="no state"):
        Places.from_state({"models": [True]})


def test_a_fleet_without_clusters_assigns_everything_to_noise():
    places = cluster([[10.0], [20.0]]).places
    assert places.assign([[10.0], [np.nan]]).tolist() == [-1, -1]


def test_quality_tells_clear_clusters_from_shaky_ones():
    latencies, _ = simulated(3, 3, devices=24, noise=0.01, gap=0.15)
    clear = quality(cluster(latencies))
    assert clear.noise == 0
    assert clear.silhouette > 0.7
    assert 12 < clear.apart_percent < 25
    assert len(clear.stability) == 3
    assert min(clear.stability) > UNSTABLE
    chain = 10 * np.exp(0.02 * np.arange(12))[:, None]  # held together by each link
    shaky = quality(cluster(chain, eps_percent=2.1))
    assert (shaky.silhouette, shaky.apart_percent) == (None, None)
    assert shaky.stability[0] < UNSTABLE
    assert quality(cluster([[10.0], [20.0]])).stability == ()


def test_quality_of_a_large_fleet_is_told_from_a_sample():
    latencies, _ = simulated(0, 3, devices=6000, noise=0.01, gap=0.15)
    found = quality(cluster(latencies))
    assert found.silhouette > 0.6
    assert min(found.stability) > 0.9


def test_ids_are_kept_by_the_devices_they_share():
    old = [0, 0, 0, 0, 1, 1, 1, 2, 2, -1]
    assert match(old, [1, 1, 1, 1, 0, 0, 0, 2, 2, -1]) == {1: 0, 0: 1, 2: 2}
    # Cluster 2 dissolved, and a new one appeared from noise and a part of 1.
    assert match(old, [0, 0, 0, 0, 1, 1, 2, -1, -1, 2]) == {0: 0, 1: 1, 2: 3}
    assert match([-1, -1], [0, 0]) == {0: 0}
    assert match([0, 0], [-1, -1]) == {}
    assert match([0, 0, -1, -1], [0, 0, 1, 1], first=7) == {0: 0, 1: 7}
    with pytest.raises(ValueError, match="do not fit"):
        match([0], [0, 0])


def test_importing_the_module_does_not_import_scikit_learn():
    check = (
        "import sys, engine.fleet.documents, engine.fleet.membership; "
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
