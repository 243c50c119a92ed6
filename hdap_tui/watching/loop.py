"""Watch a fleet for as long as anybody wants: each sweep and round when it is due.

An error in a round is told and never ends the watcher; only who starts it can be wrong about the
settings, the models or another watcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hdap_tui.errors import RefusedError, UserError
from hdap_tui.figures import count
from hdap_tui.progress import duration
from hdap_tui.store import measurements, sweeps, watchers
from hdap_tui.store.records import AlertRow
from hdap_tui.store.values import from_seconds, to_seconds
from hdap_tui.text import clean
from hdap_tui.watching import words
from hdap_tui.watching.after import After
from hdap_tui.watching.away import Away
from hdap_tui.watching.owner import Owner, owning
from hdap_tui.watching.reload import SettingsFile, difference
from hdap_tui.watching.service import notify
from hdap_tui.watching.timetable import Kind, Rhythm, Step, Taken, decide, pause_after
from hdap_tui.watching.watcher import Watcher

_TICK_S = 0.2
_LOOK_S = 1.0
_JUMP_S = 5.0
"""A clock that is set by less is only kept right."""
KINDS: tuple[Kind, Kind] = ("sweep", "canary")
TITLES: dict[Kind, str] = {"sweep": "sweep", "canary": "canary round"}


class Loop:
    """One run of `hdap watch`."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.context = watcher, watcher.context
        self.store = watcher.store
        self._away = Away(self.context.settings, self.store)
        self._file = SettingsFile(self.context.settings, self._tell)
        self._after = After(self.context)
        self._taken = Taken()
        self._failures = dict.fromkeys(KINDS, 0)
        self._not_before = dict.fromkeys(KINDS, 0.0)
        self._looked = 0.0
        self._told: words.Leave = ((), ())
        self._offset = time.time() - time.monotonic()
        self._rested = False
        """Everybody was left alone: what was due meanwhile is not missed."""
        self._begun: set[Kind] = set()
        self._shown: tuple[str, str, str] = ("", "", "")
        self._opened: list[AlertRow] = []
        self._trouble = ""

    def run(self, rounds: int | None = None, until_alert: bool = False) -> list[AlertRow]:
        """Watch until cancelled, until so many canary rounds were begun, or until an alert opens.

        Returns:
            The alerts that opened meanwhile.

        Raises:
            RefusedError: another process watches this fleet, or has taken over.
            UserError: what the settings name is not there.
        """
        with owning(self.store, self.context.cancelled) as owner, self.watcher, self._after:
            self._owner, done = owner, 0
            self.context.cancelled = _also(self.context.cancelled, owner)
            self._begin()
            owner.often = self._mind_who_is_away
            while not self.context.cancelled():
                self._look()
                step = self._decide()
                if step.do == "wait":
                    self._follow_up(lambda: self._after.tidy(self._is_due))
                    time.sleep(_TICK_S)
                    continue
                self._do(step)
                done += step.do == "canary"
                if done == rounds or (self._opened and until_alert):
                    break
            notify("STOPPING=1")
        if owner.lost:
            raise RefusedError(
                "Another machine watches this fleet now: this watcher was silent for too long."
            )
        return self._opened

    # -- one thing after the other

    def _begin(self) -> None:
        """Find out what was done last, and say that watching begins."""
        known = watchers.taken(self.store)
        last = sweeps.last(self.store, "sweep")
        half = sweeps.half(self.store)
        self._taken = Taken(
            known.get("sweep", to_seconds(last.finished_at) if last else None),
            known.get("canary"),
            to_seconds(half.started_at) if half else None,
        )
        watch = self.context.settings.watch
        self._tell(
            f"{count(len(self.context.settings.devices), 'device')}; a sweep every "
            f"{duration(watch.sweep_every_s)}, a canary round every "
            f"{duration(watch.canary_every_s)}"
        )
        self._mind_who_is_away()
        notify("READY=1", "STATUS=watching")

    def _look(self) -> None:
        """Look once a second at the clock and the settings file."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self._mind_the_clock()
        self._follow_up(self._after.tell)  # a silence may be over
        settings, before = self._file.look(self.context.settings), self.context.settings
        if settings is None:
            return
        try:
            self.watcher.take_up(settings)
            self._after.take_up()
            away = Away(settings, self.store)
            away.look()
        except Exception as error:  # whatever it is, what was good until now still is
            self._tell(f"the new settings cannot be taken up, and those before stay: {error}")
        else:
            self._away = away
            self._tell(f"the settings were taken up: {difference(before, settings)}")

    def _mind_the_clock(self) -> None:
        offset = time.time() - time.monotonic()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > _JUMP_S:
            way = "forward, or this machine slept" if jump > 0 else "back"
            self._tell(f"the clock went {duration(abs(jump))} {way}")

    def _mind_who_is_away(self) -> None:
        """Look who is left alone; while something is measured as well, in the owner's thread."""
        away = self._away
        away.look()
        before, self._told = self._told, (away.pauses, away.rests)
        if self._told != before:
            for sentence in words.changed(before, self._told, self.context.shown):
                self._tell(sentence)
            watchers.rest(self.store, self._owner.number, away.rests)

    @property
    def _rhythms(self) -> tuple[Rhythm, Rhythm]:
        watch = self.context.settings.watch
        sweep = Rhythm(watch.sweep_every_s, watch.jitter, self.context.settings.name)
        return sweep, replace(sweep, every_s=watch.canary_every_s)

    def _decide(self) -> Step:
        now, (sweep, canary), last = time.time(), self._rhythms, self._taken
        self._taken = replace(
            last,
            sweep=None if last.sweep is None else sweep.held(last.sweep, now),
            canary=None if last.canary is None else canary.held(last.canary, now),
        )
        if self._away.everybody:
            self._rested = True
            self._say("paused")
            return Step("wait")
        young_s = self.context.settings.watch.resume_within_s
        blocked = [kind for kind in KINDS if time.monotonic() < self._not_before[kind]]
        step = decide(now, sweep, canary, self._taken, young_s, blocked)
        if step.do == "wait":
            self._say("waiting")
        return step

    def _do(self, step: Step) -> None:
        """Do one sweep or round, whatever becomes of it."""
        kind: Kind = "sweep" if step.do == "sweep" else "canary"
        self._trouble = ""
        self._taken = replace(self._taken, **{kind: step.taken}, latest=kind)
        if kind == "sweep" and self._taken.half is None:  # until it is whole
            self._taken = replace(self._taken, half=time.time())
        missed, self._rested = 0 if self._rested else step.missed, False
        try:
            self._measure(kind, step, missed)
        except UserError as error:
            self._failed(kind, str(error))
        except Exception as error:  # a mistake of the program; the next round may go well
            self._failed(kind, f"{type(error).__name__}: {error}")
        else:
            self._failures[kind] = 0
            if not any(self._failures.values()):
                with suppress(UserError):
                    watchers.failed(self.store, self._owner.number, "")

    def _measure(self, kind: Kind, step: Step, missed: int) -> None:
        number = self._open(kind, step)
        if missed and kind in self._begun:  # before the first, nobody watched
            watchers.missed(self.store, self._owner.number, kind, missed)
        self._begun.add(kind)
        self._say(TITLES[kind])
        began = time.monotonic()
        opened: list[AlertRow] = []
        try:
            if kind == "sweep":
                self.watcher.sweep(begun=number, away=self._away)
            else:
                opened = self.watcher.canary(begun=number, away=self._away)
        finally:
            row = sweeps.row(self.store, number)
            if kind == "sweep" and row.finished_at:
                self._taken = replace(self._taken, half=None)
        if not row.finished_at:
            return  # broken off: told to stop, or nobody is left to be measured
        self._opened += opened
        failed = sweeps.failed(self.store, number)
        shown = {self.context.shown(name): error for name, error in failed.items()}
        self._tell(words.done(row, time.monotonic() - began, missed, shown))
        for alert in opened:
            self._tell(words.alert(alert))
        self._follow_up(self._after.round_done)

    def _open(self, kind: Kind, step: Step) -> int:
        """Return the number of a new sweep or round, or of the sweep that is taken up."""
        half = sweeps.half(self.store) if kind == "sweep" else None
        if half is not None and step.half == "take up":
            watchers.take(self.store, kind, step.taken)
            self._tell(f"sweep {half.id} is taken up; {half.devices} devices are in it already")
            return half.id
        if half is not None:
            self._tell(f"sweep {half.id}, begun {half.started_at[:16]} UTC, stays half")
        if kind == "sweep":
            self._taken = replace(self._taken, half=time.time())
        with self.store.write():
            watchers.take(self.store, kind, step.taken)
            return measurements.begin(self.store, kind, self._owner.number)

    def _is_due(self) -> bool:
        return self.context.cancelled() or self._decide().do != "wait"

    def _follow_up(self, do: Callable[[], None]) -> None:
        """Do what follows from the rounds; an error in it is told, and is no error of a round."""
        try:
            do()
        except Exception as error:  # those that are no user's are mistakes of the program
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            if f"{kind}{error}" != self._trouble:  # once a round
                self._trouble = f"{kind}{error}"
                self._tell(self._trouble)

    # -- what is said

    def _failed(self, kind: Kind, error: str) -> None:
        self._failures[kind] += 1
        pause = pause_after(self._failures[kind])
        self._not_before[kind] = time.monotonic() + pause
        self._tell(f"the {TITLES[kind]} failed, the next try is in {duration(pause)}: {error}")
        with suppress(UserError):
            watchers.failed(self.store, self._owner.number, error)

    def _say(self, doing: str) -> None:
        """Say what is done now, and what is due when, where that is something new."""
        last = (self._taken.sweep, self._taken.canary)
        due = [
            "" if at is None else from_seconds(rhythm.due_at(at))
            for rhythm, at in zip(self._rhythms, last, strict=True)
        ]
        shown = (doing, due[0], due[1])
        if shown != self._shown:
            notify(f"STATUS={doing}")
            with suppress(UserError):
                watchers.say(self.store, self._owner.number, *shown)
                self._shown = shown

    def _tell(self, sentence: str) -> None:
        self.context.reporter.noted("watch", clean(sentence, 600))


def _also(cancelled: Callable[[], bool], owner: Owner) -> Callable[[], bool]:
    def asked() -> bool:
        owner.alive()
        return cancelled() or owner.lost

    return asked
