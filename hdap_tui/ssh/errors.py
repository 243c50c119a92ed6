"""What can go wrong with a device, by class."""

from __future__ import annotations

import errno
import socket
from enum import StrEnum

from hdap_tui.errors import ExitCode, UserError
from hdap_tui.text import clean


class ErrorKind(StrEnum):
    """Class of a failure; its text is what the tables show."""

    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    BUSY = "busy"
    """The server turned the connection away before its banner: too many at once, or a penalty."""
    HOST_KEY_UNKNOWN = "host key unknown"
    HOST_KEY_CHANGED = "host key changed"
    AUTHENTICATION = "authentication"
    NO_COMMON_ALGORITHM = "no common algorithm"
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    FAILED = "failed"
    """A command ended with a status other than 0."""
    KILLED = "killed"
    """A command was ended by a signal."""
    GARBAGE = "garbage"
    """The device answered something that is no answer."""
    DISK_FULL = "disk full"

    def __str__(self) -> str:
        return self.value


TRANSIENT = frozenset(
    {
        ErrorKind.UNREACHABLE,
        ErrorKind.REFUSED,
        ErrorKind.BUSY,
        ErrorKind.TIMEOUT,
        ErrorKind.DISCONNECTED,
    }
)
"""Worth another try. A bad login or key never is: some servers lock out whoever repeats it."""

_KEPT_OUT = frozenset(
    {
        ErrorKind.HOST_KEY_UNKNOWN,
        ErrorKind.HOST_KEY_CHANGED,
        ErrorKind.AUTHENTICATION,
        ErrorKind.NO_COMMON_ALGORITHM,
    }
)

_EXIT = {
    ErrorKind.UNREACHABLE: ExitCode.UNREACHABLE,
    ErrorKind.REFUSED: ExitCode.UNREACHABLE,
    ErrorKind.BUSY: ExitCode.UNREACHABLE,
    ErrorKind.DISCONNECTED: ExitCode.UNREACHABLE,
    ErrorKind.TIMEOUT: ExitCode.TIMED_OUT,
    ErrorKind.HOST_KEY_UNKNOWN: ExitCode.REFUSED,
    ErrorKind.HOST_KEY_CHANGED: ExitCode.REFUSED,
}


class DeviceError(UserError):
    """Something went wrong with one device; its text is one sentence."""

    def __init__(self, kind: ErrorKind, text: str, behind: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.behind = behind
        """The jump host that failed, where it was not the device itself."""
        self.exit_code = _EXIT.get(kind, ExitCode.FAILED)

    @property
    def transient(self) -> bool:
        """Whether trying again may help."""
        return self.kind in TRANSIENT

    @property
    def kept_out(self) -> bool:
        """Whether nobody got in: asking again changes nothing, and may lock this machine out."""
        return self.kind in _KEPT_OUT


class Cancelled(Exception):
    """Whoever asked for it no longer wants it."""


_UNREACHABLE = {
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no route to its network",
    errno.EHOSTDOWN: "the host is down",
    errno.ENETDOWN: "the network is down",
    errno.EADDRNOTAVAIL: "the address cannot be used",
}


def classify(error: BaseException, where: str) -> DeviceError:
    """Return what a socket or paramiko error means; `where` names the device for the sentence.

    A :class:`DeviceError` comes back as it is.
    """
    if isinstance(error, DeviceError):
        return error
    import paramiko

    if isinstance(error, paramiko.SSHException):
        return _of_protocol(error, where)
    if isinstance(error, socket.gaierror):
        return DeviceError(ErrorKind.UNREACHABLE, f"{where}: the host name is not known")
    if isinstance(error, TimeoutError):
        return DeviceError(ErrorKind.TIMEOUT, f"{where}: no answer within the time limit")
    if isinstance(error, ConnectionRefusedError):
        return DeviceError(ErrorKind.REFUSED, f"{where}: nothing listens on that port")
    if isinstance(error, EOFError | ConnectionError):
        return DeviceError(ErrorKind.DISCONNECTED, f"{where}: the connection was lost")
    if isinstance(error, OSError):
        return _of_system(error, where)
    if isinstance(error, UserError):  # of this machine, its database for one; a sentence already
        return DeviceError(ErrorKind.FAILED, f"{where}: {error}")
    return DeviceError(ErrorKind.GARBAGE, f"{where}: {clean(str(error)) or type(error).__name__}")


def _of_system(error: OSError, where: str) -> DeviceError:
    if error.errno in _UNREACHABLE:
        return DeviceError(ErrorKind.UNREACHABLE, f"{where}: {_UNREACHABLE[error.errno]}")
    if error.errno == errno.ENOSPC or out_of_space(str(error)):
        return DeviceError(ErrorKind.DISK_FULL, f"{where}: no space is left on the device")
    if error.errno in (errno.ETIMEDOUT, errno.EBADF, errno.EPIPE):
        return DeviceError(ErrorKind.DISCONNECTED, f"{where}: the connection was lost")
    return DeviceError(ErrorKind.FAILED, f"{where}: {clean(str(error))}")


def _of_protocol(error: Exception, where: str) -> DeviceError:
    import paramiko

    text = str(error)
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) or "Incompatible" in text:
        return DeviceError(
            ErrorKind.NO_COMMON_ALGORITHM,
            f"{where}: its SSH server shares no safe algorithm with this program"
            f" ({clean(text)}); update the server",
        )
    if "protocol banner" in text:
        return _of_banner(error, where)
    if isinstance(error, paramiko.AuthenticationException):
        if "timeout" in text.lower():
            return DeviceError(ErrorKind.TIMEOUT, f"{where}: no answer to the login")
        if "saw EOF" in text:
            return DeviceError(ErrorKind.DISCONNECTED, f"{where}: connection lost during login")
        return DeviceError(ErrorKind.AUTHENTICATION, f"{where}: the login was refused")
    if isinstance(error, paramiko.ChannelException):
        return DeviceError(ErrorKind.BUSY, f"{where}: no further session is allowed")
    if "Signature verification" in text:
        return DeviceError(
            ErrorKind.HOST_KEY_CHANGED, f"{where}: it could not prove that it owns its host key"
        )
    if "imeout" in text or "timed out" in text:
        return DeviceError(ErrorKind.TIMEOUT, f"{where}: no answer within the time limit")
    if any(word in text for word in ("banner", "protocol version", "Invalid packet", "Mismatched")):
        return DeviceError(ErrorKind.GARBAGE, f"{where}: what answers there is no SSH server")
    return DeviceError(ErrorKind.DISCONNECTED, f"{where}: the connection was lost")


def _of_banner(error: Exception, where: str) -> DeviceError:
    """Tell a silent server from one that hung up: paramiko says the same of both."""
    if isinstance(error.__context__, TimeoutError):
        return DeviceError(ErrorKind.TIMEOUT, f"{where}: the server sent no banner")
    if isinstance(error.__context__, UnicodeError):
        return DeviceError(ErrorKind.GARBAGE, f"{where}: what answers there is no SSH server")
    return DeviceError(
        ErrorKind.BUSY,
        f"{where}: the server hung up before its banner; it may be busy, or be refusing this"
        " machine for a while",
    )


def out_of_space(text: str) -> bool:
    """Whether a device's message says that its disk or quota is full."""
    low = text.lower()
    return any(word in low for word in ("no space", "disk quota", "disk full", "file too large"))
