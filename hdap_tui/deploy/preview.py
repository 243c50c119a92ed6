"""What a deployment would do on each device: looked up, nothing is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import engine.runner
from hdap_tui.deploy.planning import Plan
from hdap_tui.fanout import on_each
from hdap_tui.measuring import Measuring
from hdap_tui.ssh import release
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.locks import holder
from hdap_tui.ssh.scripts import ROOT, ask, lines_of
from hdap_tui.ssh.transfer import Payload

_SIZES = f"""
cd {ROOT} 2>/dev/null || exit 0
for file; do [ -f "$file" ] && echo "$(wc -c <"$file") $file"; done
true
"""


@dataclass(frozen=True)
class Seen:
    """What a device that answers would be given."""

    bytes: int
    """To be sent: runner, old and new model, as far as they are not there."""
    foreign: str = ""
    """Digest of what it runs where that is neither the old nor the new model."""
    held: str = ""
    """Who deploys to it now."""


def preview(measuring: Measuring, plan: Plan) -> dict[str, Seen | DeviceError]:
    """Ask every device of a plan what it has; one that cannot be asked is an error."""
    runner = Payload.of(Path(engine.runner.__file__), "runner")
    models = {path: Payload.of(Path(path)) for path in
              {plan.model.path, *(old.path for old in plan.before.values())}}  # fmt: skip

    def look(connection: Connection) -> Seen:
        old = plan.before[connection.where]
        wanted = {p.name: p.size for p in (runner, models[old.path], models[plan.model.path])}
        for line in lines_of(ask(connection, _SIZES, *wanted)):
            found = re.fullmatch(r" *(\d+) (\S+)", line)
            if found and wanted.get(found[2]) == int(found[1]):
                del wanted[found[2]]
        runs = release.show(connection).current
        expected = (None, old.digest, plan.model.digest)
        return Seen(sum(wanted.values()), "" if runs in expected else str(runs), holder(connection))

    fleet = measuring.fleet
    targets = [fleet.members[name] for name in plan.names]
    answers = on_each(
        fleet.pool, targets, look, measuring.context.cancelled,
        on_stage=fleet.on_stage, doing="looking",
    )  # fmt: skip
    return {target.name: answer for target, answer in answers}
