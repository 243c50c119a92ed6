"""Canary rounds of devices that nobody has to reach: budget, versions, migrations, acceptance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.latency import Latency
from hdap_tui.alerting.drifting import drift_budget, forget_baseline, judge_round
from hdap_tui.config import Settings, load
from hdap_tui.errors import SettingsError
from hdap_tui.store import alerts, clusters, devices, drift, facts, measurements, models
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import AlertRow, ClusterMap

DEVICES, DIGEST = 20, "ab" * 32
FACTS = {"os": "Debian 12", "kernel": "6.1.0", "onnxruntime": "1.20.1"}


class Site:
    """A store whose devices answer as a test says, round after round."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.names = [f"d{i}" for i in range(DEVICES)]
        listed = "".join(
            f'[[devices]]\nname = "{n}"\nhost = "{n}"\nuser = "u"\n' for n in self.names
        )
        (folder / "fleet.toml").write_text(f"[drift]\nbaseline = 10\n{more}\n{listed}")
        self.settings: Settings = load(folder / "fleet.toml").in_state(folder)
        self.store: Store = open_store(folder / "fleet.db")
        devices.sync(self.store, self.settings.devices)
        models.add(self.store, name="net", digest=DIGEST, path="/n.onnx", kind="model", size=1)
        self.rng = np.random.default_rng(0)

    def rounds(self, count: int, factors: Mapping[int, float] | None = None) -> list[AlertRow]:
        """Measure the fleet so many times; return the alerts that opened."""
        opened = []
        for _ in range(count):
            sweep = measurements.begin(self.store, "canary")
            values: NDArray[np.float64] = 10 * np.exp(self.rng.normal(0, 0.01, DEVICES))
            found = []
            for i, name in enumerate(self.names):
                median = float(values[i] * (factors or {}).get(i, 1.0))
                one = Latency(
                    device=name, model=DIGEST, median_ms=median, block_medians_ms=(median,)
                )
                measurements.add(self.store, sweep, one)
                found.append(one)
            measurements.finish(self.store, sweep)
            opened += judge_round(self.settings, self.store, DIGEST, found)
        return opened

    def look(self, **changes: str) -> None:
        """Find out what the devices are."""
        for name in self.names:
            facts.save(self.store, name, {**FACTS, **changes})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    yield found
    found.store.close()


@pytest.fixture
def labels(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the cluster of each device, which a test may change."""
    found = [0] * 10 + [1] * 10

    def latest(_: Store) -> ClusterMap:
        return ClusterMap(devices=tuple(site.names), labels=tuple(found))

    monkeypatch.setattr(clusters, "latest", latest)
    return found


def test_the_settings_say_how_often_chance_may_alarm(tmp_path: Path) -> None:
    found = Site(tmp_path, "false_alerts_per_week = 0.5\nh = 12\n[watch]\ncanary_every_s = 600\n")
    budget = drift_budget(found.settings)
    assert budget.per_week == 0.5
    assert budget.rounds_per_week == pytest.approx(1008)
    assert budget.fixed == {"h"}
    assert drift_budget(found.settings, 0.25).per_week == pytest.approx(0.125)
    found.store.close()


def test_another_slack_needs_a_height(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"only where k is 0\.8, so give h"):
        Site(tmp_path, "k = 0.5")


def test_what_a_new_version_brings_is_one_alert_that_can_be_accepted(site: Site) -> None:
    site.look()
    assert site.rounds(12) == []
    site.look(kernel="6.6.20")
    (alert,) = site.rounds(8, dict.fromkeys(range(DEVICES), 1.3))
    assert (alert.scope, alert.kind, alert.direction) == ("cluster", "step", "up")
    assert alert.subject == "version Debian 12, 6.6.20, 1.20.1"
    assert alert.size_percent == pytest.approx(30, abs=5)
    states = drift.load_states(site.store, DIGEST)
    assert states["device", "d3"].baseline_ms is None  # learning anew
    assert site.rounds(8, dict.fromkeys(range(DEVICES), 1.3)) == []
    known = drift.load_states(site.store, DIGEST)["device", "d3"].baseline_ms
    assert known == pytest.approx(13, rel=0.05)


def test_an_alert_of_a_version_is_accepted_without_learning_once_more(site: Site) -> None:
    site.look()
    site.rounds(12)
    site.look(kernel="6.6.20")
    (alert,) = site.rounds(20, dict.fromkeys(range(DEVICES), 1.3))
    forget_baseline(site.settings, site.store, alert)
    alerts.resolve(site.store, alert.id, "accepted")
    assert drift.load_states(site.store, DIGEST)["device", "d3"].baseline_ms is not None
    assert site.rounds(4, dict.fromkeys(range(DEVICES), 1.3)) == []


def test_a_look_that_finds_a_fact_for_the_first_time_is_no_new_version(site: Site) -> None:
    site.rounds(12)
    site.look()
    assert site.rounds(3) == []
    assert drift.load_states(site.store, DIGEST)["device", "d3"].baseline_ms is not None


def test_a_device_that_changes_its_cluster_is_told_and_resolved_when_it_is_back(
    site: Site, labels: list[int]
) -> None:
    site.rounds(12)
    labels[2] = 1
    (alert,) = site.rounds(2)
    assert (alert.scope, alert.subject, alert.kind) == ("device", "d2", "migration")
    history = alerts.events(site.store, alert.id)
    assert history[0].text == "from cluster A to cluster B"
    labels[2] = 0
    assert site.rounds(1) == []
    over = alerts.row(site.store, alert.id)
    assert (over.state, over.reason) == ("resolved", "back in its cluster")


def test_a_move_that_is_accepted_is_a_move_once_more_when_the_device_goes_back(
    site: Site, labels: list[int]
) -> None:
    site.rounds(12)
    labels[2] = 1
    (alert,) = site.rounds(1)
    forget_baseline(site.settings, site.store, alert)
    alerts.resolve(site.store, alert.id, "accepted")
    assert drift.load_states(site.store, DIGEST)["device", "d2"].baseline_ms is not None
    labels[2] = 0
    (again,) = site.rounds(1)
    assert (again.subject, again.kind) == ("d2", "migration")


def test_many_devices_that_become_slower_are_one_alert_that_says_how_many(site: Site) -> None:
    site.rounds(12)
    opened = site.rounds(6, dict.fromkeys(range(7), 1.4))
    assert [(a.scope, a.subject) for a in opened] == [("fleet", "fleet")]
    assert alerts.row(site.store, opened[0].id).inhibited == 7


def test_only_who_was_asked_in_vain_is_without_data(site: Site) -> None:
    site.rounds(12)

    def watched(answer: Latency | None) -> str:
        good = [Latency(device=n, model=DIGEST, median_ms=10.0) for n in site.names[1:]]
        for _ in range(4):
            judge_round(site.settings, site.store, DIGEST, [*good, *filter(None, [answer])])
        return {row.name: row.watched for row in devices.rows(site.store)}[site.names[0]]

    devices.set_model(site.store, site.names[0], DIGEST)
    assert watched(None) == "ok", "it was left alone"
    assert watched(Latency(device=site.names[0], model=DIGEST, error="timeout")) == "no data"
    assert watched(Latency(device=site.names[0], model=DIGEST, median_ms=10.0)) == "ok"
