"""Measure devices and save what comes back, as it comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine.latency import Latency
from hdap_tui import library
from hdap_tui.context import Context
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.facts.noticing import Noticing
from hdap_tui.reach import connections
from hdap_tui.stages import Stages
from hdap_tui.store import devices, measurements
from hdap_tui.store import models as table
from hdap_tui.store.records import DeviceState, ModelRow
from hdap_tui.sweep import Bench, Fleet

if TYPE_CHECKING:
    from hdap_tui.store.measurements import SweepKind

_STARTUP_S = 0.6
"""What one fresh process costs besides its timed runs, about."""
_OFF = {
    "unreachable", "refused", "busy", "host key unknown", "host key changed", "authentication",
    "no common algorithm", "timeout", "disconnected",
}  # fmt: skip
_OF_THE_MODEL = {"model", "memory", "runtime"}


class Measuring:
    """The fleet's connections and models, for as long as something is measured.

    Safe to use by one thread at a time; closed at the end, best by `with`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = context.settings
        self.store = context.store
        self._stages = Stages(self.store, context.on_stage)
        self._noticing = Noticing(self.store)
        self.fleet = Fleet.of(self.settings, pool=connections(context), on_stage=self._stages.say)

    def __enter__(self) -> Self:
        devices.sync(self.store, self.settings.devices)
        self.models = library.ensure(self.settings, self.store)
        self._stages.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.fleet.close()
        self._stages.stop()

    @property
    def first_model(self) -> ModelRow:
        """The model that devices run before anything has been deployed.

        Raises:
            SettingsError: the settings name none.
        """
        first = self.settings.first_model
        if first is None:
            raise SettingsError(
                f"{self.settings.path}: no model to deploy is named: "
                "add [[models]] that is no probe."
            )
        return self.models[first.name]

    def running(self, names: Iterable[str]) -> dict[str, ModelRow]:
        """Return the model that each device runs, whether or not its file is still there.

        Raises:
            SettingsError: nothing was ever deployed on one, and the settings name no model.
        """
        known = devices.models_on(self.store)
        digests = {name: known[name][0] for name in names}
        rows = {digest: table.by_digest(self.store, digest) for digest in {*digests.values()}}
        found: dict[str, ModelRow] = {}
        for name, digest in digests.items():
            row = rows[digest]
            if row is None:  # nothing was ever deployed: what the settings name is what it runs
                row = self.first_model
                devices.set_model(self.store, name, row.digest)
            found[name] = row
        return found

    def deployed(self, device: str) -> ModelRow:
        """Return the model that a device runs.

        Raises:
            UserError: its file is gone.
        """
        found = self.running([device])[device]
        if not Path(found.path).is_file():
            raise UserError(f"{device} {_without_file(found)}")
        return found

    def with_files(self, running: Mapping[str, ModelRow]) -> list[str]:
        """Return the devices that run a model whose file is there; of the others it is told.

        Raises:
            UserError: none of them does.
        """
        models = {model.digest: model for model in running.values()}
        gone = {digest for digest, model in models.items() if not Path(model.path).is_file()}
        lost = [name for name, model in running.items() if model.digest in gone]
        for name in lost:
            why = f"{name} {_without_file(running[name])}"
            if len(lost) == len(running):
                raise UserError(why)
            self.context.reporter.noted("models", why)
            devices.set_state(self.store, name, "failed", "model", why)
        return [name for name, model in running.items() if model.digest not in gone]

    def run(
        self,
        kind: SweepKind,
        visits: Mapping[str, Sequence[ModelRow]],
        bench: Bench | None = None,
        into: int | None = None,
        away: Callable[[], Collection[str]] = frozenset,
    ) -> list[Latency]:
        """Time each device's models; every result is saved before it is returned.

        A round that was cancelled is left unfinished in the store, so that nothing takes it for
        a whole one.

        Args:
            kind: what the round is for.
            visits: the models of each device.
            bench: how they are timed; as the settings say where left out.
            into: number of a round that is open already, and that the caller finishes.
            away: devices that are left alone from now on; there is no record of them.
        """
        context, asked = self.context, bench or self.fleet.bench
        if kind == "deploy":  # devices stay locked meanwhile, so only what decides is measured
            asked = replace(asked, energy_s=0.0)
        standard = Bench.of(self.settings.canary if kind == "canary" else self.settings.benchmark)
        sweep = measurements.begin(self.store, kind) if into is None else into
        total = sum(len(models) for models in visits.values()) * max(len(asked.configurations), 1)
        context.reporter.started(kind, total=total, weight=self.expected_s(visits, asked))
        found: list[Latency] = []
        at_work: set[str] = set()
        paths = {
            self.fleet.members[name]: [Path(model.path) for model in models]
            for name, models in visits.items()
        }
        timed = self.fleet.measure_many(paths, asked, cancelled=context.cancelled, away=away)
        with closing(timed):  # what cannot be saved ends what runs on the devices
            for latency in timed:
                how = latency.configuration
                other = "" if how == standard.standard else str(how)
                if asked.images:  # what is done between two inferences makes them other latencies
                    other = f"{asked.images.count} test images, {how}"
                measurements.add(self.store, sweep, latency, other)
                if not other or latency.ok or is_off(latency):
                    self._remember(latency, latency.device in at_work)
                if latency.ok:
                    at_work.add(latency.device)
                self._noticing.saw(latency)
                found.append(latency)
                context.reporter.advanced(kind, len(found))
        if not context.cancelled():
            if into is None:
                measurements.finish(self.store, sweep)
            context.reporter.finished(kind, measured=sum(f.ok for f in found), asked=total)
        self._noticing.look(self.fleet, context.cancelled)
        self.last_sweep = sweep
        return found

    def expected_s(self, visits: Mapping[str, Sequence[ModelRow]], bench: Bench) -> float:
        """Return about how long it takes, from the time of one block and the slots there are."""
        busy: dict[str, float] = {}
        for name, models in visits.items():
            target = self.fleet.members[name]
            group = target.host_group or name
            cores = self.settings.cores(target.host_group) if target.host_group else 1
            cases = len(models) * max(len(bench.configurations), 1)
            one = bench.blocks_min * (_STARTUP_S + cases * (bench.warmup_s + bench.block_s))
            busy[group] = busy.get(group, 0.0) + one / cores
        return max(busy.values(), default=0.0) + 1.0

    def canary(self) -> Bench:
        """Return how a canary round measures."""
        return Bench.of(self.settings.canary)

    def bench(self, **changes: Any) -> Bench:
        """Return how the settings' [benchmark] section measures, with changes."""
        return Bench.of(self.settings.benchmark, **changes)

    def _remember(self, latency: Latency, works: bool) -> None:
        if latency.error == "skipped":  # it was asked to wait, and is as well as before
            devices.set_state(self.store, latency.device, "busy", "skipped", latency.detail)
            return
        if latency.error in _OF_THE_MODEL and works:
            return  # no fault of a device that has just timed another model
        state: DeviceState = "ok" if latency.ok else "off" if is_off(latency) else "failed"
        devices.set_state(
            self.store, latency.device, state, latency.error, "" if latency.ok else latency.detail
        )


def is_off(latency: Latency) -> bool:
    """Say whether a device could not be reached, unlike one whose runner told what went wrong."""
    return latency.error in _OFF and not latency.conditions


def _without_file(model: ModelRow) -> str:
    return f"runs {model.name}, whose file {model.path} is gone; put it back."
