"""One benchmark of some models on one device, step by step, from connecting to tidying up."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from engine import results
from engine.latency import Configuration, Latency
from engine.results import Case
from hdap_tui.context import OnStage
from hdap_tui.images import Images
from hdap_tui.schedule import FreeSlot, NeedSlot, Pause, Result, Step, Steps, pausing
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.pool import Connections, backoff
from hdap_tui.ssh.remote import RESULTS_LIMIT, RemoteJob, State
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload, remove, upload

R = TypeVar("R")

_OUTAGES = 3  # lost connections in a row that one step lives through
_START_S = 10.0  # seconds that a runner may take to say its first word
_START_BLOCK_S, _MODEL_S = 0.2, 0.45  # a first guess of a block's length: start, each model
_LOAD_S = 0.1  # a first guess of what a model takes besides its warm-up and its timed runs
_GRACE_S = 30.0  # beyond its own time limit
_GARBAGE = 100  # lines without sense after which a device is not listened to any longer
_GAP_S = 0.5  # a device waits this long for a fetch that is due before it times on


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
    cool_below_c: float = 0.0
    idle_below: float = 0.0
    wait_limit_s: float = 120.0
    at_limit: str = "measure"
    energy_s: float = 0.0
    configurations: tuple[Configuration, ...] = ()
    """How each model is run, interleaved; empty: as `batch`, `threads` and `provider` say."""
    images: Images | None = None
    """Test images that models are shown, each once, in place of made-up input; `blocks_min` and
    `blocks_max` are how many blocks show them, and `block_s` is how long one is guessed to take."""
    keep_models: bool = True
    """Whether what this run brought onto the device stays there."""

    @classmethod
    def of(cls, section: Any, **changes: Any) -> Bench:
        """Take from the settings' [benchmark] section (or its canary) what has the same name."""
        names = cls.__dataclass_fields__
        found = {name: getattr(section, name) for name in names if hasattr(section, name)}
        return cls(**{**found, **changes})

    @property
    def standard(self) -> Configuration:
        """How a model is run unless something else is asked: what drift and clusters look at."""
        return Configuration(batch=self.batch, threads=self.threads, provider=self.provider)

    def cases(self, digests: Iterable[str]) -> tuple[Case, ...]:
        """Return every model in every configuration, each once."""
        how, shown = self.configurations or (self.standard,), self.images
        cases = (
            Case(
                model=digest,
                configuration=one,
                only=len(how) == 1,
                images=shown.count if shown else 0,
                classes=shown.classes if shown else 0,
            )
            for digest in digests
            for one in how
        )
        return tuple(dict.fromkeys(cases))

    def block_limit(self, cases: int) -> float:
        """Return about how many seconds a block of that many cases may take at most."""
        return 1.0 + cases * (0.2 + self.warmup_s + self.block_s)

    @property
    def waiting_s(self) -> float:
        """How long the device may wait before it measures, as asked."""
        return self.wait_limit_s if self.cool_below_c or self.idle_below else 0.0

    def request(
        self, payloads: Sequence[Payload], block_s: float, known: bool = True
    ) -> dict[str, Any]:
        """Return what the runner is asked.

        Args:
            payloads: the models.
            block_s: how long a block should take.
            known: whether that is known; if not, the first fetch comes after the first block.
        """
        asked = asdict(self)
        for name in ("keep_models", "configurations", "batch", "threads", "provider", "images"):
            del asked[name]
        names = {payload.digest: payload.name for payload in payloads}
        cases = self.cases(names)
        whole = min(self.time_limit_s, self.blocks_max * self.block_limit(len(cases)))
        if self.images:  # how long they take is a guess
            whole = asked["block_timeout_s"] = self.time_limit_s
            asked["images"] = {
                "digest": self.images.payload.digest,
                "path": f"../../{self.images.payload.name}",
                "shape": self.images.shape,
                "count": self.images.count,
                "each": self.images.each,
            }
        return {
            **asked,
            "version": 1,
            "models": [
                {
                    "digest": case.model,
                    "key": case.key,
                    "path": f"../../{names[case.model]}",
                    **asdict(case.configuration),
                }
                for case in cases
            ],
            "lease_s": self.lease_s + self.waiting_s + whole,
            "expected_block_s": round(block_s, 2),
            "look_after": 0 if known else 1,
            # How long images take is a guess, and a block that is over sooner waits for the fetch.
            "gap_s": max(_GAP_S, block_s) if self.images else _GAP_S,
        }


class Pace:
    """How long each device takes for one case in a block, as learned from its runs so far."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, Bench], float] = {}

    def known(self, device: str, bench: Bench) -> bool:
        """Whether a run of this kind has been seen on the device."""
        return (device, bench) in self._learned

    def block_s(self, device: str, bench: Bench, cases: int) -> float:
        """Return how many seconds a block should take."""
        return _START_BLOCK_S + cases * self._each(device, bench)

    def saw(self, device: str, bench: Bench, cases: int, parsed: results.Parsed) -> None:
        """Learn from the first look at a run: whether it came early, and what the device says."""
        each = self._each(device, bench)
        each *= 0.95 if parsed.finished or parsed.blocks >= bench.blocks_min else 1.3
        if parsed.section and parsed.section[0] and parsed.expected_s:  # a block was timed
            first, last = parsed.section
            block_s = 1.05 * parsed.expected_s / (last - first + 1)
            each = (block_s - _START_BLOCK_S) / cases
        elif parsed.took_s and parsed.blocks:  # a single block, start and end included
            each = (1.1 * parsed.took_s / parsed.blocks - _START_BLOCK_S) / cases
        self._learned[device, bench] = max(each, 0.02)

    def _each(self, device: str, bench: Bench) -> float:
        most = bench.warmup_s + bench.block_s + _LOAD_S
        guess = min(_MODEL_S, most) + (bench.block_s if bench.images else 0.0)
        return self._learned.get((device, bench), guess)


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
        # Two files may have one content: it is timed once, and answered for each.
        self._asked = [case for p in payloads for case in bench.cases([p.digest])]
        self._cases = tuple(dict.fromkeys(self._asked))
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
            latencies = [self._failure(case, error) for case in self._asked]
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
        known = self._pace.known(target.name, self._bench)
        block_s = self._pace.block_s(target.name, self._bench, len(self._cases))
        request = self._bench.request(self._payloads, block_s, known)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        job = RemoteJob(f"{stamp}-{secrets.token_hex(4)}")
        self._job = job
        yield from self._do(partial(job.start, request=request, runner=self._runner.name))
        return (yield from self._collect(job, request))

    def _upload(self, connection: Connection) -> tuple[Payload, ...]:
        """Bring runner, models and images; return those that were not there before."""
        files = [self._runner, *self._payloads]
        if self._bench.images:
            files.append(self._bench.images.payload)
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
        self, job: RemoteJob, request: Mapping[str, Any]
    ) -> Generator[Step[Latency], None, list[Latency]]:
        """Fetch when a timed section should be over, and not before, until the run has ended."""
        bench, started, began = self._bench, time.time(), time.monotonic()
        limit = began + bench.time_limit_s + bench.waiting_s + _GRACE_S
        text, blocks, timing, phase = bytearray(), -1, False, ("", 0.0)
        # Of a device that is not known yet, the first block tells how long the others take.
        known = not request["look_after"]
        wait = request["expected_block_s"] * (bench.blocks_min if known else 1)
        wait += 0.1 if known else 0.3
        if bench.waiting_s:  # what it waits for is told at once
            wait = 1.5
        self._stage("timing")
        while True:
            left = max(limit - time.monotonic(), 0.5)  # it costs no more than its own time
            yield Pause(min(wait, 0.8 * request["lease_s"], left))
            state = yield from self._fetch(job, text)
            parsed = results.parse(
                bytes(text).splitlines(keepends=True),
                self._target.name,
                self._cases,
                at=_now(),
                started=started,
            )
            if parsed.section and not timing:
                timing = True
                if not bench.waiting_s:
                    self._pace.saw(self._target.name, bench, len(self._cases), parsed)
            if parsed.finished:
                return [self._marked(parsed.latencies[case.key]) for case in self._asked]
            if parsed.garbage > _GARBAGE:  # whether or not its runner has ended meanwhile
                raise DeviceError(
                    ErrorKind.GARBAGE, f"{self._target.name}: its results make no sense"
                )
            self._check_running(state, job, began)
            if time.monotonic() > limit:
                raise _OverdueError(
                    ErrorKind.TIMEOUT, f"{self._target.name}: the benchmark does not come to an end"
                )
            self._stage(stage_of(parsed, bench.blocks_max))
            if parsed.phase:
                told = (parsed.phase, parsed.phase_s)
                wait, phase = 1.0 if phase == told else parsed.phase_s + 0.1, told
            else:
                wait = 2 * wait if parsed.blocks == blocks else _left(parsed)
                blocks = parsed.blocks
                if phase[0] and not (known or blocks):
                    wait *= 2  # how long its blocks take is a guess: better late than early

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

    def _check_running(self, state: State, job: RemoteJob, began: float) -> None:
        name = self._target.name
        if state == "gone":
            raise DeviceError(ErrorKind.FAILED, f"{name}: the job's folder was removed meanwhile")
        late = time.monotonic() - began > _START_S
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

    def _failure(self, case: Case, error: DeviceError) -> Latency:
        how = case.configuration
        return Latency(
            device=self._target.name,
            model=case.model,
            batch=how.batch,
            threads=how.threads,
            provider=how.provider,
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
        return (yield from pausing(self._pool.opening(self._target, self._cancelled)))

    # -- the end

    def _give_up(self, error: DeviceError) -> None:
        """End what may still run; a device that cannot be asked any more is left alone.

        What runs there ends with its lease, and another visit removes its folder.
        """
        gone = error.transient and not isinstance(error, _OverdueError)
        if gone or error.kept_out:
            self._job, self._brought = None, ()
        else:
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
        """Remove the job's folder, and the files that were only wanted for it."""
        self._end_job()
        if self._brought and not self._bench.keep_models:
            with contextlib.suppress(DeviceError, Cancelled):
                connection = self._pool.open(self._target, self._cancelled, limit_s=5.0)
                remove(connection, [payload.name for payload in self._brought])


class _OverdueError(DeviceError):
    """The device answers, but its run does not end."""


def stage_of(parsed: results.Parsed, blocks_max: int) -> str:
    """Return in a few words what a runner is doing."""
    match parsed.phase:
        case "cooling":
            return f"cooling {parsed.phase_value:.0f} °C"
        case "busy":
            return f"busy {100 * parsed.phase_value:.0f} %"
        case "energy":
            return "energy"
    return f"timing {parsed.blocks}/{blocks_max}"


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
