"""Cluster the fleet from what the store holds, and save what was found.

The clusters last: a round only moves devices among them, and a device moves when several rounds
agree (`engine.fleet.membership`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.fleet.clusters import Clustering
from engine.fleet.membership import Asked, Membership
from engine.fleet.quality import Quality, quality
from engine.fleet.words import explain
from hdap_tui.cohorts import telling_facts
from hdap_tui.config import Settings
from hdap_tui.errors import UserError
from hdap_tui.store import clusters, facts, measurements, memberships
from hdap_tui.store.database import Store
from hdap_tui.store.records import ClusterMap, ModelRow


def cluster_fleet(
    settings: Settings,
    store: Store,
    models: Sequence[ModelRow],
    sweep: int | None = None,
    eps_percent: float | None = None,
    min_samples: int | None = None,
    whole: bool = True,
) -> ClusterMap:
    """Take one round of latencies on these models into the clusters.

    Args:
        settings: their section [clusters] may fix what is otherwise found.
        store: where the latencies are, and where the result goes.
        models: one column each.
        sweep: the round, which is whole from then on; without it the clusters are found anew from
            the newest latencies.
        eps_percent: devices within this many per cent are alike, before the settings' own. With
            this or `min_samples` it is a trial, of which nothing is kept.
        min_samples: devices that make a neighbourhood dense, before the settings' own.
        whole: whether the round was one of all devices. Where clusters are found for the first
            time, those that it left out count with their newest latencies if it was not.

    Raises:
        UserError: fewer than two devices have been measured.
        ValueError: `eps_percent` or `min_samples` makes no sense.
    """
    digests = [model.digest for model in models]
    own = settings.clusters
    asked = Asked(
        own.eps_percent if eps_percent is None else eps_percent,
        own.min_samples if min_samples is None else min_samples,
    )
    if eps_percent is not None or min_samples is not None:
        with store.read():
            held = _begin(store, digests, sweep, asked, whole)
            return clusters.as_map(*_described(store, held, models))
    # From reading to writing it is one transaction: another process may take in a round, too.
    with store.write():
        held = _brought_forward(store, digests, sweep, asked, whole)
        described = _described(store, held, models)
        memberships.save(store, held, digests)
        if sweep is not None:  # in one step: a whole sweep is never one that was not clustered
            measurements.finish(store, sweep)
        return clusters.save(store, *described)


def _brought_forward(
    store: Store, digests: Sequence[str], sweep: int | None, asked: Asked, whole: bool
) -> Membership:
    held = None if sweep is None else memberships.load(store, digests)
    if held is None or held.asked != asked:
        return _begin(store, digests, sweep, asked, whole)
    names, latencies = measurements.matrix(store, digests, sweep)
    held.update(names, latencies, _repeatability(store, digests, sweep, latencies))
    return held


def _described(
    store: Store, held: Membership, models: Sequence[ModelRow]
) -> tuple[Clustering, list[str], list[str], NDArray[np.float64], dict[int, str], Quality]:
    """Return the clusters as they stand, with names, newest latencies, words and figures."""
    found = held.clustering()
    _, newest = measurements.matrix(store, [model.digest for model in models])
    # A model that nobody could run tells nothing about anybody.
    columns = np.flatnonzero(np.isfinite(newest).any(axis=0))
    titles = [models[int(column)].name for column in columns]
    told = telling_facts(held.names, facts.latest(store))
    notes = explain(newest[:, columns], found.labels, titles, told)
    return found, held.names, titles, newest[:, columns], notes, quality(found)


def _begin(
    store: Store, digests: Sequence[str], sweep: int | None, asked: Asked, whole: bool
) -> Membership:
    names, latencies = measurements.matrix(store, digests, sweep if whole else None)
    measured = int(np.isfinite(latencies).any(axis=1).sum())
    if measured < 2:
        raise UserError(
            f"{measured} devices have been measured, and two at least are needed to "
            'tell which are alike; run "hdap sweep".'
        )
    earlier = clusters.latest(store)
    return Membership.begin(
        names,
        latencies,
        _repeatability(store, digests, sweep, latencies),
        asked,
        before=dict(zip(earlier.devices, earlier.labels, strict=True)),
        next_id=memberships.next_id(store),
    )


def _repeatability(
    store: Store, digests: Sequence[str], sweep: int | None, latencies: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return how well each model repeats; None where that is not known of all."""
    if sweep is None:
        return None
    sigma = measurements.relative_sigma(store, digests, sweep)
    unused = ~np.isfinite(latencies).any(axis=0)
    sigma[unused] = 1.0  # nobody looks at it
    return sigma if np.isfinite(sigma).all() else None
