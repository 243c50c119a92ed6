"""Provisioning of a bare Python over loopback: a real sshd with an empty home, no pip on it.

    python -m benchmarks.provisioning                    # the wheels of this machine's version
    python -m benchmarks.provisioning --wheels FOLDER --times 5

The wheels are cached on this side: the first run, which may download them, is not counted. Times
are whole runs of the command in one process, from connecting to the tidied-up device.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sshd import Sshd, fleet_toml, missing, start_sshds

from hdap_tui.actions.provisioning import provision
from hdap_tui.context import Context, Outcome
from hdap_tui.stages import Stages

BAR_S = 3.0
_PARTS = ("connecting", "looking", "choosing wheels", "upload", "unpacking", "checking")


class Clock:
    """Adds up how long each stage took."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.spent: dict[str, float] = defaultdict(float)
        self._now, self._since = "", self.begun

    def say(self, _device: str, stage: str) -> None:
        now = time.perf_counter()
        self.spent[self._now] += now - self._since
        self._now = next((part for part in _PARTS if stage.startswith(part)), "the rest")
        self._since = now

    @property
    def total(self) -> float:
        return time.perf_counter() - self.begun


def once(server: Sshd, settings: Path, wheels: Path | None) -> tuple[Clock, float, Outcome]:
    """Provision the bare device; return the stages, the seconds in all and what was said."""
    shutil.rmtree(server.home)
    server.home.mkdir()
    context = Context(config=settings)
    clock = Clock()
    original = Stages.say
    Stages.say = lambda _self, device, stage: clock.say(device, stage)  # type: ignore[method-assign]
    try:
        outcome = provision(context, wheels=wheels, yes=True)
        return clock, clock.total, outcome
    finally:
        Stages.say = original  # type: ignore[method-assign]
        context.close()


def row(name: str, seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"| {name} | {middle:.2f} s | {min(seconds):.2f} s | {max(seconds):.2f} s |"


def report(runs: Sequence[tuple[Clock, float, Outcome]]) -> float:
    """Print the table; return the median of the whole."""
    document = runs[-1][2].data["devices"][0]
    megabytes = document["push_bytes"] / 1e6
    print(f"ONNX Runtime {document['onnxruntime']} with {len(document['wheels'])} wheels,"
          f" {megabytes:.1f} MB, onto Python {document['python']} without pip")  # fmt: skip
    print("| stage | median | shortest | longest |", "|---|---|---|---|", sep="\n")
    for part in (*_PARTS, "the rest"):
        times = [clock.spent[part] for clock, _, _ in runs]
        print(row(part, times))
    totals = [total for _, total, _ in runs]
    median = statistics.median(totals)
    print(row("**all**", totals))
    print(f"at most {BAR_S:.0f} s: {'reached' if median <= BAR_S else 'missed'}")
    return median


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = start_sshds(folder, 1)[0]
        try:
            settings = folder / "fleet.toml"
            settings.write_text(fleet_toml([server], folder / "state", ""))
            runs = [once(server, settings, arguments.wheels) for _ in range(arguments.times + 1)]
        finally:
            server.stop()
    states = {run[2].data["devices"][0]["state"] for run in runs}
    if states != {"provisioned"}:
        print("not provisioned:", runs[-1][2].data["devices"][0]["detail"])
        return 1
    return 0 if report(runs[1:]) <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
