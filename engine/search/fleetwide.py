"""One network for the whole fleet, or one for each cluster: what each would gain, and doing it.

A network that is fast on average need not be fast anywhere: where clusters differ in what they
are slow at, each would choose other channels. One network is simpler to operate, so the gain
is predicted for both before anything is fine-tuned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.accelerator import threads
from engine.events import Reporter, silent
from engine.files import write
from engine.search.hdap import Loop, Result, scorers
from engine.search.measurements import NoDeviceError
from engine.search.objective import FleetLatency
from engine.search.outer import Search

if TYPE_CHECKING:
    from torch import nn

    from engine.compress.export import Template
    from engine.compress.groups import Group
    from engine.data import Dataset
    from engine.latency import Measure
    from engine.search.measurements import Cluster
    from engine.search.settings import Settings
    from engine.search.space import Widths

STEP = "forecast"


@dataclass(frozen=True)
class Forecast:
    """Speed-ups that the first outer iteration's surrogates predict; nothing here is measured."""

    one: Mapping[str, float]
    """Of one network for all, by cluster."""
    own: Mapping[str, float]
    """Of a network of its own, by cluster."""
    one_fleet: float
    """Of one network for all, over the fleet as the objective has it."""
    own_fleet: float
    """Of a network for each cluster, over the fleet."""

    @property
    def gain(self) -> float:
        """By how much faster the fleet would be with a network for each cluster, in per cent."""
        return 100 * (self.own_fleet / self.one_fleet - 1)

    def sentence(self) -> str:
        """Say it."""
        each = "; ".join(
            f"cluster {name}: {self.one[name]:.2f}x and {self.own[name]:.2f}x" for name in self.one
        )
        return (
            f"predicted after one outer iteration: one network for the fleet {self.one_fleet:.2f}x,"
            f" one for each cluster {self.own_fleet:.2f}x ({self.gain:+.1f} %); {each}"
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a search for a fleet."""

    results: tuple[tuple[tuple[int, ...], Result], ...]
    """Networks, each with the clusters that it is for."""
    forecast: Forecast | None
    """None where the fleet is one cluster, or nobody asked."""


def compress(
    network: nn.Module,
    groups: Sequence[Group],
    dataset: Dataset,
    clusters: Sequence[Cluster],
    measure: Measure,
    settings: Settings,
    folder: Path,
    reporter: Reporter | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    template: Callable[[], Template] | None = None,
) -> Outcome:
    """Decide between one network and one for each cluster, then search, prune and fine-tune.

    Arguments, events and errors are those of :func:`engine.search.hdap.compress`; before them
    come the step "forecast" and a note that says what each way would gain. Where each cluster
    gets its own, its steps bear its number, and its files lie in a folder of their own;
    measurements are shared. A cluster of which no device is left gets none, and a note says so.

    Raises:
        Cancelled: somebody asked to stop.
        ValueError: see :func:`engine.search.hdap.compress`.
    """
    reporter = reporter or silent()
    common = (network, groups, dataset)
    everyone = tuple(cluster.id for cluster in clusters)
    with threads(1), scorers(settings) as executor:
        loop = Loop(
            *common, clusters, measure, settings, folder, reporter, cancelled,
            executor=executor, template=template,
        )  # fmt: skip
        apart, ahead = settings.per_cluster == "always", None
        if len(clusters) > 1 and settings.per_cluster != "never":
            ahead = _forecast(loop, folder / "forecast.json")
            apart = apart or ahead.gain >= settings.per_cluster_gain
            way = "one network for each cluster" if apart else "one network for the fleet"
            reporter.noted(STEP, f"{ahead.sentence()}; {way} is searched")
        if not apart or len(clusters) == 1:
            return Outcome(((everyone, loop.run()),), ahead)
        results: list[tuple[tuple[int, ...], Result]] = []
        for cluster in clusters:
            name = f"cluster {cluster.id}"
            own = Loop(
                *common, (cluster,), measure, settings, folder / name.replace(" ", "-"), reporter,
                cancelled, log=folder / "measurements.jsonl", suffix=f" ({name})",
                executor=executor, template=loop.template,
            )  # fmt: skip
            try:
                results.append(((cluster.id,), own.run()))
            except NoDeviceError as error:
                if cluster == clusters[-1] and not results:
                    raise
                reporter.noted(STEP, f"{name} gets no network of its own: {error}")
        return Outcome(tuple(results), ahead)


def _forecast(loop: Loop, path: Path) -> Forecast:
    """Search each cluster's own best candidate, beginning at those of the fleet's search."""
    if path.exists():
        return Forecast(**json.loads(path.read_text(encoding="utf-8")))
    found, search = loop.first()
    fleet, whole = search.fleet, loop.whole
    assert fleet is not None
    shared = found.widths if found else whole
    settings, reporter = loop.settings, loop.reporter
    share = max(settings.at_once, settings.evaluations // 4)
    reporter.started(STEP, len(fleet.clusters), len(fleet.clusters) * search.seconds / 4)
    best: dict[str, Widths] = {}
    for number, cluster in enumerate(fleet.clusters, 1):
        alone = fleet.only(cluster)
        own = Search(
            search.space,
            search.accuracies,
            loop.measurements,
            lambda _, alone=alone: alone,  # type: ignore[misc]
            replace(settings, evaluations=share, refinements=0, finalists=0),
            silent(),
            loop.cancelled,
            1,
            lambda kind: kind,
            search.known,
        ).run()
        best[str(cluster.id)] = own.widths if own else whole
        reporter.advanced(STEP, number)
    before, after = fleet.predict([whole])[:, 0], fleet.predict([shared])[:, 0]
    alone_ms = np.array(
        [fleet.predict([best[str(c.id)]])[row, 0] for row, c in enumerate(fleet.clusters)]
    )
    alone_ms = np.minimum(alone_ms, after)  # the shared one is there for each as well
    names = [str(cluster.id) for cluster in fleet.clusters]
    of_fleet = FleetLatency.of(fleet.clusters, settings.objective, settings.weighting)
    value = {
        name: float(of_fleet(ms[:, None])[0])
        for name, ms in (("before", before), ("one", after), ("own", alone_ms))
    }
    ahead = Forecast(
        one=dict(zip(names, (before / after).tolist(), strict=True)),
        own=dict(zip(names, (before / alone_ms).tolist(), strict=True)),
        one_fleet=value["before"] / value["one"],
        own_fleet=value["before"] / value["own"],
    )
    write(path, json.dumps(asdict(ahead)).encode())
    reporter.finished(STEP, **_plain(ahead))
    return ahead


def _plain(ahead: Forecast) -> dict[str, Any]:
    return {**asdict(ahead), "gain_percent": ahead.gain}
