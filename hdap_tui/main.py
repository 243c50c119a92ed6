"""Where `hdap` starts: without a command the dashboard, with one the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdap_tui.context import Context


def _open_dashboard(context: Context) -> int:
    from hdap_tui.dashboard.app import run as run_dashboard

    return run_dashboard(context)


def main() -> None:
    """Run `hdap` with the arguments of this process, and exit with its status."""
    try:
        # Imported here: whoever interrupts a program that is still being loaded gets no traceback.
        from hdap_tui.cli.app import run

        status = run(sys.argv[1:], _open_dashboard)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
