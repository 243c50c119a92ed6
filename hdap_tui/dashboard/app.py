"""Where the dashboard starts; the terminal is looked at before anything heavy is imported."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from hdap_tui.errors import ExitCode, UserError

if TYPE_CHECKING:
    from hdap_tui.context import Context
    from hdap_tui.dashboard.source import Source


class TerminalError(UserError):
    """There is no terminal that a screen could be drawn on."""

    exit_code = ExitCode.USAGE


def run(context: Context, watch: bool = True) -> int:
    """Open the dashboard, and return the exit status once it is closed.

    `watch` says whether the fleet is watched from the start, as the key `w` does it.

    Raises:
        UserError: the terminal cannot show it, or the settings or the database cannot be read.
    """
    check_terminal()
    from hdap_tui.dashboard.source import FleetSource

    source = FleetSource(context)
    _ = source.read_only  # a mistake in the settings is told before the screen is taken
    return run_source(source, watch)


def run_source(source: Source, watch: bool = False) -> int:
    """Open the dashboard on any source, and return the exit status once it is closed."""
    from hdap_tui.dashboard import announce
    from hdap_tui.dashboard.application import HdapApp

    _log_to_file(source)
    app = HdapApp(source, watch=watch)
    mouse = os.environ.get("HDAP_MOUSE", "1") != "0"
    try:
        app.run(mouse=mouse)
    finally:
        app.desk.tasks.close()
        source.close()
    if app.fatal is not None:
        raise app.fatal
    for sentence in announce.farewell(app.snapshot):
        print(sentence, file=sys.stderr)
    return app.return_code or 0


def check_terminal() -> None:
    """Check that there is a terminal.

    Raises:
        TerminalError: there is none, or it can do nothing.
    """
    if os.environ.get("TERM", "dumb") in {"dumb", ""}:
        problem = "The terminal can show no screen (TERM is dumb or not set)"
    elif not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        # Textual draws on standard error, so that one counts as much as the others.
        problem = "The dashboard needs a terminal for input, output and errors"
    else:
        return
    raise TerminalError(
        f"{problem}; every screen is a command as well: hdap devices list --json, for one."
    )


def _log_to_file(source: Source) -> None:
    """Send the log to a file: a line on standard error would tear the screen."""
    logger = logging.getLogger("hdap_tui")
    logger.propagate = False
    path = source.log_file
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(path, delay=True)
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        except OSError:
            handler = logging.NullHandler()
    logger.handlers = [handler]
