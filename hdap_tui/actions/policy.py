"""The policy: what would follow from what is found, what was decided, and how to undo it."""

from __future__ import annotations

from typing import Any

from hdap_tui.alerting import policy
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import RefusedError
from hdap_tui.names import own_name
from hdap_tui.store import decisions
from hdap_tui.store.records import Decision


def check(context: Context) -> Outcome:
    """Say what would be done now and why, and what is missing; nothing is done."""
    settings, store = context.settings, context.store
    mode, found = settings.policy.mode, policy.findings(settings, store)
    against = list(policy.obstacles(settings, store))
    rows = [
        (f.cause, _would(f, mode, against, _before(context, f)), f.reason, "; ".join(f.missing))
        for f in found
    ]
    text = f"mode: {mode}"
    if mode == "start" and against:
        text += f"; nothing is started: {'; '.join(against)}"
    return Outcome(
        data={
            "mode": mode,
            "recipe": settings.policy.recipe,
            "obstacles": against,
            "findings": [
                {
                    "cause": f.cause,
                    "alert": f.alert,
                    "would": row[1],
                    "reason": f.reason,
                    "missing": list(f.missing),
                }
                for f, row in zip(found, rows, strict=True)
            ],
        },
        table=Table(("about", "would", "found", "missing"), tuple(rows)) if rows else None,
        text=text if rows else f"{text}; no cluster and not the fleet has shifted.",
    )


def log(context: Context, decision: int | None = None) -> Outcome:
    """Show what was decided, and every step of it."""
    found = (
        decisions.rows(context.store)
        if decision is None
        else (decisions.row(context.store, decision),)
    )
    lines = [(one, step) for one in found for step in decisions.steps(context.store, one.id)]
    table = Table(
        ("no", "about", "when", "what", "who", "why", "job"),
        tuple(
            (str(o.id), o.cause, s.at[:19], s.what, s.who or "hdap", s.text, o.job)
            for o, s in lines
        ),
    )
    return Outcome(
        data={"decisions": [_document(context, one) for one in found]},
        table=table if found else None,
        text="" if found else "Nothing was decided yet.",
    )


def start(context: Context, decision: int | None = None) -> Outcome:
    """Start the compression that was suggested, in the background."""
    found = policy.start(context, decision, own_name())
    if found.state != "started":
        why = decisions.steps(context.store, found.id)[-1].text
        raise RefusedError(f"decision {found.id} is {found.state}: {why}")
    return Outcome(
        data=_document(context, found),
        text=f"{found.job} runs on its own; nothing is deployed by it. "
        f'"hdap policy undo {found.id}" cancels it.',
    )


def undo(context: Context, decision: int | None = None) -> Outcome:
    """Withdraw a suggestion, or cancel the job that was started."""
    found = policy.undo(context, decision, own_name())
    what = f"{found.job} stops at its next step" if found.job else "the suggestion is withdrawn"
    return Outcome(data=_document(context, found), text=f"Decision {found.id}: {what}.")


def _before(context: Context, finding: policy.Finding) -> Decision | None:
    return decisions.of_cause(context.store, finding.cause)


def _would(finding: policy.Finding, mode: str, against: list[str], before: Decision | None) -> str:
    if finding.missing or mode == "off":
        return "nothing"
    if before is not None:
        return f"nothing: decision {before.id} is {before.state}"
    return "start" if mode == "start" and not against else "suggest"


def _document(context: Context, row: Decision) -> dict[str, Any]:
    return {
        "decision": row.id,
        "about": row.cause,
        "alert": row.alert,
        "state": row.state,
        "at": row.at,
        "reason": row.reason,
        "recipe": row.recipe,
        "job": row.job,
        "steps": [
            {"at": s.at, "what": s.what, "who": s.who, "text": s.text}
            for s in decisions.steps(context.store, row.id)
        ],
    }
