"""What only the operator knows: passphrases and passwords, asked for once for the whole fleet.

Nothing of it is written anywhere. While somebody is asked, nobody's time limit runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Jump, Target
from hdap_tui.text import clean

T = TypeVar("T")

Ask = Callable[[str], str | None]
"""Asks the operator for what the text names; None where nobody can or wants to answer."""

TRIES = 3
"""How often a wrong answer may be mended."""
COMMAND_S = 30.0
"""How long a command that prints a password may take."""
_SLICE_S = 0.25


_proven: dict[Hashable, str] = {}  # passwords that a server took, while this process runs


class Refused(Exception):
    """A secret was wrong."""


@dataclass
class _Subject:
    """One secret that is asked for."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    value: str | None = field(default=None, repr=False)
    proven: bool = False
    """A server has taken it."""
    problem: str = ""
    """Why there is none, once that is certain."""


class Secrets:
    """Asks for each secret once, and keeps it. Safe to use from several threads."""

    def __init__(self, ask: Ask | None = None) -> None:
        self._ask = ask
        self._subjects: defaultdict[Hashable, _Subject] = defaultdict(_Subject)
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def unlock(
        self,
        what: str,
        use: Callable[[str], T],
        known: Callable[[], T | None],
        remedy: str,
        deadline: Deadline,
    ) -> T:
        """Ask until `use` takes the answer, and return what it returns.

        `use` raises :class:`Refused` where the answer is wrong, and keeps what it makes of the
        right one for `known`; the answer itself is forgotten.

        Raises:
            LookupError: nobody knows it; the text is a sentence.
            Cancelled: it is no longer wanted.
        """
        with self._subject(("unlock", what), deadline) as subject:
            if (found := known()) is not None:  # while this one waited for its turn
                return found
            if subject.problem:
                raise LookupError(subject.problem)
            question = f"Passphrase of {what}"
            for _ in range(TRIES):
                answer = self._answer(question, deadline)
                if answer is None:
                    subject.problem = f"{what} is encrypted; {remedy}"
                    break
                try:
                    return use(answer)
                except Refused:
                    question = f"That passphrase was wrong. Passphrase of {what}"
            else:
                subject.problem = f"the passphrase of {what} was wrong {TRIES} times; {remedy}"
            raise LookupError(subject.problem)

    def password(self, login: Target, attempt: Callable[[str], bool], deadline: Deadline) -> str:
        """Log in with the password; return why that did not work, or nothing.

        A password that was typed goes to one device first, and to the others once that device has
        taken it: a slip of the finger must not lock the operator out of the whole fleet.

        Raises:
            DeviceError: the command that prints the password failed.
            Cancelled: it is no longer wanted.
        """
        if login.password_command:
            taken = attempt(printed(login, deadline))
            return "" if taken else "the password that password_command printed"
        behind = login.host if isinstance(login, Jump) else ""
        key = (login.known_hosts, login.user, behind)
        with self._subject(key, deadline) as subject:
            if subject.value is None and key in _proven:  # in an earlier command of this process
                subject.value, subject.proven = _proven[key], True
            if not subject.proven:
                problem = self._prove(login, subject, attempt, deadline)
                if not problem and subject.value is not None:
                    _proven[key] = subject.value
                return problem
            known = subject.value or ""
        if attempt(known):
            return ""
        _proven.pop(key, None)  # it may have been changed: the next command asks again
        return "the password that other devices take"

    def _prove(
        self, login: Target, subject: _Subject, attempt: Callable[[str], bool], deadline: Deadline
    ) -> str:
        if subject.problem:
            return subject.problem
        whose = f"user {login.user} on " + (
            f"the jump host {login.name}" if isinstance(login, Jump) else "the devices"
        )
        question = f"Password of {whose}"
        for _ in range(TRIES):
            subject.value = subject.value or self._answer(question, deadline)
            if subject.value is None:
                subject.problem = (
                    "a password, but nobody can be asked for it here; use keys, or"
                    " password_command in fleet.toml"
                )
                return subject.problem
            if attempt(subject.value):
                subject.proven = True
                return ""
            subject.value = None
            question = f"{login.name} refused that. Password of {whose}"
        subject.problem = f"a password that {login.name} refused {TRIES} times"
        return subject.problem

    @contextlib.contextmanager
    def _subject(self, key: Hashable, deadline: Deadline) -> Iterator[_Subject]:
        """Give one subject to one thread at a time; waiting for it does not count."""
        with self._lock:
            subject = self._subjects[key]
        with deadline.paused():
            while not subject.turn.acquire(timeout=_SLICE_S):
                if deadline.cancelled():
                    raise Cancelled
        try:
            yield subject
        finally:
            subject.turn.release()

    def _answer(self, question: str, deadline: Deadline) -> str | None:
        """Ask, in a thread of its own, since nobody can be interrupted while typing."""
        if self._ask is None:
            return None
        ask, answers, done = self._ask, list[str | None](), threading.Event()

        def wait() -> None:
            try:
                with self._asking:
                    answers.append(ask(question))
            finally:
                done.set()

        threading.Thread(target=wait, name="question", daemon=True).start()
        with deadline.paused():
            while not done.wait(_SLICE_S):
                if deadline.cancelled():
                    raise Cancelled
        return answers[0] if answers else None

    def __repr__(self) -> str:
        return "Secrets()"


def printed(login: Target, deadline: Deadline) -> str:
    """Return the first line that the login's password command prints on this machine.

    Raises:
        DeviceError: it failed, printed nothing, or took too long.
        Cancelled: it is no longer wanted.
    """
    names = {"HDAP_DEVICE": login.name, "HDAP_HOST": login.host, "HDAP_USER": login.user}
    problem, out = "", b""
    with deadline.paused(), subprocess.Popen(
        ["/bin/sh", "-c", login.password_command], env={**os.environ, **names},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        limit = Deadline(COMMAND_S, deadline.cancelled)
        try:
            while True:
                try:
                    out, said = process.communicate(timeout=_SLICE_S)
                    break
                except subprocess.TimeoutExpired:
                    limit.check()
            if process.returncode:
                words = clean(said.decode("utf-8", "replace").strip(), 200)
                problem = f"ended with status {process.returncode}: {words}"
        except TimeoutError:
            problem = f"took longer than {COMMAND_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind
    password = out.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")
    if not problem and not password:
        problem = "printed nothing"
    if problem:
        raise DeviceError(ErrorKind.AUTHENTICATION, f"{login.name}: password_command {problem}")
    return password
