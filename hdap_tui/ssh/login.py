"""Logging in: keys first, a password where one is allowed, as many steps as the server wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler

from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.keys import Offers
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Target
from hdap_tui.text import clean

_AT_ONCE_S = 2.0
"""Seconds within which a server that has had enough hangs up: Dropbear does so without a word."""
_KEY, _PASSWORD, _DIALOGUE = "publickey", "password", "keyboard-interactive"


def log_in(
    transport: Any, login: Target, offers: Offers, secrets: Secrets, deadline: Deadline
) -> None:
    """Log in at a server whose host key has been checked.

    Raises:
        DeviceError: it refused, or nothing could be offered; also what `classify` makes of it.
        EOFError, OSError, paramiko.SSHException: the connection was lost.
        Cancelled, TimeoutError: see `Deadline`.
    """
    _LoggingIn(transport, login, offers, secrets, deadline).run()


class _Handler(AuthHandler):  # type: ignore[misc]
    """Asks for the service once; paramiko does for every key, and not all servers put up with it.

    It also saves a round trip for each further step.
    """

    _requested = False

    def _request_auth(self) -> None:
        if not self._requested:
            self._requested = True
            super()._request_auth()
            return
        accepted = paramiko.Message()
        accepted.add_string("ssh-userauth")
        accepted.rewind()
        self._parse_service_accept(accepted)


class _LoggingIn:
    def __init__(
        self, transport: Any, login: Target, offers: Offers, secrets: Secrets, deadline: Deadline
    ) -> None:
        self.transport, self.login = transport, login
        self.offers, self.secrets, self.deadline = offers, secrets, deadline
        self.methods: Sequence[str] | None = None
        """What the server would take next, once it has said so."""
        self.passed: list[str] = []
        """Steps that it took."""
        self.refused: list[str] = []
        """What it did not take."""
        self.prompt = ""
        """A question of the server that is no question for a password."""
        self.password_tried = False
        self.offered_at = 0.0
        self.handler = _Handler(transport)
        transport.auth_handler = self.handler

    def run(self) -> None:
        """Go step by step until the server is content."""
        while not self.transport.is_authenticated():
            if self._allowed(_KEY) and self.offers.peek() is not None:
                self._offer_key()
            elif self._has_password and self._allowed(_PASSWORD, _DIALOGUE):
                self._offer_password()
            else:
                raise self._refusal()

    @property
    def _has_password(self) -> bool:
        login = self.login
        return bool(login.password_command or login.ask_password) and not self.password_tried

    def _allowed(self, *methods: str) -> bool:
        return self.methods is None or any(method in self.methods for method in methods)

    def _offer_key(self) -> None:
        offer = self.offers.peek()
        assert offer is not None
        accepted, permitted = self._step(
            lambda done: self.handler.auth_publickey(self.login.user, offer.key, done)
        )
        if not permitted:
            return  # it was not looked at: perhaps after another step
        self.offers.take()
        (self.passed if accepted else self.refused).append(offer.said)

    def _offer_password(self) -> None:
        self.password_tried = True
        problem = self.secrets.password(self.login, self._try_password, self.deadline)
        if problem:
            self.refused.append(problem)
        else:
            self.passed.append("the password")

    def _try_password(self, password: str) -> bool:
        """Return whether the server takes a password, by whichever of its two ways."""
        if self._allowed(_PASSWORD):
            accepted, permitted = self._step(
                lambda done: self.handler.auth_password(self.login.user, password, done)
            )
            if permitted or not self._allowed(_DIALOGUE):
                return accepted
        return self._step(lambda done: self._start_dialogue(password, done))[0]

    def _start_dialogue(self, password: str, done: threading.Event) -> None:
        def answer(_title: str, _text: str, prompts: list[tuple[str, bool]]) -> list[str]:
            if not prompts:
                return []
            first, shown = prompts[0]
            if len(prompts) == 1 and not shown and "password" in first.lower():
                return [password]
            self.prompt = clean(first.strip(), 80)
            return [""] * len(prompts)

        self.handler.auth_interactive(self.login.user, answer, done)

    def _step(self, start: Callable[[threading.Event], object]) -> tuple[bool, bool]:
        """Offer one thing; return whether it was taken, and whether it was looked at."""
        if not self.transport.is_active():
            raise self._ended(self.transport.get_exception())
        answered = threading.Event()
        self.offered_at = time.monotonic()
        start(answered)
        self.deadline.wait(answered)
        if self.transport.is_authenticated():
            return True, True
        error = self.transport.get_exception()
        if not self.transport.is_active():
            raise self._ended(error)
        if isinstance(error, paramiko.ssh_exception.PartialAuthentication):
            self.methods = list(error.allowed_types)
            return True, True
        if isinstance(error, paramiko.BadAuthenticationType):
            self.methods = list(error.allowed_types)
            return False, False
        return False, True

    def _ended(self, error: Exception | None) -> Exception:
        """Return what the end of the connection means: too many refusals, or a lost peer.

        A server that has had enough says so, or hangs up in good order as soon as it has looked.
        """
        at_once = time.monotonic() - self.offered_at < _AT_ONCE_S
        in_order = error is None or isinstance(error, EOFError)
        said = "authentication" in self.transport.farewell.lower()
        if said or (self.refused and at_once and in_order):
            return self._refusal()
        return error or EOFError()

    # ---- what is said ---------------------------------------------------------------------------

    def _refusal(self) -> DeviceError:
        return DeviceError(ErrorKind.AUTHENTICATION, f"{self.login.place}: {self._why()}")

    def _why(self) -> str:
        login, problems = self.login, self.offers.problems
        said = f" ({self.transport.farewell})" if self.transport.farewell else ""
        wants = clean(", ".join(self.methods or ()), 80)
        if self.prompt:
            return f'it asks "{self.prompt}", which only a person could answer; let keys be enough'
        if self.passed and wants:
            return f"after {_listed(self.passed)} it asks for more ({wants}){_hint(self)}{said}"
        if not self.refused and problems:
            return "; ".join(problems)
        if not self.refused and self.methods is not None and _KEY not in self.methods:
            return f"it takes no keys, only {wants}{_hint(self)}"
        if not self.refused:
            return (
                "there is no key to log in with; name one as identity in fleet.toml, or add one to"
                " the SSH agent"
            )
        also = f"; {'; '.join(problems)}" if problems else ""
        return (
            f'it refused the login of user "{login.user}" with {_listed(self.refused)}{said}{also}'
        )


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _hint(login: _LoggingIn) -> str:
    ways = {_PASSWORD, _DIALOGUE} & set(login.methods or ())
    if not ways:
        return ", which is not supported"
    if login.password_tried:
        return f", and did not take {_listed(login.refused)}" if login.refused else ""
    return "; set ask_password or password_command in fleet.toml"
