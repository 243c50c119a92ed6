"""What a command gets to work with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.events import Reporter, silent
from hdap_tui.errors import ExitCode

if TYPE_CHECKING:
    from hdap_tui.config import Settings
    from hdap_tui.config.settings import Device
    from hdap_tui.store.database import Store

SCHEMA_VERSION = 1
OnStage = Callable[[str, str], None]
"""Told a device's name and what is being done on it; called from several threads."""


class ShowStage(Protocol):
    """Shows what is being done on a device to whoever started the command; takes what OnStage does.

    What began before this process could see it comes with the seconds since then.
    """

    def __call__(self, device: str, stage: str, since_s: float | None = None, /) -> None:
        """Take it in; called from several threads."""


@dataclass(frozen=True)
class Table:
    """Rows for a person; the same facts are in the outcome's data."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came out of a command."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """For programs: JSON, given a `schema_version` on its way out."""
    table: Table | None = None
    text: str = ""
    """For people: a sentence or a few."""
    exit_code: ExitCode = ExitCode.DONE


def nobody(_what: str) -> str | None:
    """Answer a question for a secret where nobody can be asked."""
    return None


def silent_stage(_device: str, _stage: str, _since_s: float | None = None, /) -> None:
    """Tell nobody what is being done on a device."""


def _refuse(_question: str, _touched: Sequence[str]) -> bool:
    return False


class Context:
    """Settings, store and listener of one run of a command.

    Settings and store are opened at their first use, so that a command which needs neither
    works without them.
    """

    def __init__(
        self,
        config: Path | None = None,
        reporter: Reporter | None = None,
        confirm: Callable[[str, Sequence[str]], bool] = _refuse,
        cancelled: Callable[[], bool] = lambda: False,
        settings: Settings | None = None,
        secret: Callable[[str], str | None] = nobody,
        on_stage: ShowStage = silent_stage,
    ) -> None:
        self.config = config
        self.reporter = reporter or silent()
        self.confirm = confirm
        """Asks the operator: the question, and what would be touched."""
        self.cancelled = cancelled
        self.secret = secret
        """Asks the operator for a passphrase or password, named by the text; None where nobody
        can be asked. What it returns is kept in memory only."""
        self.on_stage = on_stage
        if settings is not None:
            self.__dict__["settings"] = settings

    @cached_property
    def settings(self) -> Settings:
        """The settings in force."""
        from hdap_tui.config import find, load

        return load(find(self.config))

    @cached_property
    def store(self) -> Store:
        """The fleet's database."""
        from hdap_tui.store.database import open_store

        return open_store(self.settings.database)

    def select(self, expression: str | None = None) -> tuple[Device, ...]:
        """Return the devices that an expression names, in the fleet's order; all without one.

        The language is that of `hdap_tui.config.selector`.

        Raises:
            SettingsError: it makes no sense, or names nothing.
        """
        from hdap_tui.selection import select

        return select(self.settings.devices, expression, lambda: self.store)

    def shown(self, device: str) -> str:
        """Return what to call a device where people read it: an emulated one says so."""
        emulated = any(d.emulated for d in self.settings.devices if d.name == device)
        return f"{device} (emulated)" if emulated else device

    @property
    def shows_stages(self) -> bool:
        """Whether anybody sees what is being done on each device."""
        return self.on_stage is not silent_stage

    def close(self) -> None:
        """Close what was opened."""
        if "store" in self.__dict__:
            self.store.close()
