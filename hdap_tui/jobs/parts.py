"""What a compression job has, and the networks that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.events import Reporter
from engine.latency import Latency
from engine.search.hdap import Cluster
from hdap_tui.config import Settings
from hdap_tui.config.schema import Compression
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.jobs.steps import Steps
from hdap_tui.names import cluster_letter
from hdap_tui.stages import Stages
from hdap_tui.store.database import open_store
from hdap_tui.sweep import Fleet


@dataclass(frozen=True)
class Job:
    """What a compression job works with."""

    folder: JobFolder
    reporter: Reporter
    settings: Settings
    asked: Compression
    request: Mapping[str, Any]
    """As it was written, with the clusters of the fleet as it was then."""
    steps: Steps
    fleet: Fleet
    measure: Callable[..., Iterator[Latency]]
    clusters: Sequence[Cluster]

    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self.folder.cancelled

    @property
    def measurement_seconds(self) -> float:
        """About how long it takes until all clusters have measured one design."""
        bench = self.fleet.bench
        one = bench.blocks_min * (0.1 + bench.warmup_s + bench.block_s)
        cores = min(self.settings.cores(d.host_group) for d in self.settings.devices)
        return one * max(1.0, len(self.clusters) / cores)


@dataclass(frozen=True)
class Part:
    """One of the networks that a job makes."""

    clusters: tuple[int, ...]
    """Those that it is for."""
    alone: bool
    """Whether others are made beside it."""

    @property
    def _letters(self) -> str:
        return "-".join(map(cluster_letter, self.clusters))

    def step(self, kind: str) -> str:
        """Return the name of a step of this part."""
        return f"{kind} (cluster {self._letters})" if self.alone else kind

    def file(self, name: str) -> str:
        """Return a name that no other part uses."""
        path = Path(name)
        return f"{path.stem}-cluster-{self._letters}{path.suffix}" if self.alone else name


@contextmanager
def stages_of(settings: Settings) -> Iterator[Stages]:
    """Write into the store what is being done on each device.

    Only for as long as something is: a search of hours must not keep others from clearing up.
    """
    with closing(open_store(settings.database)) as store, Stages(store) as stages:
        yield stages
