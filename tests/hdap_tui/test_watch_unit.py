"""The systemd unit in the guide is one that systemd understands."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def unit() -> str:
    """Return the unit as the guide has it."""
    found = re.search(r"^    # /etc/systemd.*?^    WantedBy=\S+$", GUIDE.read_text(), re.M | re.S)
    assert found is not None
    return textwrap.dedent(found[0])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_understands_the_unit_of_the_guide(tmp_path: Path) -> None:
    program = tmp_path / "hdap"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "hdap-watch.service"
    file.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", unit()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_relies_on_what_the_watcher_does() -> None:
    lines = set(unit().splitlines())
    assert {"Type=notify", "Restart=always", "SuccessExitStatus=130"} <= lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert not any("PrivateTmp" in line or "ProcSubset" in line for line in lines)
