import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from hdap_tui.slots import slot

HOLD = """
import sys
from pathlib import Path
from hdap_tui.slots import slot
with slot(Path(sys.argv[1]), "lab", 1):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_no_more_than_the_count_are_held_at_once(tmp_path: Path) -> None:
    holding, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal holding, most
        for _ in range(5):
            with slot(tmp_path, "rack/7", 2):
                with lock:
                    holding += 1
                    most = max(most, holding)
                with lock:
                    holding -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holding == 0
    assert 1 <= most <= 2


def test_a_killed_holder_frees_its_slot(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with slot(tmp_path, "lab", 1, cancelled=lambda: True) as got:
        assert not got
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with slot(tmp_path, "lab", 1) as got:
        assert got
