"""Look at the host keys that devices and their jump hosts show, and compare them with the known."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hdap_tui.context import OnStage
from hdap_tui.fanout import fan_out
from hdap_tui.ssh.config import resolve
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.hostkeys import HostKey
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Jump, Target


@dataclass(frozen=True)
class Stranger:
    """A server that shows a host key which is not trusted."""

    target: Target
    key: HostKey
    old: tuple[HostKey, ...]
    """The keys that were known of it; none where it is unknown."""

    @property
    def state(self) -> str:
        """Whether it is unknown or changed, in words."""
        return "host key changed" if self.old else "host key unknown"

    @property
    def sentence(self) -> str:
        """Old and new fingerprint, to be compared by a person."""
        if not self.old:
            return f"{self.state}: {self.key}"
        return f"{self.state}: was {', '.join(map(str, self.old))}, now {self.key}"


Answer = Stranger | DeviceError | None
"""What a look gives; None where the key is trusted."""


def resolved(
    targets: Sequence[Target], workers: int
) -> tuple[list[Target], dict[str, DeviceError]]:
    """Return the targets with all that the SSH configuration says, and those it fails for."""
    errors: dict[str, DeviceError] = {}

    def one(target: Target) -> Target | None:
        try:
            return resolve(target)
        except DeviceError as error:
            errors[target.name] = error
            return None

    with ThreadPoolExecutor(max(1, min(workers, len(targets)))) as executor:
        found = [target for target in executor.map(one, targets) if target is not None]
    return found, errors


def jump_levels(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """Yield the jump hosts on the ways to the targets: first those that are reached directly."""
    depth = 1
    while chains := {target.jumps[:depth] for target in targets if len(target.jumps) >= depth}:
        yield [_reached(chain) for chain in sorted(chains, key=lambda chain: chain[-1].name)]
        depth += 1


def _reached(chain: tuple[Jump, ...]) -> Target:
    return replace(chain[-1], jumps=chain[:-1])


def look(
    pool: Connections,
    targets: Sequence[Target],
    cancelled: Callable[[], bool],
    on_stage: OnStage,
) -> Iterator[tuple[Target, Answer]]:
    """Look at the host key of each, many at once; yields them in order of arrival.

    Ends early once it is no longer wanted.
    """

    def work(
        target: Target, unwanted: Callable[[], bool]
    ) -> Generator[float, None, Stranger | None]:
        yield from ()  # it never waits
        on_stage(target.name, "looking at its host key")
        key = pool.scan(target, unwanted)
        known = pool.known(target)
        try:
            known.check(*target.known_as, key, target.name, target.acceptance)
        except DeviceError:
            if known.is_revoked(key):
                raise
            old = tuple(sorted(known.lookup(*target.known_as), key=str))
            return Stranger(target, key, old)
        return None

    return fan_out(targets, work, pool.bound, cancelled, on_stage=on_stage)
