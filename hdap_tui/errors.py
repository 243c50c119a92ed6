"""Errors that a person made or can mend, and the exit status of each."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for whoever scripts it."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Wrong arguments or settings."""
    UNREACHABLE = 3
    TIMED_OUT = 4
    PARTLY = 5
    """Done on a part of the fleet."""
    REFUSED = 6
    """Refused for safety: a host key, a newer database, a missing confirmation."""
    INTERRUPTED = 130


class UserError(Exception):
    """Something the operator can mend. Its text is one sentence: what, where, what to do."""

    exit_code: ExitCode = ExitCode.FAILED


class SettingsError(UserError):
    """The settings file or the arguments are wrong."""

    exit_code = ExitCode.USAGE


class RefusedError(UserError):
    """Not done, because it would not be safe."""

    exit_code = ExitCode.REFUSED


class UnreachableError(UserError):
    """No device can be reached, and one thing would mend that."""

    exit_code = ExitCode.UNREACHABLE


class TimedOutError(UserError):
    """A time limit ran out."""

    exit_code = ExitCode.TIMED_OUT
