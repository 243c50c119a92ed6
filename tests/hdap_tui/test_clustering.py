"""Clusters that last in the store, and the fleet's mean from few devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operating import QUICK, hdap, make_models

from engine.fleet.membership import AGREE, record_type
from engine.latency import Latency
from hdap_tui.clustering import cluster_fleet
from hdap_tui.config import Settings, load
from hdap_tui.context import Context
from hdap_tui.errors import ExitCode, UserError
from hdap_tui.estimating import latest_round, plan_sample
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan
from hdap_tui.store import clusters, devices, measurements, memberships, models
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import ClusterMap, ModelRow
from hdap_tui.watching.watcher import Watcher

DIGESTS = ("ab" * 32, "cd" * 32)
LEVELS = np.array([[20.0, 12.0]] * 6 + [[24.0, 12.4]] * 4)


class Site:
    """A store whose devices are measured as a test says."""

    def __init__(self, folder: Path) -> None:
        names = [f"d{i}" for i in range(len(LEVELS))]
        listed = "".join(f'[[devices]]\nname = "{n}"\nhost = "{n}"\nuser = "u"\n' for n in names)
        (folder / "fleet.toml").write_text(listed)
        self.settings: Settings = load(folder / "fleet.toml").in_state(folder)
        self.store: Store = open_store(folder / "fleet.db")
        devices.sync(self.store, self.settings.devices)
        for name, digest in zip(("probe", "detector"), DIGESTS, strict=True):
            models.add(
                self.store, name=name, digest=digest, path=f"/{name}.onnx", kind="model", size=1
            )
        for name in names:
            devices.set_model(self.store, name, DIGESTS[1])
        self.names, self.second = names, 0
        self.rng = np.random.default_rng(0)

    def measure(
        self,
        latencies: NDArray[np.float64],
        kind: measurements.SweepKind = "sweep",
        blocks: int = 3,
    ) -> int:
        sweep = measurements.begin(self.store, kind)
        self.second += 1
        for name, row in zip(self.names, latencies, strict=True):
            for digest, value in zip(DIGESTS, row, strict=True):
                if np.isnan(value):
                    continue
                timed = value * np.exp(self.rng.normal(0, 0.004, blocks))
                one = Latency(
                    device=name, model=digest, median_ms=float(np.median(timed)),
                    block_medians_ms=tuple(timed.tolist()),
                    at=f"2026-11-20T12:00:{self.second:02d}.000+00:00",
                )  # fmt: skip
                measurements.add(self.store, sweep, one)
        measurements.finish(self.store, sweep)
        return sweep

    def cluster(self, sweep: int | None, **more: float) -> ClusterMap:
        rows = [models.by_digest(self.store, digest) for digest in DIGESTS]
        return cluster_fleet(
            self.settings, self.store, [r for r in rows if r], sweep, whole=True, **more
        )

    def round(self, latencies: NDArray[np.float64]) -> ClusterMap:
        return self.cluster(self.measure(latencies))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    yield found
    found.store.close()


def test_a_device_of_the_fleet_moves_when_sweeps_agree(site: Site) -> None:
    first = site.round(LEVELS)
    assert first.labels == (0,) * 6 + (1,) * 4
    assert first.silhouette is not None
    assert first.silhouette > 0.8
    assert [c.stability for c in first.clusters] == [1, 1]
    moved = LEVELS.copy()
    moved[0] = LEVELS[9]
    for _ in range(AGREE - 1):
        assert site.round(moved).labels == first.labels
    assert site.round(moved).labels == (1, 0, 0, 0, 0, 0, 1, 1, 1, 1)
    assert clusters.latest(site.store).labels == (1, 0, 0, 0, 0, 0, 1, 1, 1, 1)


def test_clusters_keep_their_ids_when_they_are_found_anew(site: Site) -> None:
    site.round(LEVELS)
    swapped = LEVELS.copy()
    swapped[2:6] = LEVELS[9]  # the second cluster is the larger one now
    assert site.cluster(None).labels == (0,) * 6 + (1,) * 4
    site.measure(swapped)
    found = site.cluster(None)
    assert found.labels == (0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
    assert [c.id for c in found.clusters] == [1, 0]
    other = site.cluster(None, eps_percent=60.0)
    assert other.labels == (1,) * 10
    assert other.silhouette is None


def test_a_trial_of_other_limits_is_shown_and_not_kept(site: Site) -> None:
    before = site.round(LEVELS)
    assert site.cluster(None, eps_percent=60.0).labels == (0,) * 10
    assert site.cluster(None, min_samples=11).labels == (-1,) * 10
    assert clusters.latest(site.store) == before
    assert site.round(LEVELS).labels == before.labels
    assert memberships.next_id(site.store) == 2
    with pytest.raises(ValueError, match="eps_percent"):
        site.cluster(None, eps_percent=-1.0)


def test_two_processes_that_take_in_a_sweep_at_once_lose_none(site: Site) -> None:
    site.round(LEVELS)
    moved = LEVELS.copy()
    moved[0] = LEVELS[9]
    sweeps = [site.measure(moved) for _ in range(AGREE)]

    def take(sweep: int) -> None:
        one = Site.__new__(Site)
        one.settings, one.store = site.settings, open_store(site.store.path)
        one.cluster(sweep)
        one.store.close()

    with ThreadPoolExecutor(AGREE) as pool:
        list(pool.map(take, sweeps))
    assert clusters.latest(site.store).labels == (1, 0, 0, 0, 0, 0, 1, 1, 1, 1)


def test_a_fleet_that_is_another_one_and_answers_nothing_is_noise(
    site: Site, tmp_path: Path
) -> None:
    site.round(LEVELS)
    listed = "".join(f'[[devices]]\nname = "n{i}"\nhost = "h"\nuser = "u"\n' for i in range(3))
    (tmp_path / "fleet.toml").write_text(listed)
    site.settings = load(tmp_path / "fleet.toml").in_state(tmp_path)
    devices.sync(site.store, site.settings.devices)
    found = site.cluster(site.measure(np.full(LEVELS.shape, np.nan)))
    assert (found.devices, found.labels) == (("n0", "n1", "n2"), (-1, -1, -1))
    assert found.clusters == ()


def test_a_part_that_runs_another_model_is_placed_by_what_most_of_the_fleet_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "ef" * 32
    models.add(site.store, name="own", digest=other, path="/o.onnx", kind="model", size=1)
    devices.set_model(site.store, "d0", other)

    probe = models.by_digest(site.store, DIGESTS[0])

    class Measured:
        models = {one.name: probe for one in site.settings.probes}  # noqa: RUF012
        last_sweep = 1

        def running(self, names: list[str]) -> dict[str, ModelRow]:
            digests = {name: devices.model_on(site.store, name) for name in names}
            found = {name: models.by_digest(site.store, one) for name, one in digests.items()}
            return {name: row for name, row in found.items() if row is not None}

        def with_files(self, running: dict[str, ModelRow]) -> list[str]:
            return [*running]

        def run(self, kind: str, visits: Mapping[str, list[ModelRow]], **_: Any) -> list[Latency]:
            assert kind == "bench"
            assert visits["d0"][-1].name == "own"
            return []

    taken: list[str] = []
    context = Context(settings=site.settings)
    watcher = Watcher(context)
    monkeypatch.setattr(watcher, "measuring", Measured())
    monkeypatch.setattr(
        watcher, "_cluster", lambda found, *_: taken.extend(model.name for model in found)
    )
    watcher.sweep(["d0"])
    context.close()
    assert taken[-1] == "detector"


def test_a_device_that_misses_a_sweep_keeps_its_cluster(site: Site) -> None:
    site.round(LEVELS)
    gone = LEVELS.copy()
    gone[:2] = np.nan
    found = site.round(gone)
    assert found.labels == (0,) * 6 + (1,) * 4
    assert found.clusters[0].size == 6
    assert all(np.isfinite(point).all() for point in found.points)


def test_places_come_back_as_they_were_kept(site: Site) -> None:
    site.round(LEVELS)
    held = memberships.load(site.store, DIGESTS)
    assert held is not None
    assert held.names == site.names
    np.testing.assert_allclose(np.exp(held.records["place"]), LEVELS, rtol=0.02)
    assert memberships.load(site.store, DIGESTS[:1]) is None
    assert memberships.next_id(site.store) == 2
    records = np.zeros(3, record_type(2))
    records["place"] = [[1, 2], [3, 4], [5, 6]]
    memberships.write(site.store, [2, 5, 7], records)
    ids, again = memberships.read(site.store, record_type(2))
    assert ids == [2, 5, 7]
    np.testing.assert_array_equal(again, records)


def test_the_mean_of_the_fleet_is_told_from_the_latest_round(site: Site) -> None:
    with pytest.raises(UserError, match="not been measured yet"):
        latest_round(site.store)
    site.round(LEVELS)
    whole = latest_round(site.store).estimate()
    assert whole.mean_ms == pytest.approx(LEVELS[:, 1].mean(), rel=0.01)
    assert whole.measured == 10
    some = np.full(LEVELS.shape, np.nan)
    some[[0, 1, 2, 7, 8, 9], 1] = 2 * LEVELS[[0, 1, 2, 7, 8, 9], 1]
    number = site.measure(some, "estimate")
    site.measure(LEVELS, "bench")  # nobody asked for the whole fleet
    found = latest_round(site.store).estimate()
    assert [(s.devices, s.measured) for s in found.strata] == [(6, 3), (4, 3)]
    assert found.low_ms < 2 * LEVELS[:, 1].mean() < found.high_ms
    site.measure(LEVELS, "canary", blocks=1)
    canary = latest_round(site.store)
    assert canary.estimate().measured == 10
    assert canary.repeatability == pytest.approx(0.004, rel=0.5)  # that of a block of the sweep
    assert latest_round(site.store, number).estimate() == found


def test_as_few_devices_are_drawn_as_the_width_needs(site: Site) -> None:
    site.measure(LEVELS)
    with pytest.raises(UserError, match="not been clustered yet"):
        plan_sample(site.store, 5.0)
    site.cluster(None)
    for within, needed in ((5.0, 6), (0.01, 10)):
        planned, names = plan_sample(site.store, within)
        assert planned.devices == len(names) == needed
        assert set(names) <= set(site.names)
    with pytest.raises(UserError, match="above 0"):
        plan_sample(site.store, 0.0)


@pytest.fixture(scope="module")
def file(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = make_lab(4, plan=Plan(step_at_s=None))
    folder = tmp_path_factory.mktemp("estimating")
    make_models(folder)
    (folder / "fleet.toml").write_text(fleet_toml(lab, QUICK))
    return folder / "fleet.toml"


@pytest.mark.timeout(240)
def test_a_sweep_measures_only_what_the_mean_needs(file: Path) -> None:
    assert hdap(file, "estimate").status == ExitCode.FAILED
    assert hdap(file, "sweep", "--estimate", "5").status == ExitCode.FAILED
    assert hdap(file, "sweep").status == ExitCode.DONE
    refused = hdap(file, "sweep", "--estimate", "5", "--select", "edge-01")
    assert refused.status == ExitCode.USAGE
    done = hdap(file, "sweep", "--estimate", "50")
    assert done.status == ExitCode.DONE
    assert {one["model"] for one in done.data["measurements"]} == {"slow"}
    assert done.data["estimate"]["devices"] == 4
    assert done.data["emulated"] == 4
    told = hdap(file, "estimate", "--within", "10").data
    assert told["mean_ms"] == done.data["estimate"]["mean_ms"]
    assert told["low_ms"] <= told["mean_ms"] <= told["high_ms"]
    assert told["needed"][0]["devices"] <= 4


def test_tables_go_through_the_same_commands(file: Path, tmp_path: Path) -> None:
    table, later = tmp_path / "devices.csv", tmp_path / "later.csv"
    rows = [f"d{i},{10 + 0.01 * i + 4 * (i > 5)},{'old' if i > 5 else 'new'}" for i in range(10)]
    table.write_text("\n".join(["device,a,os", *rows]))
    later.write_text("device,a\nx,14.1\n")
    found = hdap(file, "clusters", "--input", str(table), "--facts", "os", "--assign", str(later))
    assert found.status == ExitCode.DONE
    assert [c["size"] for c in found.data["clusters"]] == [6, 4]
    assert found.data["clusters"][1]["note"].endswith("; os old")
    assert found.data["assigned"] == {"x": 1}
    table.write_text("\n".join(["device,a", *(row.rpartition(",")[0] for row in rows)]))
    told = hdap(file, "estimate", "--input", str(table), "--within", "1")
    assert told.data["estimates"][0]["measured"] == 10
    for arguments in (
        ("clusters", "--facts", "os"),
        ("clusters", "--input", str(table), "--facts", "os"),
        ("estimate", "--input", str(later)),
        ("estimate", "--input", str(table), "--within", "0"),
    ):
        refused = hdap(file, *arguments)
        assert refused.status == ExitCode.USAGE
        assert refused.said.count("\n") == 1
