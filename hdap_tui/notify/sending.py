"""One attempt to hand a message over: posted over HTTP, or given to a command.

No secret gets into an error: of an address only scheme, host and port are told, because a path
may be a secret too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from hdap_tui import __version__
from hdap_tui.config import Settings
from hdap_tui.config.schema import Webhook
from hdap_tui.store.outbox import Channel
from hdap_tui.text import clean

SECRET_S = 30.0
"""Seconds that a command that prints a secret may take."""
_OF_THE_MESSAGE = frozenset({400, 413, 415, 422})
"""Answers that are about this very message: the next one may be taken."""


class NotTakenError(Exception):
    """Nobody took the message. The text may be kept and shown: it holds no secret."""

    def __init__(self, problem: str, of_the_message: bool = False, said: str = "") -> None:
        super().__init__(problem)
        self.of_the_message = of_the_message
        """Whether it is this message that they would not have."""
        self.said = said
        """What a command printed, for the operator's eyes alone."""


def send(settings: Settings, channel: Channel, body: str, key: str) -> str:
    """Hand a message over; return who took it.

    Args:
        settings: where to.
        channel: which way.
        body: the message, JSON.
        key: tells a receiver that it has had this message before.

    Raises:
        NotTakenError: it was not taken, or not in time.
    """
    if channel == "webhook":
        return _post(settings.alerts.webhook, body.encode(), key)
    hook = settings.alerts.command
    if not hook.argv:
        raise NotTakenError("alerts.command.argv names no command any more")
    return _run(hook.argv, body.encode(), hook.timeout_s, settings.path.parent)


def _post(hook: Webhook, body: bytes, key: str) -> str:
    if not hook.url:
        raise NotTakenError("alerts.webhook.url names no address any more")
    parts = urlsplit(hook.url)
    where = _where(parts)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"hdap/{__version__}",
        "Idempotency-Key": key,
        "Connection": "close",
        **_secret_header(hook),
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(str(parts.hostname), parts.port, timeout=hook.timeout_s)
    try:
        with _cut_after(hook.timeout_s, connection):
            connection.request("POST", target, body, headers)
            answer = connection.getresponse()
            status, led_to = answer.status, answer.getheader("Location") or ""
    except (TimeoutError, _CutError) as error:
        raise NotTakenError(f"{where} did not answer within {hook.timeout_s:g} s") from error
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or "TLS failed"
        raise NotTakenError(f"{where}: {clean(reason, 120)}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotTakenError(f"{where}: {clean(reason, 120).lower()}") from None
    except (http.client.HTTPException, ValueError) as error:
        # The text of such an error may quote a header.
        raise NotTakenError(f"{where} gave no answer of HTTP ({type(error).__name__})") from None
    finally:
        connection.close()  # what else it has to say is not wanted
    if 300 <= status < 400:
        there = _where(urlsplit(led_to)) if "://" in led_to else "elsewhere"
        raise NotTakenError(
            f"{where} answers {status} and points to {there}; name the address it leads to"
        )
    if not 200 <= status < 300:
        raise NotTakenError(f"{where} answers {status}", status in _OF_THE_MESSAGE)
    return where


def _where(parts: SplitResult) -> str:
    port = f":{parts.port}" if parts.port else ""
    return f"{clean(parts.scheme, 10)}://{clean(parts.hostname or '', 100)}{port}"


class _CutError(OSError):
    pass


@contextmanager
def _cut_after(seconds: float, connection: http.client.HTTPConnection) -> Iterator[None]:
    """Close a connection under whoever waits: a timeout of a socket starts anew with each byte."""
    cut = threading.Event()

    def close() -> None:
        cut.set()
        if isinstance(connection.sock, socket.socket):
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if cut.is_set():
            raise _CutError from error
        raise
    finally:
        timer.cancel()


def _secret_header(hook: Webhook) -> dict[str, str]:
    secret = _secret(hook)
    if not secret:
        return {}
    value = hook.prefix + secret
    if not value.isascii() or not value.isprintable():
        raise NotTakenError("the webhook's secret holds characters that no header may hold")
    return {hook.header: value}


def _secret(hook: Webhook) -> str:
    if hook.secret_env:
        found = os.environ.get(hook.secret_env, "")
        if not found:
            raise NotTakenError(f"the variable {hook.secret_env} of the webhook's secret is empty")
        return found
    if not hook.secret_command:
        return ""
    name = clean(hook.secret_command[0], 60)
    try:
        done = subprocess.run(
            hook.secret_command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=SECRET_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        # Not chained: the exception holds what was printed so far.
        raise NotTakenError(f"{name} printed no secret within {SECRET_S:g} s") from None
    except OSError as error:
        reason = (error.strerror or "it cannot be run").lower()
        raise NotTakenError(f"{name}, which prints the webhook's secret: {reason}") from None
    found = done.stdout.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")
    if done.returncode or not found:
        raise NotTakenError(f"{name} printed no secret (status {done.returncode})")
    return found


def _run(argv: tuple[str, ...], body: bytes, limit_s: float, folder: Path) -> str:
    name = clean(argv[0], 60)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            reason = (error.strerror or "it cannot be run").lower()
            raise NotTakenError(f"{name}: {reason}") from None
        try:
            process.communicate(body, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise NotTakenError(f"{name} did not end within {limit_s:g} s") from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            said.seek(max(said.seek(0, os.SEEK_END) - 300, 0))
            words = clean(said.read().decode("utf-8", "replace").strip(), 300)
            raise NotTakenError(f"{name} ended with status {process.returncode}", said=words)
    return name
