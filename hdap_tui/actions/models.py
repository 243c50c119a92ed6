"""Models: list them, show where one came from."""

from __future__ import annotations

from typing import Any

from hdap_tui import library
from hdap_tui.actions.deployments import deployment_document
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.model_words import model_lines
from hdap_tui.store import deployments
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow


def list_models(context: Context) -> Outcome:
    """Show every model that has a name, and the deployments."""
    library.ensure(context.settings, context.store)
    rows = table.rows(context.store)
    past = deployments.rows(context.store)
    shown = Table(
        ("model", "kind", "made from", "kB", "test accuracy", "deployed on", "digest"),
        tuple(
            (
                r.name,
                r.kind,
                r.parent,
                f"{r.bytes / 1000:.0f}",
                _per_cent(r.metrics.get("test_accuracy")),
                str(r.deployed_on or ""),
                r.digest[:12],
            )
            for r in rows
        ),
    )
    return Outcome(
        data={
            "models": [document(r) for r in rows],
            "deployments": [deployment_document(d) for d in past],
        },
        table=shown,
    )


def show(context: Context, model: str) -> Outcome:
    """Show one model with its lineage and what was measured when it was made."""
    row = table.find(context.store, model)
    made_from = table.lineage(context.store, row.digest)
    facts = [
        ("name", row.name),
        ("digest", row.digest),
        ("file", row.path),
        ("bytes", str(row.bytes)),
        ("made", row.created_at[:19]),
        ("by job", row.job),
        ("lineage", " < ".join(r.name for r in made_from)),
        *model_lines(row.metrics),
    ]
    return Outcome(
        data={**document(row), "lineage": [r.name for r in made_from]},
        table=Table(("", ""), tuple((k, v) for k, v in facts if v)),
    )


def document(row: ModelRow) -> dict[str, Any]:
    """Return a model as the JSON that the command line prints."""
    return {
        "name": row.name,
        "digest": row.digest,
        "path": row.path,
        "kind": row.kind,
        "bytes": row.bytes,
        "created_at": row.created_at,
        "parent": row.parent,
        "job": row.job,
        "metrics": dict(row.metrics),
        "deployed_on": row.deployed_on,
    }


def _per_cent(share: Any) -> str:
    return f"{100 * share:.2f} %" if isinstance(share, int | float) else ""
