"""Alerts in words and as documents, for whoever reads or receives them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from hdap_tui.figures import count
from hdap_tui.names import with_letters
from hdap_tui.store.records import NO_DATA, AlertRow
from hdap_tui.text import clean

_NAMED = 3
_ALERT_NAMES = {
    "step": "HdapLatencyShift",
    "ramp": "HdapLatencyShift",
    "spread": "HdapLatencySpread",
    "migration": "HdapClusterMove",
    NO_DATA: "HdapNoData",
}


def alert_sentence(alert: AlertRow) -> str:
    """Return what an alert says."""
    way = {"up": "slower", "down": "faster"}.get(alert.direction, alert.direction)
    subject = _subject(alert)
    if alert.kind == NO_DATA:
        many = alert.scope == "fleet"
        who = f"{alert.devices} devices" if many else subject
        over = alert.state == "resolved"
        return f"{who} did not answer" if over else f"{who} {'do' if many else 'does'} not answer"
    if alert.kind == "spread":
        return f"{subject} has become uneven"
    if alert.kind == "migration":
        return f"{subject} behaves like another cluster now"
    how = {"step": "at once", "ramp": "slowly"}.get(alert.kind, "")
    toward = -alert.size_percent if alert.direction == "down" else alert.size_percent
    has = "had" if alert.state == "resolved" or toward <= 0 else "has"
    if not math.isfinite(toward):
        return f"{subject} {has} become {way}, by how much is not known"
    by = f"{toward:.1f} % " if toward > 0 else ""  # it may be past its old level by now
    return f"{subject} {has} become {by}{way} {how}".rstrip()


def whole_sentence(alert: AlertRow) -> str:
    """Return what an alert says, and for how many others it stands."""
    said = alert_sentence(alert)  # that of silence counts them itself
    return said if alert.kind == NO_DATA else said + stands_for(alert)


def round_sentence(firing: Sequence[AlertRow], resolved: Sequence[AlertRow]) -> str:
    """Return what a round brought: one alert in full, of many their subjects."""
    parts = []
    for rows, word in ((firing, "new"), (resolved, "resolved")):
        if len(rows) == 1:
            over = "" if word == "new" else ": resolved"
            parts.append(f"{whole_sentence(rows[0])}{over}")
        elif rows:
            parts.append(f"{len(rows)} alerts {word}: {_listed(map(_subject, rows))}")
    return "; ".join(parts)


def severity(alert: AlertRow) -> Literal["warning", "info"]:
    """Return how much it matters: what has only become faster is no warning."""
    faster = alert.direction == "down" and alert.kind != "spread"
    return "info" if faster else "warning"


def figures(alert: AlertRow) -> str:
    """Return what was measured, in short."""
    if alert.kind == NO_DATA:
        return f"no answer since {alert.onset_at}"
    furthest = " at its furthest" if alert.state == "resolved" else ""
    return (
        f"{alert.baseline_ms:.3f} ms -> {alert.now_ms:.3f} ms ({alert.size_percent:+.1f} %)"
        f"{furthest} with {clean(alert.model, 80)}, since {alert.onset_at}"
    )


def is_quiet_now(alert: AlertRow, now: datetime) -> bool:
    """Say whether a silence keeps an alert quiet at this time."""
    return bool(alert.silenced_until) and datetime.fromisoformat(alert.silenced_until) > now


def document(row: AlertRow) -> dict[str, Any]:
    """Return an alert as the JSON that the command line prints and notifications hold."""
    return {
        "alert": row.id,
        "state": row.state,
        "says": alert_sentence(row),
        "severity": severity(row),
        "scope": row.scope,
        "subject": row.subject,
        "kind": row.kind,
        "direction": row.direction,
        "size_percent": _known(row.size_percent),
        "baseline_ms": _known(row.baseline_ms),
        "now_ms": _known(row.now_ms),
        "model": row.model,
        "devices": row.devices,
        "onset_at": row.onset_at,
        "opened_at": row.opened_at,
        "fired_at": row.fired_at,
        "acknowledged_at": row.acknowledged_at,
        "acknowledged_by": row.acknowledged_by,
        "resolved_at": row.resolved_at,
        "reason": row.reason,
        "inhibited": row.inhibited,
        "inhibited_by": row.inhibited_by,
        "silence": row.silence,
        "silenced_until": row.silenced_until,
        "emulated": row.emulated,
        "evidence": dict(row.evidence),
    }


def postable(alert: AlertRow, fleet: str, ends_at: str) -> dict[str, Any]:
    """Return an alert as Alertmanager's API v2 takes it (`postableAlert` in its openapi.yaml).

    Its labels stay the same for as long as it is open; what changes is in the annotations.
    """
    labels = {
        "alertname": _ALERT_NAMES.get(alert.kind, "HdapAlert"),
        "fleet": fleet,
        "scope": alert.scope,
        "subject": clean(alert.subject, 200),
        "model": clean(alert.model, 200),
        "severity": severity(alert),
        **({"device": clean(alert.subject, 200)} if alert.scope == "device" else {}),
        **({"emulated": "true"} if alert.emulated else {}),
    }
    annotations = {
        "summary": whole_sentence(alert) + (" (emulated)" if alert.emulated else ""),
        "description": figures(alert),
        "alert": str(alert.id),
        "state": alert.state,
    }
    return {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": annotations,
        "startsAt": rfc3339(alert.fired_at or alert.opened_at),
        "endsAt": rfc3339(ends_at),
    }


def open_until(now: datetime, canary_every_s: float) -> str:
    """Return when an open alert ends for Alertmanager unless it is sent again."""
    return (now + timedelta(seconds=max(4 * canary_every_s, 300.0))).isoformat()


def rfc3339(at: str) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    when = datetime.fromisoformat(at)
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _subject(alert: AlertRow) -> str:
    return with_letters(clean(alert.subject, 60))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def stands_for(alert: AlertRow) -> str:
    """Return how many devices' alerts it stands for; empty where it stands for none."""
    if not alert.inhibited:
        return ""
    return f" (+{count(alert.inhibited, 'device')})"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
