"""Time models on many devices at once.

Connections and transfers run on all devices at once, within a bound; benchmarks run as many on a
machine as it has cores, whichever process asks for them. A device that fails, or takes long, is a
record of its own and keeps no other waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import engine.runner
from engine.latency import Latency
from hdap_tui import schedule, slots
from hdap_tui.context import OnStage, silent_stage
from hdap_tui.errors import UserError
from hdap_tui.reach import targets
from hdap_tui.ssh.limits import allow_connections
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.sockets import never
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload
from hdap_tui.visit import Bench, Pace, Visit

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device, Settings

__all__ = ["Bench", "Fleet"]


class Fleet:
    """Devices that can be measured, with the connections to them kept open in between.

    Safe to use from several threads; closed at the end, best by `with`.
    """

    def __init__(
        self,
        members: Iterable[Target],
        bench: Bench,
        *,
        slots_folder: Path,
        cores: Callable[[str], int] = lambda _group: 1,
        pool: Connections | None = None,
        on_stage: OnStage = silent_stage,
    ) -> None:
        """`cores` says how many benchmarks may run at once on a host group's machine."""
        self.members = {target.name: target for target in members}
        self.bench = bench
        self.pool = pool or Connections()
        self.on_stage = on_stage
        self._slots, self._cores = slots_folder, cores
        self._pace = Pace()
        self._payloads: dict[tuple[Path, str, int, int], Payload] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls,
        settings: Settings,
        bench: Bench | None = None,
        devices: Iterable[Device] | None = None,
        *,
        pool: Connections | None = None,
        on_stage: OnStage = silent_stage,
    ) -> Fleet:
        """Return the settings' fleet, measured as its [benchmark] section says."""
        return cls(
            targets(settings, devices),
            bench or Bench.of(settings.benchmark),
            slots_folder=settings.state_dir / "slots",
            cores=settings.cores,
            pool=pool or Connections(settings.ssh.parallel),
            on_stage=on_stage,
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.pool.close()

    def measure(
        self,
        requests: Sequence[tuple[Path, str]],
        cancelled: Callable[[], bool] = never,
        on_stage: OnStage | None = None,
    ) -> Iterator[Latency]:
        """Time (model, device name) pairs; the engine's `Measure`.

        All models of one device are timed in one run, interleaved.

        Raises:
            UserError: there is no such device or model file.
        """
        visits: dict[Target, list[Path]] = {}
        for model, name in requests:
            if name not in self.members:
                raise UserError(f'no device is called "{name}"')
            visits.setdefault(self.members[name], []).append(model)
        return self.measure_many(visits, on_stage=on_stage, cancelled=cancelled)

    def visit(
        self,
        target: Target,
        models: Sequence[Path],
        bench: Bench | None = None,
        on_stage: OnStage | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> list[Latency]:
        """Time models on one device, as `measure_many` does."""
        return list(self.measure_many({target: models}, bench, on_stage, cancelled))

    def measure_many(
        self,
        visits: Mapping[Target, Sequence[Path]],
        bench: Bench | None = None,
        on_stage: OnStage | None = None,
        cancelled: Callable[[], bool] = never,
        away: Callable[[], Collection[str]] = frozenset,
    ) -> Generator[Latency, None, None]:
        """Time on each device its models; yields one record a model and device, as they come.

        Once cancelled, or when the iterator is closed, the runners on the devices are ended
        before it returns. Should this process die, they end by their lease. A device that is
        `away` is left at once, and there is no record of it; the others go on.

        Raises:
            UserError: a model file cannot be read, or the system does not allow that many
                connections.
        """
        allow_connections(len(visits))
        runner = self._payload(Path(engine.runner.__file__), "runner")
        stop = threading.Event()  # tells what is just being done on a device, too

        def unwanted(name: str) -> bool:
            return stop.is_set() or name in away()

        tasks = {
            Visit(
                target,
                [self._payload(path, "models") for path in models],
                runner,
                bench or self.bench,
                pool=self.pool,
                cores=self._cores(target.host_group) if target.host_group else 1,
                pace=self._pace,
                on_stage=on_stage or self.on_stage,
                cancelled=partial(unwanted, target.name),
            ).steps(): target.name
            for target, models in visits.items()
            if models
        }
        return self._run(tasks, stop, cancelled, away)

    def _run(
        self,
        tasks: Mapping[Any, str],
        stop: threading.Event,
        cancelled: Callable[[], bool],
        away: Callable[[], Collection[str]],
    ) -> Generator[Latency, None, None]:
        def asked() -> bool:
            if cancelled():
                stop.set()
            return stop.is_set()

        workers = min(len(tasks), self.pool.bound)
        running = schedule.run(
            tasks, workers, self._take, asked, stop, lambda steps: tasks[steps] in away()
        )
        try:
            yield from running
        finally:
            stop.set()
            running.close()

    def _take(self, group: str, count: int) -> schedule.Slot | None:
        return slots.take(self._slots, group, count)

    def _payload(self, path: Path, folder: Literal["models", "runner"]) -> Payload:
        """Read a file's hash, once for all devices."""
        try:
            stat = path.stat()
            key = (path, folder, stat.st_mtime_ns, stat.st_size)
            with self._lock:
                if key not in self._payloads:
                    self._payloads[key] = Payload.of(path, folder)
                return self._payloads[key]
        except OSError as error:
            raise UserError(f"{path}: the model cannot be read: {error.strerror}.") from error
