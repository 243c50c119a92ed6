"""The registry in Textual's command palette (ctrl+p)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from hdap_tui.commands import COMMANDS, Command

if TYPE_CHECKING:
    from hdap_tui.dashboard.application import HdapApp


class RegistryProvider(Provider):
    """Every command that may be run."""

    async def discover(self) -> Hits:
        """Yield all commands."""
        for command in self._commands():
            yield DiscoveryHit(_shown(command), self._run(command), command.name, help=command.help)

    async def search(self, query: str) -> Hits:
        """Yield the commands that the words fit."""
        matcher = self.matcher(query)
        for command in self._commands():
            score = max(matcher.match(command.name), 0.6 * matcher.match(command.help))
            if score > 0:
                yield Hit(score, _shown(command), self._run(command), command.name, command.help)

    def _commands(self) -> Iterator[Command]:
        read_only = cast("HdapApp", self.app).read_only
        return (c for c in COMMANDS if not (c.dangerous and read_only))

    def _run(self, command: Command) -> partial[None]:
        return partial(cast("HdapApp", self.app).action_command, command.name)


def _shown(command: Command) -> Content:
    return Content(f"{command.name}  ({command.key})")
