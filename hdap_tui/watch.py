"""Watch a fleet: sweeps on a schedule, canary rounds in between, clusters, drift, alerts.

    sweep -> measurements -> clusters;  canary round -> residuals -> drift -> alerts

One process watches a fleet at a time; the lock that says so ends with the process.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from engine.latency import Latency
from hdap_tui import locking
from hdap_tui.clustering import cluster_fleet
from hdap_tui.context import Context
from hdap_tui.drifting import judge_round
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.measuring import Measuring
from hdap_tui.probing import probe
from hdap_tui.store import activity, facts, measurements, retention
from hdap_tui.store.database import DiskFullError
from hdap_tui.store.records import AlertRow, ModelRow
from hdap_tui.store.retention import Cuts


class Watcher:
    """Sweeps, canary rounds, and what follows from them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings, self.store = context.settings, context.store
        self.measuring = Measuring(context)
        self._is_full = False
        self._tidied = Cuts()
        """Up to where all was rolled up that is old."""

    def run(
        self,
        cancelled: Callable[[], bool],
        rounds: int | None = None,
        until_alert: bool = False,
    ) -> list[AlertRow]:
        """Watch until cancelled, until so many canary rounds are done, or until an alert opens.

        Returns:
            The alerts that opened meanwhile.

        Raises:
            RefusedError: another process watches this fleet.
        """
        opened: list[AlertRow] = []
        with self._alone(), self.measuring:
            done = 0
            try:
                while not cancelled():
                    with self._room():
                        if self._sweep_is_due():
                            self.sweep()
                        else:
                            opened += self.canary()
                            done += 1
                    if done == rounds or (opened and until_alert):
                        break
                    self._wait(self.settings.watch.canary_every_s, cancelled)
            finally:
                self._say("")
        return opened

    def sweep(self, names: Sequence[str] | None = None) -> list[Latency]:
        """Time the probes and the deployed model on every device, then cluster the fleet."""
        chosen = names or [device.name for device in self.settings.devices]
        probes = [self.measuring.models[probe.name] for probe in self.settings.probes]
        visits = {name: [*probes, self.measuring.deployed(name)] for name in chosen}
        self._say("sweep")
        whole = len(chosen) == len(self.settings.devices)
        found = self.measuring.run("sweep" if whole else "bench", visits)
        if not self.context.cancelled():
            common = Counter(models[-1].digest for models in visits.values()).most_common(1)[0][0]
            deployed = next(m[-1] for m in visits.values() if m[-1].digest == common)
            # A part of the fleet takes its place among what is known of the others.
            self._cluster([*probes, deployed], self.measuring.last_sweep, whole)
            self._probe({one.device for one in found if one.ok})
        return found

    def canary(self) -> list[AlertRow]:
        """Time only the deployed model in one short block; return the alerts that opened."""
        visits = {
            device.name: [self.measuring.deployed(device.name)] for device in self.settings.devices
        }
        self._say("canary round")
        found = self.measuring.run("canary", visits, self.measuring.canary())
        if self.context.cancelled():
            return []
        opened: list[AlertRow] = []
        for digest in dict.fromkeys(models[0].digest for models in visits.values()):
            own = [one for one in found if one.model == digest]
            opened += judge_round(self.settings, self.store, digest, own)
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
            self._say("probe")
            probe(self.measuring, due)

    def _cluster(self, models: Sequence[ModelRow], sweep: int, whole: bool) -> None:
        try:
            cluster_fleet(self.settings, self.store, models, sweep, whole=whole)
        except UserError as error:
            self.context.reporter.noted("clusters", str(error))

    def _sweep_is_due(self) -> bool:
        last = measurements.last_finished(self.store, "sweep")
        if last is None:
            return True
        age = datetime.now(UTC) - datetime.fromisoformat(last[1])
        # A sweep in the future: the clock was wrong then, or is now.
        return not 0 <= age.total_seconds() < self.settings.watch.sweep_every_s

    def _wait(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        jitter = self.settings.watch.jitter
        end = time.monotonic() + seconds * random.uniform(1 - jitter, 1 + jitter)
        self._say(f"next round in {seconds:.0f} s", seconds + 30)
        with self._room(is_proof=False):
            self._tidy(lambda: time.monotonic() >= end or cancelled())
        while time.monotonic() < end and not cancelled():
            time.sleep(0.1)

    def _tidy(self, is_over: Callable[[], bool]) -> None:
        """Roll old measurements up while nothing is measured; what is left is for the next time."""
        own = self.settings.retention
        cut = retention.cuts(self.store, own.full_days, own.hourly_days)
        if cut == self._tidied:
            return
        for _ in retention.compact(self.store, cut, is_over):
            pass
        if not is_over():
            self._tidied = cut

    def _say(self, text: str, valid_s: float = 600.0) -> None:
        with contextlib.suppress(DiskFullError):  # words alone are no reason to stop
            activity.set_activity(self.store, text, valid_s)

    @contextmanager
    def _room(self, is_proof: bool = True) -> Iterator[None]:
        """Go on where the disk is full: what could not be saved is measured another time.

        It is said once, until there is room; `is_proof` says whether going well shows that.
        """
        try:
            yield
        except DiskFullError as error:
            if not self._is_full:
                self.context.reporter.noted("disk", f"{error} Watching goes on when there is room.")
            self._is_full = True
        else:
            self._is_full = self._is_full and not is_proof

    @contextmanager
    def _alone(self) -> Iterator[None]:
        path = self.settings.state_dir / "watch.lock"
        with path.open("ab") as lock:
            if not locking.take(lock):
                raise RefusedError("Another process watches this fleet already.")
            yield
