"""The lab's own process: `python -m hdap_tui.lab STATE --devices 12`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hdap_tui.errors import UserError
from hdap_tui.lab.layout import Layout
from hdap_tui.lab.profiles import Plan, read_plan


def main() -> int:
    """Serve until stopped; a mistake ends it with one line that begins with "error: "."""
    parser = argparse.ArgumentParser(prog="python -m hdap_tui.lab", description=__doc__)
    parser.add_argument("state", type=Path, help="folder that the lab keeps its files in")
    parser.add_argument("--devices", type=int, default=12)
    parser.add_argument("--base-port", type=int, help="port of the first device")
    parser.add_argument("--plan", type=Path, help="make-up of the fleet, TOML or JSON")
    parser.add_argument("--end-with", type=int, metavar="PID", help="stop when this process ends")
    given = parser.parse_args()
    try:
        plan = read_plan(given.plan) if given.plan else Plan()
        # Imported late: a mistake in the plan is told without waiting for the SSH library.
        from hdap_tui.lab import server

        server.run(Layout.of(given.state), plan, given.devices, given.base_port, given.end_with)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
