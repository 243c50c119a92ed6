"""Slows one processor down for real, evenly or drifting."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from devices.machine import comes_first

_SOURCE = Path(__file__).with_name("hog.c")
_PERIOD_US = 1000


def missing() -> str:
    """Return why nothing can be slowed down here; empty where it can."""
    if not shutil.which("cc"):
        return "there is no C compiler"
    return "" if comes_first() else "real-time scheduling is not allowed here"


class Hog:
    """Takes a share of one processor away; ends at the latest with this process."""

    def __init__(self, folder: Path, cpu: int) -> None:
        program = folder / "hog"
        if not program.exists():
            subprocess.run(["cc", "-O2", "-o", str(program), str(_SOURCE)], check=True)
        self._process = subprocess.Popen(
            [str(program), str(cpu), str(_PERIOD_US)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"

    def take(self, share: float) -> None:
        """Take that share from now on."""
        self.ramp(share, share, 0.0)

    def ramp(self, first: float, last: float, seconds: float) -> None:
        """Let the share go from one to the other in that time, and stay there."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{first} {last} {seconds}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Give it all back."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
