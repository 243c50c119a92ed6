"""A made-up fleet behind the dashboard's source; the same seed is the same fleet.

`python dashboard_fake.py [devices]` opens the dashboard on it, alive.
"""

from __future__ import annotations

import math
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.events import AnyEvent, Reporter, from_json, to_json
from hdap_tui.commands import Command
from hdap_tui.config import Device
from hdap_tui.context import Outcome, Table
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.profiles import Comparison, Profiled, marked
from hdap_tui.store.facts import Moment
from hdap_tui.store.latest import Timed
from hdap_tui.store.records import (
    AlertEvent,
    AlertRow,
    ClusterMap,
    ClusterRow,
    DeploymentDevice,
    DeploymentRow,
    DeviceRow,
    FleetSnapshot,
    JobRow,
    ModelRow,
    Point,
)
from hdap_tui.store.values import from_micros, to_micros

NOW = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
HOSTILE = (
    "host [/dev/ttyUSB0]",
    "[/",
    "a [/] b",
    "[/red]",
    "dev[eu-1]",
    "[link=http://x]y",
    "C:\\dir\\[x",
    "esc\x1b[2J\x1b]0;owned\x07end",
    "new\nline\ttab",
    "right\u202eto left",
    "宽宽宽宽宽宽宽宽宽宽宽宽宽",
    "$(rm -rf ~) 'quote' \"double\"",
    "e\u0301" * 60,
    "x" * 5000,
    "",
)
MODEL, SMALL = "resnet20-digits", "resnet20-digits-h1"


def at(minutes_ago: float) -> str:
    return (NOW - timedelta(minutes=minutes_ago)).isoformat(timespec="seconds")


def device(index: int, rng: random.Random, name: str | None = None) -> DeviceRow:
    cluster = index % 3 if rng.random() < 0.95 else -1
    base = (4.2, 6.9, 11.6)[index % 3] * rng.uniform(0.985, 1.015)
    recent = tuple(base * rng.uniform(0.99, 1.01) for _ in range(12))
    return DeviceRow(
        id=index + 1,
        name=name if name is not None else f"edge-{index + 1:02d}",
        tags=(("kitchen", "hall", "roof")[index % 3], "pi4" if index % 2 else "pi5"),
        emulated=True,
        state="ok",
        seen_at=at(1),
        model=MODEL,
        model_digest=f"{index * 7919 + 12345:064x}",
        latency_ms=recent[-1],
        low_ms=recent[-1] * 0.99,
        high_ms=recent[-1] * 1.01,
        measured_at=at(1 + index % 5),
        baseline_ms=base,
        change_percent=100 * (recent[-1] / base - 1),
        cluster=cluster,
        representative=index in {0, 1, 2},
        recent_ms=recent,
    )


def fleet(n: int = 12, seed: int = 1, names: Sequence[str] | None = None) -> FleetSnapshot:
    rng = random.Random(seed)
    rows = [device(i, rng, names[i % len(names)] if names else None) for i in range(n)]
    if names:
        rows = [replace(r, tags=(r.name,), model=r.name, error=r.name, detail=r.name,
                        state=("ok", "failed", "busy")[i % 3], stage=r.name if i % 3 == 2 else "")
                for i, r in enumerate(rows)]  # fmt: skip
    elif n >= 12:
        slow = rows[6]
        recent = (*slow.recent_ms[:7], *(v * 1.25 for v in slow.recent_ms[7:]))
        rows[6] = replace(
            slow, recent_ms=recent, latency_ms=recent[-1], low_ms=recent[-1] * 0.99,
            high_ms=recent[-1] * 1.01, change_percent=25.1, alert="firing",
        )  # fmt: skip
        rows[3] = replace(rows[3], state="busy", stage="timing 2/5", stage_since=at(0.2))
        rows[9] = replace(
            rows[9],
            state="off",
            error="unreachable",
            detail="no route to host",
            measured_at=at(190),
        )
        rows[10] = replace(
            rows[10], state="failed", error="host key changed",
            detail="the key is not the one in known_hosts", alert="acknowledged",
        )  # fmt: skip
        rows[9] = replace(rows[9], watched="no data")
        rows[11] = replace(
            rows[11], cluster=-1, baseline_ms=None, change_percent=None, watched="learning"
        )
    subject = rows[6].name if n > 6 else (rows[0].name if rows else "fleet")
    return FleetSnapshot(
        version=1,
        at=at(0),
        fleet=_one(names, 0) or "lab",
        devices=tuple(rows),
        map=cluster_map(rows, rng, note=_one(names, 2)),
        alerts=alerts(subject, _one(names, 1)),
        jobs=jobs(_one(names, 3)),
        models=models(_one(names, 4)),
        deployments=deployments(),
    )


def _one(names: Sequence[str] | None, index: int) -> str | None:
    return names[index % len(names)] if names else None


def cluster_map(rows: Sequence[DeviceRow], rng: random.Random, note: str | None) -> ClusterMap:
    middles = {0: (-38.0, 4.0), 1: (2.0, -9.0), 2: (41.0, 6.0), -1: (15.0, 19.0)}
    points = []
    for row in rows:
        x, y = middles[row.cluster if row.cluster is not None else -1]
        points.append((x + rng.gauss(0, 2.4), y + rng.gauss(0, 1.6)))
    notes = ("as the fleet", "compute 62 % slower", "bandwidth 175 % slower")
    clusters = tuple(
        ClusterRow(
            id=i,
            size=sum(row.cluster == i for row in rows),
            representative=rows[i].name if i < len(rows) else "",
            median_ms={"compute": 3.1 * k, "bandwidth": 8.4 * k, "dispatch": 0.42, MODEL: 4.2 * k},
            note=note if note is not None else notes[i],
        )
        for i, k in enumerate((1.0, 1.64, 2.75))
    )
    return ClusterMap(
        at=at(12),
        eps=0.0344,
        eps_percent=3.5,
        min_samples=3,
        models=("compute", "bandwidth", "dispatch", MODEL),
        explained=(0.93, 0.05),
        devices=tuple(row.name for row in rows),
        labels=tuple(-1 if row.cluster is None else row.cluster for row in rows),
        points=tuple(points),
        clusters=clusters if rows else (),
    )


def alerts(subject: str, hostile: str | None = None) -> tuple[AlertRow, ...]:
    first = AlertRow(
        id=3, scope="device", subject=subject, state="firing", kind="step", direction="up",
        model=hostile or MODEL, baseline_ms=4.22, now_ms=5.28, size_percent=25.1, onset_at=at(6),
        opened_at=at(4), emulated=True, reason=hostile or "",
    )  # fmt: skip
    return (
        first,
        replace(first, id=2, subject="edge-11", state="acknowledged", kind="ramp", size_percent=7.4,
                baseline_ms=6.91, now_ms=7.42, onset_at=at(95), acknowledged_at=at(60),
                reason=hostile or "heat sink ordered"),
        replace(first, id=1, scope="fleet", subject="fleet", state="resolved", direction="down",
                size_percent=-12.0, baseline_ms=7.9, now_ms=6.95, onset_at=at(2900), inhibited=9,
                resolved_at=at(2880)),
    )  # fmt: skip


def jobs(hostile: str | None = None) -> tuple[JobRow, ...]:
    return (
        JobRow(
            id=hostile if hostile is not None else "compress-2", kind="compress", state="running",
            folder="/nowhere", created_at=at(3), step="search", progress=0.46, left_s=96.0,
        ),
        JobRow(
            id="compress-1", kind="compress", state="interrupted", folder="/nowhere",
            created_at=at(80), step="fine-tune", progress=0.71, error=hostile or "",
        ),
    )  # fmt: skip


def models(hostile: str | None = None) -> tuple[ModelRow, ...]:
    artifact = ModelRow(
        id=5, name=hostile if hostile is not None else SMALL, digest="5" * 64, path="/m/5.onnx",
        kind="artifact", bytes=412_334, created_at=at(30), parent=MODEL, job="compress-0",
        metrics={"test_accuracy": 0.9861, "test_accuracy_before": 0.9917, "parameters": 98_412,
                 "parameters_before": 272_474, "macs": 13_204_480, "macs_before": 40_813_184,
                 "precision": "int8", "measured_speedup": 2.28,
                 "design": {"kept": [[0] * 16] * 12}, "widths_before": [24] * 12,
                 "search": {"predicted_speedup": 2.11,
                            "surrogates": {"0": {"kind": "gbrt", "samples": 60}}}},
        deployed_on=0,
    )  # fmt: skip
    first = ModelRow(
        id=4, name=MODEL, digest="4" * 64, path="/m/4.onnx", kind="model", bytes=1_114_902,
        created_at=at(600), deployed_on=12,
        metrics={"test_accuracy": 0.9917, "parameters": 272_474, "macs": 40_813_184,
                 "precision": "fp32"},
    )  # fmt: skip
    probes = tuple(
        ModelRow(id=i, name=name, digest=str(i) * 64, path=f"/m/{i}.onnx", kind="probe",
                 bytes=size, created_at=at(601))
        for i, (name, size) in enumerate(
            (("compute", 2_400_120), ("bandwidth", 9_830_400), ("dispatch", 18_220)), start=1
        )
    )  # fmt: skip
    return (artifact, first, *probes)


def deployments() -> tuple[DeploymentRow, ...]:
    return (
        DeploymentRow(
            id=1, model=SMALL, previous=MODEL, state="finished", started_at=at(28),
            finished_at=at(25), devices=12, switched=12, speedup=2.31, low=2.25, high=2.37,
            verdict="faster", emulated=True,
        ),
    )  # fmt: skip


def points(row: DeviceRow, n: int = 90, seed: int = 5) -> tuple[Point, ...]:
    rng = random.Random(seed)
    found = []
    for i in range(n):
        model = "resnet20-old" if i < n // 4 else row.model
        level = (1.45 if i < n // 4 else 1.0) * (1.25 if i > n * 5 // 6 else 1.0)
        value = (row.baseline_ms or 5.0) * level * rng.uniform(0.985, 1.015)
        failed = n // 2 <= i < n // 2 + 4
        found.append(
            Point(
                at=at(2 * (n - i)),
                model=model,
                median_ms=math.nan if failed else value,
                low_ms=value * 0.99,
                high_ms=value * 1.01,
                contended=0.12 if i % 17 == 3 else 0.0,
                error="timeout" if failed else "",
            )
        )
    return tuple(found)


def comparison(models: Sequence[ModelRow], ms: Mapping[str, float]) -> Comparison:
    """Return models beside each other on a device that took so long for them, by name."""
    rows = [
        Profiled(
            model=row,
            timed=Timed(
                at=at(20), median_ms=ms[row.name], low_ms=0.99 * ms[row.name],
                high_ms=1.01 * ms[row.name], p90_ms=1.02 * ms[row.name], energy_mj=None,
                emulated=True,
            ) if row.name in ms else None,
        )
        for row in models
        if row.kind != "probe"
    ]  # fmt: skip
    device = "edge-01" if ms else ""
    return Comparison(device=device, emulated=True, devices=12, rows=marked(rows))


def job_stream(upto: float = 0.46) -> list[str]:
    """Return the lines of a compression's event file, as far as it is."""
    lines: list[str] = []
    clock = [NOW - timedelta(minutes=3)]

    def write(event: AnyEvent) -> None:
        clock[0] += timedelta(milliseconds=180)
        lines.append(to_json(replace(event, at=clock[0].isoformat(timespec="milliseconds"))))

    tell = Reporter("compress-2", write)
    tell.started("job", weight=240)
    tell.started("trace", total=1, weight=5)
    tell.noted("trace", "12 groups, 784 channels")
    tell.advanced("trace", 1)
    tell.finished("trace")
    tell.started("measure", total=24, weight=60)
    for i in range(24):
        tell.advanced("measure", i + 1)
        if i % 8 == 0:
            tell.noted("measure", f"design {i + 1} on edge-01, edge-02, edge-03")
    tell.finished("measure")
    tell.started("surrogate", total=3, weight=5)
    tell.advanced("surrogate", 3)
    tell.noted("surrogate", "cluster A 2.1 %, B 1.8 %, C 2.6 % mean error")
    tell.finished("surrogate")
    tell.started("search", total=400, weight=80)
    scored = int(400 * min(1.0, upto * 1.4))
    for i in range(0, scored, 10):
        tell.advanced("search", i + 10)
        tell.scored("search", "best predicted latency (ms)", i + 10, 4.1 + 3.3 * math.exp(-i / 90))
    if upto >= 0.9:
        tell.finished("search")
        tell.started("fine-tune", total=10, weight=60)
        for epoch in range(10):
            tell.advanced("fine-tune", epoch + 1)
            tell.scored("fine-tune", "accuracy", epoch + 1, 0.99 - 0.2 * math.exp(-epoch / 2))
    return lines


Run = Callable[..., Outcome]


class FakeSource:
    """Answers the dashboard from memory; a test changes `fleet` and looks at `ran`."""

    def __init__(self, fleet: FleetSnapshot | None = None, events: Path | None = None) -> None:
        self.fleet = fleet if fleet is not None else globals()["fleet"]()
        self.read_only = False
        self.devices: dict[str, Device] = {}
        self.log_file: Path | None = None
        self.events = events
        self.ran: list[tuple[str, dict[str, Any]]] = []
        self.changes: dict[str, tuple[Moment, ...]] = {}
        self.columns: tuple[str, ...] | None = None
        self.moments_of_rounds = [to_micros(at(10 * (200 - i))) for i in range(200)]
        """When rounds ended, each ten minutes; the latest ten minutes ago."""
        self.visited: list[int] = []
        """The moments of the past that were read."""
        self.failing_past: UserError | None = None
        self.gate = threading.Event()
        """Closed, it holds up whoever reads the past."""
        self.gate.set()
        self.asked: list[tuple[str, tuple[str, ...], bool]] = []
        self.runs: dict[str, Run] = {}
        self.failing: Exception | None = None
        self.watching = False
        self.said = ""
        self.elsewhere = ""
        self.doing = "sweep 5/12"
        self.reads = 0
        self.compared = 0
        self.latencies: dict[str, float] = {MODEL: 4.21, SMALL: 1.86}
        self._lock = threading.Lock()

    def put(self, **changes: Any) -> FleetSnapshot:
        """Change the fleet, as a writer of the store would."""
        with self._lock:
            self.fleet = replace(self.fleet, version=self.fleet.version + 1, **changes)
            return self.fleet

    def put_device(self, name: str, **changes: Any) -> None:
        rows = tuple(replace(r, **changes) if r.name == name else r for r in self.fleet.devices)
        self.put(devices=rows)

    def version(self) -> int:
        if self.failing is not None:
            raise self.failing
        return self.fleet.version

    def snapshot(self) -> FleetSnapshot:
        self.reads += 1
        return self.fleet

    def past(self, at: int) -> FleetSnapshot:
        self.gate.wait(20)
        self.visited.append(at)
        if self.failing_past is not None:
            raise self.failing_past
        then = from_micros(at)
        gone = [row for row in self.fleet.devices if row.name != "edge-12"]
        return replace(
            self.fleet,
            version=-at,
            at=then,
            devices=tuple(
                replace(row, past=True, baseline_ms=None, change_percent=None, stage="",
                        latency_ms=9.0, state="ok", alert=None, error="", detail="",
                        model="" if row.name == "edge-02" else row.model)
                for row in gone
            ),
            map=replace(self.fleet.map, eps_percent=7.5, at=then),
            alerts=tuple(replace(row, state="firing", size_percent=math.nan)
                         for row in self.fleet.alerts[:1]),
            jobs=(),
        )  # fmt: skip

    def rounds(self) -> Sequence[int]:
        return self.moments_of_rounds

    def history(self, device: str, until: int | None = None) -> Sequence[Point]:
        row = next((r for r in self.fleet.devices if r.name == device), None)
        found = points(row) if row else ()
        return [p for p in found if until is None or to_micros(p.at) <= until]

    def moments(self, device: str, until: int | None = None) -> Sequence[Moment]:
        return self.changes.get(device, ())

    def keep_columns(self, names: Sequence[str]) -> None:
        self.columns = tuple(names)

    def deployment(self, number: int) -> Sequence[DeploymentDevice]:
        return tuple(
            DeploymentDevice(
                device=row.name, stage=1 if i < 3 else 2, step="A/B measurement done",
                outcome="kept", switched=True, speedup=2.31, low=2.25, high=2.37,
                verdict="faster",
            )
            for i, row in enumerate(self.fleet.devices[:12])
        )  # fmt: skip

    def comparison(self) -> Comparison:
        self.compared += 1
        return comparison(self.fleet.models, self.latencies)

    def alert_events(self, alert: int, until: int | None = None) -> Sequence[AlertEvent]:
        row = next(a for a in self.fleet.alerts if a.id == alert)
        found = [AlertEvent(alert=alert, at=row.opened_at, what="opened", text=row.reason)]
        if row.acknowledged_at:
            found.append(AlertEvent(alert=alert, at=row.acknowledged_at, what="acknowledged",
                                    text=row.reason))  # fmt: skip
        return found

    def explanation(self, alert: int) -> Sequence[tuple[str, str]]:
        row = next(a for a in self.fleet.alerts if a.id == alert)
        return [
            ("what", f"{row.subject} says something."),
            ("compared", "with 4 other devices of its cluster: what they do together is taken out"),
            ("found by", "the CUSUM chart: its sum reached 11.2, the limit is 10.4"),
            ("meanwhile", row.reason or "governor changed from performance to powersave"),
        ]

    def job_events(self, job: JobRow, offset: int) -> tuple[Sequence[AnyEvent], int]:
        if self.events is None:
            data = "".join(f"{line}\n" for line in job_stream()).encode()[offset:]
        else:
            data = self.events.read_bytes()[offset:] if self.events.exists() else b""
        end = data.rfind(b"\n") + 1
        return [from_json(line.decode()) for line in data[:end].splitlines()], offset + end

    def run(
        self,
        command: Command,
        arguments: Mapping[str, Any],
        reporter: Reporter,
        confirm: Callable[[str, Sequence[str]], bool],
        cancelled: Callable[[], bool],
        secret: Callable[[str], str | None],
    ) -> Outcome:
        if any(p.name == "yes" for p in command.parameters) and not arguments.get("yes"):
            chosen = (arguments.get("select") or "").split(",") if arguments.get("select") else [
                r.name for r in self.fleet.devices
            ]  # fmt: skip
            touched = tuple(f"{name}: {MODEL} → {arguments.get('model')}" for name in chosen)
            answer = confirm(f"{command.help}", touched)
            self.asked.append((command.name, touched, answer))
            if not answer:
                raise RefusedError(f"{command.name}: not confirmed, nothing was changed.")
        self.ran.append((command.name, dict(arguments)))
        if command.name in self.runs:
            return self.runs[command.name](
                reporter=reporter, cancelled=cancelled, arguments=arguments, secret=secret
            )
        rows = tuple((r.name, f"{r.latency_ms or 0:.2f}") for r in self.fleet.devices[:40])
        return Outcome(table=Table(("device", "ms"), rows), text=f"{command.name}: done.")

    def start_watcher(self) -> None:
        if isinstance(self.failing, UserError):
            raise self.failing
        if self.elsewhere:
            raise RefusedError(f"{self.elsewhere} watches this fleet already.")
        self.watching = True

    def stop_watcher(self) -> None:
        self.watching = False

    def activity(self) -> str:
        return self.doing

    def close(self) -> None:
        self.watching = False


def main() -> None:
    from hdap_tui.dashboard.app import run_source

    n = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    sys.exit(run_source(FakeSource(fleet(n))))


if __name__ == "__main__":
    main()
