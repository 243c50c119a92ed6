"""Locks on files, between processes."""

import subprocess
import sys
import threading
from pathlib import Path

from hdap_tui import locking

HOLD = """
import sys
from hdap_tui import locking
file = open(sys.argv[1], "ab")
assert locking.take(file, shared=sys.argv[2] == "shared")
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, how: str = "alone") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as child, path.open("ab") as file:
        assert not locking.take(file)
        assert not locking.take(file, shared=True)
        child.kill()
        child.wait()
        assert locking.take(file)


def test_those_who_share_keep_out_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, "shared") as child, path.open("ab") as file:
        assert locking.take(file, shared=True)
        assert not locking.take(file)
        child.kill()


def test_a_writer_waits_for_the_other_to_end(tmp_path: Path) -> None:
    path, order = tmp_path / "hosts", []
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        with locking.writing(path):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with locking.writing(path):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
