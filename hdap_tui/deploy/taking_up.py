"""Go on with a deployment whose process was killed, or take it back."""

from __future__ import annotations

from hdap_tui.deploy.owning import owning
from hdap_tui.deploy.planning import Options, Plan, check_file
from hdap_tui.deploy.report import Report
from hdap_tui.deploy.rollout import Rollout
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.measuring import Measuring
from hdap_tui.store import deployments
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.records import DeploymentRow, ModelRow


def find(store: Store, number: int | None) -> DeploymentRow:
    """Return the deployment that was interrupted.

    Raises:
        RefusedError: there is none, or the one of that number has ended.
        UnknownError: there is none of that number at all.
    """
    row = deployments.unfinished(store)
    if number is not None and (row is None or row.id != number):
        found = deployments.row(store, number)
        raise RefusedError(f"Deployment {number} has ended: {found.state}; nothing is left to do.")
    if row is None:
        raise RefusedError("No deployment was interrupted: there is nothing to go on with.")
    return row


def resume(measuring: Measuring, number: int | None = None) -> Report:
    """Ask the devices what they run, and go on from there.

    Raises:
        RefusedError: another process deploys to this fleet, or nothing was interrupted.
        UserError: the model's file is gone.
    """
    with owning(measuring.settings.state_dir):
        row = find(measuring.store, number)
        chosen, token = _plan(measuring, row)
        check_file(chosen.model)
        return Rollout(measuring, chosen).resume(row.id, token)


def abort(measuring: Measuring, number: int | None = None) -> Report:
    """Let all devices of the deployment run again what they ran before it.

    Raises:
        RefusedError: another process deploys to this fleet, or nothing was interrupted.
    """
    with owning(measuring.settings.state_dir):
        row = find(measuring.store, number)
        chosen, token = _plan(measuring, row)
        return Rollout(measuring, chosen).abort(row.id, token)


def _plan(measuring: Measuring, row: DeploymentRow) -> tuple[Plan, str]:
    store = measuring.store
    digest, token, options = deployments.kept_plan(store, row.id)
    stages: dict[int, list[str]] = {}
    before: dict[str, ModelRow] = {}
    for one in deployments.devices(store, row.id):
        if one.device not in measuring.fleet.members:
            deployments.record_device(
                store, row.id, one.device, switched=False, error="failed", outcome="failed",
                detail=f"{one.device}: the settings no longer name it",
            )  # fmt: skip
            continue
        stages.setdefault(one.stage, []).append(one.device)
        old = table.by_digest(store, one.previous) if one.previous else None
        before[one.device] = old or measuring.first_model
    model = table.by_digest(store, digest)
    if model is None or not stages:
        raise UserError(f"Deployment {row.id}: the settings name none of its devices any more.")
    whole = Plan(
        model,
        tuple(tuple(stages[number]) for number in sorted(stages)),
        before,
        Options.read(options),
    )
    return whole, token
