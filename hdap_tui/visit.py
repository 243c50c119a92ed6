"""One benchmark of some models on one device, step by step, from connecting to tidying up."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from engine import results
from engine.latency import Latency
from hdap_tui.schedule import FreeSlot, NeedSlot, Pause, Result, Step, Steps
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.pool import Connections, backoff
from hdap_tui.ssh.remote import RESULTS_LIMIT, RemoteJob, State
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload, remove, upload

R = TypeVar("R")
OnStage = Callable[[str, str], None]
"""Told a device's name and what is being done on it; called from several threads."""

_OUTAGES = 3  # lost connections in a row that one step lives through
_START_S = 10.0  # seconds that a runner may take to say its first word
_START_BLOCK_S, _MODEL_S = 0.2, 0.45  # a first guess of a block's length: start, each model
_GRACE_S = 30.0  # beyond its own time limit


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How models are timed; the settings' section [benchmark] says what each means."""

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    runs: int = 30
    warmup_runs: int = 10
    warmup_s: float = 1.0
    block_s: float = 1.0
    blocks_min: int = 5
    blocks_max: int = 20
    interval_percent: float = 2.0
    time_limit_s: float = 300.0
    lease_s: float = 600.0
    """Seconds beyond the expected time after which a device ends a run that nobody fetches."""
    seed: int = 0
    batch: int = 1
    keep_models: bool = True
    """Whether models that this run brought onto the device stay there."""

    @classmethod
    def of(cls, section: Any, **changes: Any) -> Bench:
        """Take from the settings' [benchmark] section (or its canary) what has the same name."""
        names = cls.__dataclass_fields__
        found = {name: getattr(section, name) for name in names if hasattr(section, name)}
        return cls(**{**found, **changes})

    def block_limit(self, models: int) -> float:
        """Return about how many seconds a block of that many models may take at most."""
        return 1.0 + models * (0.2 + self.warmup_s + self.block_s)

    def request(self, payloads: Sequence[Payload], block_s: float) -> dict[str, Any]:
        """Return what the runner is asked; `block_s` is how long a block should take."""
        asked = asdict(self)
        del asked["keep_models"]
        whole = min(self.time_limit_s, self.blocks_max * self.block_limit(len(payloads)))
        return {
            **asked,
            "version": 1,
            "models": [{"digest": p.digest, "path": f"../../{p.name}"} for p in payloads],
            "lease_s": self.lease_s + whole,
            "expected_block_s": round(block_s, 2),
        }


class Pace:
    """How long each device takes for one model in a block, as learned from its runs so far."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, Bench], float] = {}

    def known(self, device: str, bench: Bench) -> bool:
        """Whether a run of this kind has been seen on the device."""
        return (device, bench) in self._learned

    def block_s(self, device: str, bench: Bench, models: int) -> float:
        """Return how many seconds a block should take."""
        return _START_BLOCK_S + models * self._learned.get((device, bench), _MODEL_S)

    def saw(self, device: str, bench: Bench, models: int, parsed: results.Parsed) -> None:
        """Learn from the first look at a run: whether it came early, and what the device says."""
        each = self._learned.get((device, bench), _MODEL_S)
        each *= 0.95 if parsed.finished or parsed.blocks >= bench.blocks_min else 1.3
        if parsed.section and parsed.section[0] and parsed.expected_s:  # a block was timed
            first, last = parsed.section
            block_s = 1.05 * parsed.expected_s / (last - first + 1)
            each = (block_s - _START_BLOCK_S) / models
        elif parsed.took_s and parsed.blocks:  # a single block, start and end included
            each = (1.1 * parsed.took_s / parsed.blocks - _START_BLOCK_S) / models
        self._learned[device, bench] = max(each, 0.02)


class Visit:
    """One device's part of a sweep."""

    def __init__(
        self,
        target: Target,
        payloads: Sequence[Payload],
        runner: Payload,
        bench: Bench,
        *,
        pool: Connections,
        cores: int,
        pace: Pace,
        on_stage: OnStage,
        cancelled: Callable[[], bool],
    ) -> None:
        self._target, self._bench, self._pool = target, bench, pool
        self._digests = [payload.digest for payload in payloads]
        self._payloads = list({payload.digest: payload for payload in payloads}.values())
        self._runner = runner
        self._cores, self._pace = cores, pace
        self._on_stage, self._cancelled = on_stage, cancelled
        self._began = time.monotonic()
        self._job: RemoteJob | None = None
        self._brought: tuple[Payload, ...] = ()

    def steps(self) -> Steps[Latency]:
        """Do all of it; yields one latency a model, whatever happens."""
        try:
            latencies = yield from self._measure()
            self._stage("done")
        except DeviceError as error:
            self._give_up(error)
            self._stage(f"failed: {error.kind}")
            latencies = [self._failure(digest, error) for digest in self._digests]
        except (Cancelled, GeneratorExit):
            self._end_job(ask_first=True)
            self._stage("cancelled")
            raise
        yield FreeSlot()
        for latency in latencies:
            yield Result(latency)
        self._tidy_up()

    def _stage(self, text: str) -> None:
        self._on_stage(self._target.name, text)

    # -- the stages

    def _measure(self) -> Generator[Step[Latency], None, list[Latency]]:
        self._stage("connecting")
        yield from self._do(lambda _connection: None)
        self._brought = yield from self._do(self._upload)
        self._stage("waiting")
        target = self._target
        yield NeedSlot(target.host_group or f"device {target.name}", self._cores)
        self._stage("starting")
        block_s = self._pace.block_s(target.name, self._bench, len(self._payloads))
        request = self._bench.request(self._payloads, block_s)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        job = RemoteJob(f"{stamp}-{secrets.token_hex(4)}")
        self._job = job
        yield from self._do(partial(job.start, request=request, runner=self._runner.name))
        return (yield from self._collect(job, time.time(), request))

    def _upload(self, connection: Connection) -> tuple[Payload, ...]:
        """Bring runner and models; return the models that were not there before."""
        files = [self._runner, *self._payloads]
        self._stage("upload")
        shown = -1

        def progress(sent: int, total: int) -> None:
            nonlocal shown
            percent = 100 * sent // max(total, 1)
            if percent // 10 != shown // 10 and total > 1 << 20:  # less would only flicker
                shown = percent
                self._stage(f"upload {percent} %")

        brought = upload(connection, files, progress, self._cancelled)
        return tuple(payload for payload in brought if payload != self._runner)

    def _collect(
        self, job: RemoteJob, started: float, request: Mapping[str, Any]
    ) -> Generator[Step[Latency], None, list[Latency]]:
        """Fetch when a timed section should be over, and not before, until the run has ended."""
        bench, digests = self._bench, [payload.digest for payload in self._payloads]
        text, blocks, limit = bytearray(), -1, time.monotonic() + bench.time_limit_s + _GRACE_S
        # Of a device that is not known yet, the first block tells how long the others take.
        known = self._pace.known(self._target.name, bench)
        wait = request["expected_block_s"] * (bench.blocks_min if known else 1)
        wait += 0.1 if known else 0.3
        self._stage("timing")
        while True:
            yield Pause(min(wait, 0.8 * request["lease_s"]))
            state = yield from self._fetch(job, text)
            parsed = results.parse(
                bytes(text).splitlines(keepends=True),
                self._target.name,
                digests,
                at=_now(),
                started=started,
            )
            if blocks < 0:
                self._pace.saw(self._target.name, bench, len(digests), parsed)
            if parsed.finished:
                return [self._marked(parsed.latencies[digest]) for digest in self._digests]
            self._check_running(state, job, started)
            if time.monotonic() > limit:
                raise _OverdueError(
                    ErrorKind.TIMEOUT, f"{self._target.name}: the benchmark does not come to an end"
                )
            self._stage(f"timing {parsed.blocks}/{bench.blocks_max}")
            wait = 2 * wait if parsed.blocks == blocks else _left(parsed)
            blocks = parsed.blocks

    def _fetch(self, job: RemoteJob, text: bytearray) -> Generator[Step[Any], None, State]:
        """Add all new results to the text; return how the job stands."""
        while True:
            fetched = yield from self._do(
                partial(job.fetch, offset=len(text), cancelled=self._cancelled)
            )
            text += fetched.data
            if len(text) > RESULTS_LIMIT:
                raise DeviceError(
                    ErrorKind.GARBAGE, f"{self._target.name}: the results have no end"
                )
            if not fetched.more:
                return fetched.state

    def _check_running(self, state: State, job: RemoteJob, started: float) -> None:
        name = self._target.name
        if state == "gone":
            raise DeviceError(ErrorKind.FAILED, f"{name}: the job's folder was removed meanwhile")
        late = time.time() - started > _START_S
        if state == "ended" or (state == "starting" and late):
            said = ""
            with contextlib.suppress(DeviceError):
                said = job.log(self._pool.open(self._target, self._cancelled))
            raise DeviceError(
                ErrorKind.FAILED,
                f"{name}: the runner ended without a result" + (f": {said}" if said else ""),
            )

    def _marked(self, latency: Latency) -> Latency:
        return replace(latency, emulated=latency.emulated or self._target.emulated)

    def _failure(self, digest: str, error: DeviceError) -> Latency:
        return Latency(
            device=self._target.name,
            model=digest,
            emulated=self._target.emulated,
            at=_now(),
            error=str(error.kind),
            detail=str(error),
        )

    # -- on the device

    def _do(self, action: Callable[[Connection], R]) -> Generator[Step[Any], None, R]:
        """Do something on the device; where the connection is lost, connect anew and do it again.

        What took too long is tried again only on a connection from before this visit, which may
        have been dead all along.
        """
        until = time.monotonic() + self._target.timeouts.total
        outages = 0
        while True:
            connection = yield from self._connected()
            try:
                return action(connection)
            except DeviceError as error:
                outages += 1
                stale = connection.opened < self._began
                if error.transient:
                    self._pool.drop(self._target)
                again = error.transient and (error.kind is not ErrorKind.TIMEOUT or stale)
                if not again or outages > _OUTAGES or time.monotonic() > until:
                    raise
            yield Pause(backoff(outages))

    def _connected(self) -> Generator[Step[Any], None, Connection]:
        tries = self._pool.opening(self._target, self._cancelled)
        while True:
            try:
                pause = next(tries)
            except StopIteration as end:
                connection: Connection = end.value
                return connection
            yield Pause(pause)

    # -- the end

    def _give_up(self, error: DeviceError) -> None:
        """End what may still run, unless the device has just shown that it cannot be asked."""
        if not error.transient or isinstance(error, _OverdueError):
            self._end_job(ask_first=True)

    def _end_job(self, ask_first: bool = False) -> None:
        """End the runner and remove its folder, as far as the device can be asked."""
        job, self._job = self._job, None
        if job is None:
            return
        with contextlib.suppress(DeviceError, Cancelled):
            connection = self._pool.open(self._target, limit_s=5.0)
            if ask_first:
                job.cancel(connection)
            job.clean(connection)

    def _tidy_up(self) -> None:
        """Remove the job's folder, and the models that were only wanted for it."""
        self._end_job()
        if self._brought and not self._bench.keep_models:
            with contextlib.suppress(DeviceError, Cancelled):
                connection = self._pool.open(self._target, self._cancelled, limit_s=5.0)
                remove(connection, [payload.name for payload in self._brought])


class _OverdueError(DeviceError):
    """The device answers, but its run does not end."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _left(parsed: results.Parsed) -> float:
    """Return about how many seconds are left of the section that is being timed."""
    if parsed.section is None or parsed.expected_s is None:
        return 0.5
    first, last = parsed.section
    done = min(max(parsed.blocks - first, 0), last - first + 1)
    left = parsed.expected_s * (1 - done / (last - first + 1))
    return left + max(0.3, 0.05 * left)
