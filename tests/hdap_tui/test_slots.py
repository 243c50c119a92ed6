import os
import signal
import subprocess
import sys
from pathlib import Path

from hdap_tui.slots import take

HOLD = """
import sys
from pathlib import Path
from hdap_tui.slots import take
held = take(Path(sys.argv[1]), "lab", 1)
print("held" if held else "none", flush=True)
sys.stdin.read()
"""


def test_no_more_than_the_count_are_held_at_once(tmp_path: Path) -> None:
    first, second = take(tmp_path, "rack/7", 2), take(tmp_path, "rack/7", 2)
    assert first is not None
    assert second is not None
    assert take(tmp_path, "rack/7", 2) is None
    other = take(tmp_path, "rack/8", 1)
    assert other is not None, "another machine has slots of its own"
    first.close()
    again = take(tmp_path, "rack/7", 2)
    assert again is not None
    for held in (second, other, again):
        held.close()


def test_a_killed_holder_frees_its_slot(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert take(tmp_path, "lab", 1) is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    held = take(tmp_path, "lab", 1)
    assert held is not None
    held.close()
