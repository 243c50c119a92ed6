"""The operator's own commands on a device, after each switch and each roll-back."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT
from hdap_tui.text import clean

Action = Literal["deploy", "rollback"]

_SAID = 300  # characters of what a command printed
# A device whose operator is gone without a word ends the command by itself.
_GUARD = """cd && HDAP_MODEL=$HOME/{root}/current
export HDAP_MODEL HDAP_DIGEST={digest} HDAP_ACTION={action}
(n=0; while [ $n -lt {seconds} ]; do sleep 1; n=$((n + 1)); done; kill -s KILL 0) \
</dev/null >/dev/null 2>&1 & guard=$!
{body}
status=$?
kill "$guard" 2>/dev/null
exit $status
"""


@dataclass(frozen=True)
class Hooks:
    """What the settings' [deploy] section wants to be run on a device."""

    hook: str = ""
    health: str = ""
    timeout_s: float = 30.0

    def run(self, connection: Connection, digest: str, action: Action) -> None:
        """Run the hook, then wait until the device says that it is well.

        Raises:
            DeviceError: one of them failed, or took too long; then its whole process group has
                been ended.
        """
        if self.hook:
            self._run(connection, "the hook", self.hook, digest, action)
        self.check(connection, digest, action)

    def check(self, connection: Connection, digest: str, action: Action = "deploy") -> None:
        """Wait until the health command succeeds.

        Raises:
            DeviceError: it did not in time.
        """
        if self.health:
            body = f"until sh -c {shlex.quote(self.health)}; do sleep 1; done"
            self._run(connection, "the health command", body, digest, action, whole=True)

    def _run(
        self,
        connection: Connection,
        what: str,
        command: str,
        digest: str,
        action: Action,
        whole: bool = False,
    ) -> None:
        body = command if whole else f"sh -c {shlex.quote(command)}"
        text = _GUARD.format(
            root=ROOT, digest=digest, action=action, body=body, seconds=int(self.timeout_s) + 5
        )
        try:
            done = connection.run(
                f"exec sh -c {shlex.quote(text)}", leash=True, timeout=self.timeout_s, limit=4096
            )
        except DeviceError as error:
            if error.kind is not ErrorKind.TIMEOUT:
                raise
            raise DeviceError(
                ErrorKind.TIMEOUT,
                f"{connection.where}: {what} did not end within {self.timeout_s:g} s (what it "
                "starts must not keep its output open)"
                if not whole
                else f"{connection.where}: {what} did not succeed within {self.timeout_s:g} s",
            ) from error
        if done.status:
            said = clean((done.err or done.out).decode("utf-8", "replace")[-_SAID:], _SAID)
            raise DeviceError(
                ErrorKind.FAILED,
                f"{connection.where}: {what} ended with status {done.status}"
                + (f": {said}" if said.strip() else ""),
            )
