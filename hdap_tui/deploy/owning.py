"""One process deploys to a fleet at a time; one that was killed is found out by the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hdap_tui import locking
from hdap_tui.errors import RefusedError
from hdap_tui.store import deployments
from hdap_tui.store.database import Store
from hdap_tui.store.records import DeploymentRow

_PATIENCE_S = 0.3  # others hold the lock for a moment to see whether it is free


@contextmanager
def owning(state: Path) -> Iterator[None]:
    """Be the one process that changes what the fleet runs; death in any way ends it.

    Raises:
        RefusedError: another one does so now.
    """
    path = state / "deploy.lock"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        until = time.monotonic() + _PATIENCE_S
        while not locking.take(file):
            if time.monotonic() > until:
                who = file.read(20).strip()
                raise RefusedError(
                    "Another deployment to this fleet is going on"
                    f"{f' (process {who})' if who.isdecimal() else ''}; wait for its end."
                )
            time.sleep(0.02)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_owned(state: Path) -> bool:
    """Whether a process changes what the fleet runs, this one included."""
    return locking.is_held(state / "deploy.lock")


def notice(store: Store, state: Path) -> DeploymentRow | None:
    """Return the deployment whose process is gone, and say so in the store."""
    row = deployments.unfinished(store)
    if row is None or is_owned(state):
        return None
    again = deployments.unfinished(store)  # it may have ended in between
    if again is None or again.id != row.id:
        return None
    if row.state == "running":
        deployments.set_state(store, row.id, "interrupted")
    return deployments.row(store, row.id)


def refuse_unfinished(store: Store) -> None:
    """Make sure that nothing is left half done; to be called by the owning process.

    Raises:
        RefusedError: a deployment was interrupted; the sentence says what to do.
    """
    row = deployments.unfinished(store)
    if row is None:
        return
    deployments.set_state(store, row.id, "interrupted")
    raise RefusedError(
        f"Deployment {row.id} ({row.model}) was interrupted in stage {max(row.stage, 1)} of "
        f'{row.stages}: "hdap deploy --resume" goes on with it, "hdap deploy --abort" takes it '
        "back."
    )
