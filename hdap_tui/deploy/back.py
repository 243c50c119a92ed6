"""Put the previous model back, outside a deployment; and what follows from a change of models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from hdap_tui.alerting.drifting import restart
from hdap_tui.alerting.lifecycle import come_up
from hdap_tui.deploy.hooks import Hooks
from hdap_tui.deploy.owning import owning, refuse_unfinished
from hdap_tui.fanout import on_each
from hdap_tui.measuring import Measuring
from hdap_tui.ssh import release
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.locks import LEASE_S, Claim
from hdap_tui.store import alerts, devices
from hdap_tui.store import models as table


def back(
    measuring: Measuring,
    names: Sequence[str],
    on_error: Callable[[str, DeviceError], None] = lambda _name, _error: None,
) -> list[str]:
    """Let devices run their previous model again; return those that do.

    Raises:
        RefusedError: another process deploys to this fleet, or a deployment was interrupted.
    """
    store, section = measuring.store, measuring.settings.deploy
    hooks = Hooks(section.hook, section.health, section.hook_timeout_s)
    claim = Claim(lease_s=int(LEASE_S + 4 * section.hook_timeout_s))
    stage = measuring.fleet.on_stage
    running: dict[str, list[str]] = {}

    def restore(connection: Connection) -> None:
        name = connection.where
        try:
            found = release.restore(connection, claim)
            digest = str(found.current)
            # In this thread: an interruption must not leave the store behind the device.
            if table.by_digest(store, digest) is not None:
                devices.take_over(store, name, digest, found.previous or "")
            running.setdefault(digest, []).append(name)
            stage(name, "hook")
            hooks.run(connection, digest, "rollback")
        finally:
            with contextlib.suppress(DeviceError):  # it is free by itself after a while
                release.let_go(connection, claim)

    with owning(measuring.settings.state_dir):
        refuse_unfinished(store)
        reporter = measuring.context.reporter
        reporter.started("rollback", total=len(names), weight=len(names) * 0.3)
        targets = [measuring.fleet.members[name] for name in names]
        answers = on_each(measuring.fleet.pool, targets, restore, on_stage=stage, doing="restore")
        for ended, (target, answer) in enumerate(answers, start=1):
            if isinstance(answer, DeviceError):
                on_error(target.name, answer)
                reporter.noted("rollback", str(answer))
            reporter.advanced("rollback", ended)
        done = [name for own in running.values() for name in own]
        reporter.finished("rollback", switched=len(done))
    for digest, own in running.items():
        settle(measuring, digest, own, "the previous model was put back")
    return done


def settle(measuring: Measuring, digest: str, names: Sequence[str], reason: str) -> None:
    """Resolve what was said of devices under another model, and have them learn new baselines.

    What was said of the fleet or a cluster ends only where all devices have changed.
    """
    store, everybody = measuring.store, {d.name for d in measuring.settings.devices}
    whole = everybody <= set(names)
    for alert in alerts.open_rows(store):
        if whole if alert.scope != "device" else alert.subject in names:
            alerts.resolve(store, alert.id, reason)
    come_up(store)
    if names:
        restart(measuring.settings, store, digest, names)
