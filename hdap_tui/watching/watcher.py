"""Watch a fleet: sweeps, canary rounds in between, clusters, drift, alerts.

    sweep -> measurements -> clusters;  canary round -> residuals -> drift -> alerts

Here is what one sweep and one round do; `hdap_tui.watching.loop` does them on a schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Self

from engine.latency import Latency
from hdap_tui.alerting import absence
from hdap_tui.alerting.drifting import judge_round
from hdap_tui.clustering import cluster_fleet
from hdap_tui.config import Settings
from hdap_tui.context import Context
from hdap_tui.errors import TimedOutError, UserError
from hdap_tui.measuring import Measuring
from hdap_tui.probing import probe
from hdap_tui.store import devices, facts, measurements, sweeps
from hdap_tui.store.database import StoreError
from hdap_tui.store.records import AlertRow, ModelRow

Names = Callable[[], Collection[str]]


class Watcher:
    """Sweeps, canary rounds, and what follows from them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.store = context.store
        self.measuring = Measuring(context)

    def __enter__(self) -> Self:
        self.measuring.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.measuring.__exit__(kind, error, trace)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.context.settings

    def take_up(self, settings: Settings) -> None:
        """Go on with other settings.

        Raises:
            UserError: nothing can be measured as they say; all is as before.
        """
        before = self.settings
        self.context.settings = settings
        try:
            fresh = Measuring(self.context).__enter__()
        except BaseException:
            self.context.settings = before
            devices.sync(self.store, before.devices)
            raise
        old, self.measuring = self.measuring, fresh
        old.__exit__(None, None, None)

    def sweep(
        self,
        names: Sequence[str] | None = None,
        begun: int | None = None,
        away: Names = frozenset,
    ) -> list[Latency]:
        """Time the probes and the deployed model on every device, then cluster the fleet.

        Args:
            names: a part of the fleet, which takes its place among what is known of the others.
            begun: number of a sweep that is open already; what is saved in it is not measured
                once more.
            away: devices that are left alone.
        """
        fleet = [device.name for device in self.settings.devices]
        chosen = [name for name in names or fleet if name not in away()]
        probes = [self.measuring.models[probe.name] for probe in self.settings.probes]
        running = self.measuring.running(fleet)
        usable = self.measuring.with_files({name: running[name] for name in chosen})
        visits = {name: [*probes, running[name]] for name in usable}
        kind: measurements.SweepKind = "sweep" if len(names or fleet) == len(fleet) else "bench"
        number = measurements.begin(self.store, kind) if begun is None else begun
        wanted = visits if begun is None else sweeps.missing(self.store, number, visits)
        found = self.measuring.run(kind, wanted, into=number, away=away)
        if self.context.cancelled() or set(visits) <= set(away()):
            return found
        # What most devices of the fleet run, also where only a part of it was measured.
        by_digest = {model.digest: model for model in running.values()}
        common = Counter(model.digest for model in running.values()).most_common(1)[0][0]
        whole = len(set(visits) - set(away())) == len(fleet)
        self._cluster([*probes, by_digest[common]], number, whole)
        measurements.finish(self.store, number)
        self._probe({one.device for one in found if one.ok} - set(away()))
        return found

    def canary(self, begun: int | None = None, away: Names = frozenset) -> list[AlertRow]:
        """Time only the deployed model in one short block; return the alerts that opened.

        `begun` is the number of a round that is open already, `away` the devices left alone: they
        are not measured, and what was measured of them just before is not judged.
        """
        chosen = [one.name for one in self.settings.devices if one.name not in away()]
        running = self.measuring.running(chosen)
        visits = {name: [running[name]] for name in self.measuring.with_files(running)}
        number = measurements.begin(self.store, "canary") if begun is None else begun
        found = self.measuring.run("canary", visits, self.measuring.canary(), number, away)
        left = away()
        if self.context.cancelled() or set(visits) <= set(left):
            return []
        opened: list[AlertRow] = []
        with self.store.write():  # in one step: a whole round is one that was judged
            measurements.finish(self.store, number)  # before, for what began in this very round
            kept = [one for one in found if one.device not in left]
            for digest in dict.fromkeys(models[0].digest for models in visits.values()):
                own = [one for one in kept if one.model == digest]
                opened += judge_round(self.settings, self.store, digest, own)
            opened += absence.follow(self.settings, self.store, kept, left)
        return opened

    def _probe(self, answered: Collection[str]) -> None:
        """Find the channel multiple of real devices that were never probed."""
        if not self.settings.watch.probe_channels:
            return
        known = facts.latest(self.store)
        due = [
            device.name
            for device in self.settings.devices
            if device.name in answered
            and not device.emulated
            and "channel_multiple" not in known.get(device.name, {})
        ]
        if due:
            probe(self.measuring, due)

    def _cluster(self, models: Sequence[ModelRow], sweep: int, whole: bool) -> None:
        try:
            cluster_fleet(self.settings, self.store, models, sweep, whole=whole)
        except (StoreError, TimedOutError):
            raise  # what cannot be saved is no whole sweep
        except UserError as error:
            self.context.reporter.noted("clusters", str(error))
