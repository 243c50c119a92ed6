"""What the store hands out: immutable rows, with names instead of ids where people read them.

Times are UTC, ISO 8601 text; latencies milliseconds. A measured number and a predicted one never
share a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hdap_tui.fact_names import Fact

DeviceState = Literal["unknown", "ok", "busy", "failed", "off"]
AlertState = Literal["pending", "firing", "acknowledged", "recovering", "resolved"]
"""Pending has not lasted yet; acknowledged is firing while somebody looks after it; recovering is
below the clearing limit, but not for long enough."""
DecisionState = Literal["suggested", "starting", "started", "failed", "withdrawn", "undone"]
Watched = Literal["", "learning", "ok", "no data"]
"""How a device's latency is watched; empty: not yet."""
NO_DATA = "no data"
"""Kind of an alert that says that nothing answers: it has no latencies, NaN stands for them."""
JobState = Literal["queued", "running", "finished", "failed", "cancelled", "interrupted"]
Scope = Literal["device", "cluster", "fleet"]
DeploymentState = Literal["running", "interrupted", "finished", "partly", "failed", "rolled back"]
Span = Literal["", "hour", "day"]
"""Over what a latency was rolled up; empty: it is one measurement."""
Outcome = Literal["", "kept", "going back", "back", "failed"]
"""What was decided for a device of a deployment; empty: nothing yet."""


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One line of the fleet table."""

    id: int
    name: str
    tags: tuple[str, ...] = ()
    emulated: bool = False
    state: DeviceState = "unknown"
    """Failed and off say why in `error` and `detail`."""
    error: str = ""
    detail: str = ""
    stage: str = ""
    """What is being done on it right now ("connecting", "upload", "timing 2/5"), or empty."""
    stage_since: str = ""
    """When it began, figures that change in it aside; empty where nobody knows."""
    seen_at: str = ""
    model: str = ""
    """Name of the deployed model; empty where none is known."""
    model_digest: str = ""
    latency_ms: float | None = None
    """Latest measured latency of the deployed model."""
    low_ms: float | None = None
    high_ms: float | None = None
    contended: float = 0.0
    measured_at: str = ""
    baseline_ms: float | None = None
    """What drift is told against; None while it is still being learned."""
    change_percent: float | None = None
    """Latest latency against the baseline."""
    cluster: int | None = None
    """-1 is noise; None where the device has not been clustered yet."""
    representative: bool = False
    alert: AlertState | None = None
    watched: Watched = ""
    recent_ms: tuple[float, ...] = ()
    """The last latencies of the deployed model, oldest first, for a sparkline."""
    facts: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    """What it is, as it says itself (see `hdap_tui.fact_names`)."""
    span: Span = ""
    """Over what the latency is the median; then its ends are the lowest and the highest."""
    past: bool = False
    """Whether this is how it was: then empty or None is not known, baseline and stage never are."""

    @property
    def standing(self) -> str:
        """How it stands: that nobody knows, else how its alert does, else how it is watched."""
        return self.watched if self.watched == NO_DATA else self.alert or self.watched


@dataclass(frozen=True, kw_only=True)
class ClusterRow:
    """One cluster of the latest clustering."""

    id: int
    size: int
    representative: str
    median_ms: Mapping[str, float] = field(default_factory=dict)
    """Measured median latency over its devices, by model name."""
    note: str = ""
    """What tells it from the rest, in words."""
    stability: float | None = None
    """How surely it is found again, 0 to 1; None where nobody has looked."""


@dataclass(frozen=True, kw_only=True)
class ClusterMap:
    """The latest clustering, as the map shows it."""

    at: str = ""
    eps: float = 0.0
    eps_percent: float = 0.0
    min_samples: int = 0
    models: tuple[str, ...] = ()
    """The probe models, in the order of the features."""
    explained: tuple[float, float] = (0.0, 0.0)
    """Share of the variance that the two axes of the map show."""
    devices: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    """Where each device lies; the unit is per cent of latency."""
    clusters: tuple[ClusterRow, ...] = ()
    silhouette: float | None = None
    """How well the clusters stand apart, -1 to 1; None where there are not two."""
    apart_percent: float | None = None
    """How far the middles of the nearest two lie apart; None likewise."""


@dataclass(frozen=True, kw_only=True)
class AlertRow:
    """One alert, with what it is about and how it stands."""

    id: int
    scope: Scope
    subject: str
    """The device's name, "cluster 2", or "fleet"."""
    state: AlertState
    kind: str
    """One of step, ramp, spread, migration, no data."""
    direction: str
    """Either up (slower) or down; empty where nothing answers."""
    model: str
    """Empty where nothing answers: that is no model's."""
    baseline_ms: float
    now_ms: float
    size_percent: float
    onset_at: str
    opened_at: str
    fired_at: str = ""
    """When it had lasted long enough; empty while it is pending."""
    acknowledged_at: str = ""
    acknowledged_by: str = ""
    resolved_at: str = ""
    devices: int = 1
    """How many devices it is about."""
    inhibited: int = 0
    """How many narrower alerts this one stands for."""
    inhibited_by: int | None = None
    """The wider alert that stands for this one, so that nobody is told of it."""
    silence: int | None = None
    """The silence that keeps it quiet."""
    silenced_until: str = ""
    """When that one ends."""
    emulated: bool = False
    reason: str = ""
    """Why it was resolved, or what the operator wrote."""
    evidence: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """By what it was told: rule, height, limit, noise_percent, samples, peers, peer_count."""
    told_percent: float = 0.0
    """The size as its history told it last."""
    told: Literal["", "firing", "resolved"] = ""
    """What the world outside was told of it last."""

    @property
    def is_quiet(self) -> bool:
        """Whether nobody is to be told of it: a silence, or a wider alert, stands before it."""
        return self.inhibited_by is not None or self.silence is not None


@dataclass(frozen=True, kw_only=True)
class AlertEvent:
    """One line of an alert's history, never rewritten."""

    alert: int
    at: str
    what: str
    text: str = ""
    who: str = ""
    """The operator's name; empty: hdap itself."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What should follow from an alert or a latency, and what became of that."""

    id: int
    cause: str
    """What it is about: "alert 3", "objective"."""
    alert: int | None
    state: DecisionState
    at: str
    reason: str
    recipe: str = ""
    """Recipe of the job; empty: a search for the fleet."""
    job: str = ""
    """The job that was started."""


@dataclass(frozen=True, kw_only=True)
class DecisionStep:
    """One line of a decision's history, never rewritten."""

    at: str
    who: str
    """The operator's name; empty: hdap itself."""
    what: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Alerts of which nobody is told for a while."""

    id: int
    selector: str
    reason: str
    who: str
    created_at: str
    until: str
    ended_at: str = ""
    """When somebody ended it early."""
    ended_by: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model file, and where it came from."""

    id: int
    name: str
    digest: str
    path: str
    kind: Literal["probe", "model", "artifact"]
    bytes: int
    created_at: str
    parent: str = ""
    """Name of the model it was made from."""
    job: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured when it was made: accuracy, parameters, macs, precision, …"""
    deployed_on: int = 0
    """Devices that run it now."""


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job, as its folder tells it."""

    id: str
    kind: str
    state: JobState
    folder: str
    created_at: str
    updated_at: str = ""
    step: str = ""
    progress: float = 0.0
    """0 to 1, over all its steps."""
    left_s: float | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One latency in a device's history: measured, or what an hour or a day was rolled up to."""

    at: str
    """When it was measured, or when the hour or day began."""
    model: str
    median_ms: float
    low_ms: float
    """Lower end of the median's 95 % interval; rolled up: the lowest median."""
    high_ms: float
    contended: float
    error: str = ""
    """What went wrong; rolled up: only where nothing went right."""
    configuration: str = ""
    """Batch, threads and provider where they are not the standard ones."""
    energy_mj: float | None = None
    """Energy of one inference, idle power included; None where no sensor told it."""
    remarks: tuple[str, ...] = ()
    """What was off while it was measured."""
    span: Span = ""
    count: int = 1
    """Good measurements that it stands for."""
    failed: int = 0
    """Failed ones, where it is rolled up."""


@dataclass(frozen=True, kw_only=True)
class DeploymentRow:
    """One deployment and what it was proven to bring."""

    id: int
    model: str
    previous: str
    state: DeploymentState
    started_at: str
    finished_at: str = ""
    stage: int = 0
    """The stage that is worked on or was the last, from 1."""
    stages: int = 0
    stopped: str = ""
    """Why the rest was left out."""
    devices: int = 0
    switched: int = 0
    measured: int = 0
    """Devices on which old and new were timed side by side."""
    failed: int = 0
    """Devices on which something went wrong."""
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    emulated: bool = False


@dataclass(frozen=True, kw_only=True)
class DeploymentDevice:
    """What a deployment did on one device."""

    device: str
    previous: str = ""
    """Digest of the model that ran before; empty where none did."""
    stage: int = 1
    step: str = ""
    """What is being done on it, or was done last."""
    outcome: Outcome = ""
    switched: bool = False
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    error: str = ""
    """Class of what went wrong; empty when nothing did."""
    detail: str = ""
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class DeploymentStep:
    """One line of a deployment's journal, never rewritten."""

    at: str
    device: str
    step: str
    phase: Literal["begun", "done", "failed"]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class FleetSnapshot:
    """Everything the dashboard shows at a glance, read in one transaction."""

    version: int
    """Grows with every change of the store; equal means nothing to redraw."""
    at: str
    """When it was read, or the moment of the past that it shows."""
    fleet: str
    devices: tuple[DeviceRow, ...] = ()
    map: ClusterMap = field(default_factory=ClusterMap)
    alerts: tuple[AlertRow, ...] = ()
    """Open ones first, then the latest resolved."""
    decisions: tuple[Decision, ...] = ()
    """What is suggested, and the latest of what was decided."""
    jobs: tuple[JobRow, ...] = ()
    """From their folders, which the store knows nothing of."""
    models: tuple[ModelRow, ...] = ()
    deployments: tuple[DeploymentRow, ...] = ()
    columns: tuple[str, ...] = ()
    """Facts that the operator wants to see as columns of the fleet table."""
