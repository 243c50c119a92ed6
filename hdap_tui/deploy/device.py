"""What a deployment does on one device, every step written down before and after."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import engine.runner
from hdap_tui.deploy import selftest
from hdap_tui.deploy.hooks import Hooks
from hdap_tui.deploy.planning import Plan
from hdap_tui.deploy.selftest import Known
from hdap_tui.ssh import release
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.locks import Claim, HeldError
from hdap_tui.ssh.pool import Connections, backoff
from hdap_tui.ssh.transfer import Payload, upload
from hdap_tui.store import deployments, devices
from hdap_tui.store.database import Store

R = TypeVar("R")
_TRIES = 3


@dataclass
class Work:
    """The steps of one deployment; safe to use for many devices at once."""

    store: Store
    number: int
    plan: Plan
    claim: Claim
    hooks: Hooks
    known: Known | None
    """What the model computes; None: no self-test."""
    pool: Connections
    say: Callable[[str, str], None]
    cancelled: Callable[[], bool]
    taken_up: bool = False
    """Whether an earlier process was killed in the middle, and may have left something."""
    switching: set[str] = field(default_factory=set)
    """Devices whose switch has begun: they may run the new model."""

    def __post_init__(self) -> None:
        self._runner = Payload.of(Path(engine.runner.__file__), "runner")
        self._payloads: dict[str, Payload] = {}

    def put(self, connection: Connection) -> None:
        """Bring the model, prove the file and what it computes, switch, run the hook.

        Again does no harm: what is done already is not done twice.

        Raises:
            DeviceError: the device may run the new model where it is among `switching` now.
            Cancelled: it is no longer wanted.
        """
        name, model = connection.where, self.plan.model
        before = self.plan.before[name]
        if self.taken_up:
            with self._step(name, "end what was left"):
                release.end_left(connection, self.claim, model.digest)
        found = release.show(connection)
        if found.current != model.digest:
            if found.current not in (None, before.digest):
                raise release.foreign(connection, found, before.digest)
            old, new = self._payload(before.path), self._payload(model.path)
            with self._step(name, "upload"):
                upload(
                    connection,
                    [self._runner, old, new],
                    lambda sent, total: self.say(name, f"upload {100 * sent // max(total, 1)} %"),
                    self.cancelled,
                )
            with self._step(name, "self-test"):
                selftest.check(connection, self._runner, new, self.known)
        if self.cancelled():
            raise Cancelled
        self.switching.add(name)
        with self._step(name, "switch"):
            release.switch(connection, self.claim, model.digest, before.digest, model.bytes)
            # In this thread: an interruption must not leave the store behind the device.
            devices.set_model(self.store, name, model.digest)
        with self._step(name, "hook"):
            self.hooks.run(connection, model.digest, "deploy")

    def back(self, connection: Connection) -> None:
        """Let the device run again what it ran before, and run the hook.

        Raises:
            DeviceError: the old model is not back, or it is, and the hook failed: see `HookError`.
        """
        name, model = connection.where, self.plan.model
        before = self.plan.before[name]
        with self._step(name, "restore"):
            if self.taken_up:
                release.end_left(connection, self.claim, model.digest)
            if release.show(connection).current not in (model.digest, before.digest):
                return  # never switched, or somebody else has changed it since, which is theirs
            found = release.restore(connection, self.claim, taken=model.digest, to=before.digest)
            devices.take_over(self.store, name, before.digest, found.previous or "")
        try:
            with self._step(name, "hook after roll-back"):
                self.hooks.run(connection, before.digest, "rollback")
        except DeviceError as error:
            raise HookError(error.kind, str(error)) from error

    def alive(self, connection: Connection) -> None:
        """Make sure that the device still runs the new model, and is well.

        Raises:
            DeviceError: it does not, or is not.
        """
        found = release.show(connection)
        if found.current != self.plan.model.digest:
            raise release.foreign(connection, found, self.plan.model.digest)
        self.hooks.check(connection, self.plan.model.digest)

    def leave(self, connection: Connection, keep: tuple[str, ...] | None) -> None:
        """Give the device free; with `keep` remove old models that it does not name.

        Raises:
            DeviceError: the device cannot be asked; then it is free by itself after a while.
        """
        if keep is not None:
            release.tidy(connection, keep)
        release.let_go(connection, self.claim)

    def steadily(self, action: Callable[[Connection], R]) -> Callable[[Connection], R]:
        """Return an action that is done again on a new connection where one is lost."""

        def act(connection: Connection) -> R:
            attempt = 1
            while True:
                try:
                    return action(connection)
                except DeviceError as error:
                    lasting = not error.transient or error.kind is ErrorKind.TIMEOUT
                    if lasting or isinstance(error, HeldError) or attempt == _TRIES:
                        raise
                self.pool.drop(connection.target)
                time.sleep(backoff(attempt))
                connection = self.pool.get(connection.target, self.cancelled)
                attempt += 1

        return act

    def _payload(self, path: str) -> Payload:
        if path not in self._payloads:
            self._payloads[path] = Payload.of(Path(path))
        return self._payloads[path]

    @contextlib.contextmanager
    def _step(self, device: str, step: str) -> Iterator[None]:
        self.say(device, step)
        deployments.journal(self.store, self.number, device, step)
        try:
            yield
        except (DeviceError, Cancelled) as error:
            deployments.journal(
                self.store, self.number, device, step, "failed", str(error) or "cancelled"
            )
            raise
        deployments.journal(self.store, self.number, device, step, "done")


class HookError(DeviceError):
    """The old model is back, but the hook after it failed."""
