"""What the measured designs teach about the fleet: one surrogate a cluster, one mean over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.events import Reporter
from engine.fleet.geometry import Geometry
from engine.fleet.surrogates import Error, Surrogate, compare_predictions
from engine.search.measurements import Cluster, Measurements
from engine.search.objective import FleetLatency
from engine.search.settings import Settings
from engine.search.space import Widths

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fleet:
    """Latency of designs over a fleet, predicted and measured."""

    geometry: Geometry
    clusters: tuple[Cluster, ...]
    """Those of which enough is known."""
    surrogates: tuple[Surrogate, ...]
    latency: FleetLatency
    """What the clusters' latencies make of the fleet's."""
    tables: tuple[Mapping[Widths, float], ...]
    """What was measured, in milliseconds."""
    lost: frozenset[int] = frozenset()
    """Ids of the clusters of which no device can be asked any more."""

    def predict(self, designs: Sequence[Widths]) -> Array:
        """Return predicted milliseconds (clusters, n)."""
        multiples = {s.multiple for s in self.surrogates}
        features = {m: self.geometry.features(designs, m) for m in multiples}
        return np.stack([s.predict_features(features[s.multiple]) for s in self.surrogates])

    def value(self, designs: Sequence[Widths]) -> Array:
        """Return what the objective makes of the predictions, (n,) milliseconds."""
        return self.latency(self.predict(designs))

    def measured(self, widths: Widths) -> dict[str, float]:
        """Return measured milliseconds by cluster, for those that measured the design."""
        return {
            str(cluster.id): table[widths]
            for cluster, table in zip(self.clusters, self.tables, strict=True)
            if widths in table
        }

    def measured_value(self, widths: Widths) -> float | None:
        """Return the same of what was measured; None where a cluster has not measured it."""
        found = list(self.measured(widths).values())
        if len(found) < len(self.clusters):
            return None
        return float(self.latency(np.array(found)[:, None])[0])

    def settled_value(self, widths: Widths) -> float | None:
        """Return the same, with predictions for the lost clusters; None where more is to come."""
        measured = self.measured(widths)
        missing = [c.id for c in self.clusters if str(c.id) not in measured]
        if not self.lost.issuperset(missing):
            return None
        rows = self.predict([widths]) if missing else np.zeros((len(self.clusters), 1))
        for row, cluster in enumerate(self.clusters):
            rows[row] = measured.get(str(cluster.id), rows[row])
        return float(self.latency(rows)[0])

    def only(self, cluster: Cluster) -> Fleet:
        """Return what is known of one cluster alone."""
        row = self.clusters.index(cluster)
        return Fleet(
            self.geometry,
            (cluster,),
            (self.surrogates[row],),
            FleetLatency.of((cluster,), self.latency.kind, "size"),
            (self.tables[row],),
            self.lost,
        )

    def miss(self, designs: Sequence[Widths]) -> Error:
        """Tell how far the predictions of designs lie from what was measured since."""
        predicted, measured = [], []
        for row, table in zip(self.predict(designs), self.tables, strict=True):
            for value, widths in zip(row, designs, strict=True):
                if widths in table:
                    predicted.append(value)
                    measured.append(table[widths])
        return compare_predictions(predicted, measured)

    def report(self) -> dict[str, Any]:
        """Return what the surrogates are worth, by cluster, for JSON."""
        return {
            str(cluster.id): {
                "kind": surrogate.report.kind,
                "samples": surrogate.report.samples,
                "errors": {k: asdict(e) for k, e in surrogate.report.errors.items()},
                "floor": surrogate.report.floor,
            }
            for cluster, surrogate in zip(self.clusters, self.surrogates, strict=True)
        }


def learn(
    measurements: Measurements,
    geometry: Geometry,
    settings: Settings,
    reporter: Reporter,
    step: str,
    previous: Fleet | None = None,
) -> Fleet:
    """Fit a surrogate for every cluster of which enough has been measured.

    After `previous`, the same regressions learn from what has been measured since, which is
    quick; without, they are cross-validated and chosen.

    Raises:
        ValueError: there is no such cluster.
    """
    clusters: list[Cluster] = []
    surrogates: list[Surrogate] = []
    tables: list[dict[Widths, float]] = []
    before = dict(zip(previous.clusters, previous.surrogates, strict=True)) if previous else {}
    for cluster in measurements.clusters:
        known = measurements.learned(cluster)
        if known is None:
            reporter.noted(step, f"cluster {cluster.id} is left out: too little was measured")
            continue
        if cluster in before:
            surrogate = before[cluster].refit(known.widths, known.latencies)
        else:
            surrogate = Surrogate(
                geometry, settings.surrogate, seed=settings.seed, multiple=cluster.multiple
            )
            surrogate.fit(known.widths, known.latencies, known.repeatability)
            reporter.noted(step, _sentence(cluster, surrogate))
            reporter.advanced(step, len(surrogates) + 1)
        designs = [tuple(int(w) for w in row) for row in known.widths]
        clusters.append(cluster)
        surrogates.append(surrogate)
        tables.append(dict(zip(designs, known.latencies.tolist(), strict=True)))
    if not clusters:
        raise ValueError("too few designs could be measured on any device to predict latency from")
    latency = FleetLatency.of(clusters, settings.objective, settings.weighting)
    lost = frozenset(c.id for c in clusters if measurements.representative(c) is None)
    return Fleet(geometry, tuple(clusters), tuple(surrogates), latency, tuple(tables), lost)


def _sentence(cluster: Cluster, surrogate: Surrogate) -> str:
    report = surrogate.report
    floor = "" if report.floor is None else f", repeatability {report.floor:.1f} %"
    others = ", ".join(f"{kind} {error.mape:.1f} %" for kind, error in report.errors.items())
    return (
        f"cluster {cluster.id}: {report.kind} over {report.samples} designs, "
        f"rank correlation {report.error.spearman:.2f}, cross-validated error {others}{floor}"
    )
