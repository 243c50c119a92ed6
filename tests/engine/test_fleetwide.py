"""One network for a fleet, or one for each cluster: real network, latencies by a formula.

The two kinds of device wait for different layers, so that each would prune other channels.
"""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from engine import data
from engine.compress.export import Template
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import trace
from engine.events import Noted, Reporter, Started
from engine.fleet.geometry import measure_geometry
from engine.latency import Latency
from engine.search import fleetwide
from engine.search.hdap import Cluster, Settings

CLUSTERS = (Cluster(0, 6, ("early",)), Cluster(1, 6, ("late",)))
SETTINGS = Settings(
    outer_iterations=1,
    evaluations=240,
    sigma=0.15,
    per_cluster_gain=3.0,
    population=5,
    max_extra_pruning=0.9,
    maximum_drop=60.0,
    alpha=0.94,
    accuracy_images=64,
    samples=16,
    finalists=1,
    surrogate="ridge",
    recipe=Recipe(epochs=1, lr=0.05, batch=32, augment=False),
)
EXAMPLE = torch.rand(1, 3, 16, 16)


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits")
    return replace(
        whole,
        train_images=whole.train_images[:384, :, ::2, ::2].copy(),
        train_labels=whole.train_labels[:384],
        selection_images=whole.selection_images[:, :, ::2, ::2].copy(),
        test_images=whole.test_images[:, :, ::2, ::2].copy(),
    )


@pytest.fixture(scope="module")
def network(digits):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 32)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    finetune(model, digits, Recipe(epochs=8, lr=0.1, batch=32, augment=False))
    return model


class Devices:
    """One waits for the first convolution alone, the other for the last."""

    def __init__(self, network, early=10**9):
        self.early = early  # how often the first answers
        self.geometry = measure_geometry(network, trace(network, EXAMPLE), EXAMPLE)
        self.asked = 0

    def __call__(self, requests, cancelled=lambda: False):
        for path, device in requests:
            self.asked += 1
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if device == "early" and self.early <= 0:
                yield Latency(device=device, model=digest, error="unreachable")
                continue
            self.early -= device == "early"
            widths = tuple(int(width) for width in path.stem.split("-"))
            macs = self.geometry.macs([widths])[0]
            ms = 0.1 + 1e-5 * macs[0 if device == "early" else 2]
            yield Latency(device=device, model=digest, median_ms=ms, block_medians_ms=(ms, ms))


@pytest.fixture(scope="module")
def run(network, digits):
    """`run(folder, …)`; the network is exported once for all."""
    groups, exported = trace(network, EXAMPLE), []

    def template():
        if not exported:
            exported.append(Template(network, EXAMPLE, groups))
        return exported[0]

    def search(folder, settings=SETTINGS, clusters=CLUSTERS, **how):
        events, devices = [], Devices(network, **how)
        outcome = fleetwide.compress(
            network, groups, digits, clusters, devices, settings, folder,
            Reporter("job", events.append), template=template,
        )  # fmt: skip
        return outcome, events, devices

    return search


@pytest.fixture(scope="module")
def apart(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    return folder, *run(folder)


def test_clusters_that_wait_for_other_layers_are_told_to_gain_from_networks_of_their_own(apart):
    _, outcome, events, _ = apart
    ahead = outcome.forecast
    assert all(ahead.own[name] >= ahead.one[name] for name in ("0", "1"))
    assert ahead.gain >= SETTINGS.per_cluster_gain
    note = next(e.text for e in events if isinstance(e, Noted) and e.step == fleetwide.STEP)
    assert "predicted" in note
    assert "one network for each cluster is searched" in note


def test_each_network_prunes_what_its_own_cluster_waits_for(apart):
    _, outcome, events, _ = apart
    ids, (early, late) = zip(*outcome.results, strict=True)
    assert ids == ((0,), (1,))
    share = [
        np.array(r.metrics["widths_after"]) / r.metrics["widths_before"] for r in (early, late)
    ]
    assert share[0][0] < share[1][0]
    assert share[0][2] > share[1][2]
    for result, name in ((early, "0"), (late, "1")):
        assert set(result.metrics["measured_ms_after"]) == {name}
        assert result.metrics["measured_speedup"] > outcome.forecast.one[name]
    assert any(isinstance(e, Started) and e.step == "search (cluster 1)" for e in events)


def test_taken_up_again_it_decides_the_same_and_measures_nothing(apart, run):
    folder, outcome, *_ = apart
    again, _, devices = run(folder)
    assert devices.asked == 0
    assert again.forecast == outcome.forecast
    assert [r.design for _, r in again.results] == [r.design for _, r in outcome.results]
    assert [r.metrics for _, r in again.results] == [r.metrics for _, r in outcome.results]


def test_a_cluster_without_any_device_left_loses_only_its_own_network(run, tmp_path):
    # It is gone once the fleet's search has learnt from it, before its own one begins.
    outcome, events, _ = run(tmp_path, replace(SETTINGS, per_cluster="always"), early=19)
    assert [ids for ids, _ in outcome.results] == [(1,)]
    notes = [e.text for e in events if isinstance(e, Noted)]
    assert any("cluster 0 gets no network of its own: no device is left" in one for one in notes)
    assert outcome.results[0][1].metrics["measured_speedup"] > 1.2


def test_measurements_are_shared_between_the_networks(apart):
    folder, *_ = apart
    lines = [json.loads(line) for line in (folder / "measurements.jsonl").open()]
    taken = [(tuple(line["widths"]), line["latency"]["device"]) for line in lines]
    assert len(set(taken)) == len(taken)
    assert not list(folder.glob("cluster-*/measurements.jsonl"))


def test_one_network_is_made_where_a_second_one_gains_too_little(run, tmp_path):
    settings = replace(SETTINGS, per_cluster_gain=900.0)
    outcome, events, _ = run(tmp_path, settings)
    assert [ids for ids, _ in outcome.results] == [(0, 1)]
    assert outcome.forecast is not None
    assert any(
        isinstance(e, Noted) and "one network for the fleet is searched" in e.text for e in events
    )


def test_nobody_looks_ahead_for_a_fleet_of_one_cluster(run, tmp_path):
    outcome, *_ = run(tmp_path, clusters=CLUSTERS[:1])
    assert outcome.forecast is None
    assert len(outcome.results) == 1
