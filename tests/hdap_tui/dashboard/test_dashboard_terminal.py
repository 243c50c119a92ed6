"""The dashboard in a real pseudo-terminal: colours, signals, what it imports, what it refuses."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hdap_tui.dashboard.theme import pick_look

FAKE = Path(__file__).parent / "dashboard_fake.py"
WAIT_S = 30.0
RESTORED = b"\x1b[?1049l"


class Terminal:
    """A child in a pseudo-terminal, and everything it has written."""

    def __init__(self, child: subprocess.Popen[bytes], master: int) -> None:
        self.child, self._master, self.output = child, master, b""

    def until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while wanted not in self.output:
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"{wanted!r} never came; the end was {self.output[-300:]!r}")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while self._read() and time.monotonic() < deadline:
            pass
        return self.child.wait(WAIT_S)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], WAIT_S)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the child has closed its side
            return False
        self.output += data
        return bool(data)


@contextmanager
def terminal(command: list[str], **environ: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    base = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "HDAP_THEME"}}
    child = subprocess.Popen(
        [sys.executable, *command],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**base, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environ},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(child, master)
    finally:
        child.kill()
        child.wait()
        os.close(master)


def colours(output: bytes) -> list[bytes]:
    """Return the escape sequences that set a colour other than the terminal's own."""
    found = []
    for codes in re.findall(rb"\x1b\[([0-9;]*)m", output):
        numbers = [int(n) for n in codes.split(b";") if n]
        if any(30 <= n <= 38 or 40 <= n <= 48 or 90 <= n <= 107 for n in numbers):
            found.append(codes)
    return found


def test_without_colour_not_one_colour_code_is_written_and_the_cursor_is_still_seen() -> None:
    with terminal([str(FAKE)], NO_COLOR="1") as screen:
        screen.until(b"edge-01")
        for key, text in ((b"2", b"variance"), (b"3", b"noticed"), (b"4", b"surrogate"),
                          (b"5", b"deployments"), (b"?", b"what it does")):  # fmt: skip
            screen.press(key)
            screen.until(text)
        screen.press(b"q")
        assert screen.end() == 0
    assert colours(screen.output) == []
    assert re.search(rb"\x1b\[[0-9;]*\b7\b[0-9;]*m", screen.output)


def test_with_colour_there_are_colours() -> None:
    with terminal([str(FAKE)]) as screen:
        screen.until(b"edge-01")
        screen.press(b"q")
        assert screen.end() == 0
    assert len(colours(screen.output)) > 50
    assert RESTORED in screen.output
    assert b"1 job goes on without the dashboard: compress-2" in screen.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_in_order(number: signal.Signals) -> None:
    with terminal([str(FAKE)]) as screen:
        screen.until(b"edge-01")
        screen.child.send_signal(number)
        assert screen.end() == 128 + number
    for code in (RESTORED, b"\x1b[?1000l", b"\x1b[?25h"):
        assert code in screen.output


_RUN = "import sys; from hdap_tui.main import main; sys.argv = ['hdap']; main()"


def test_a_dumb_terminal_is_refused_with_one_sentence() -> None:
    with terminal(["-c", _RUN], TERM="dumb") as screen:
        assert screen.end() == 2
    text = screen.output.decode().strip()
    assert text == (
        "hdap: The terminal can show no screen (TERM is dumb or not set); every screen is a "
        "command as well: hdap devices list --json, for one."
    )


def test_no_terminal_at_all_is_refused_with_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, "TERM": "xterm-256color"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "needs a terminal" in done.stderr
    assert "--json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mistake_in_the_settings_is_told_before_the_screen_is_taken(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text("[flet]\n")
    command = _RUN.replace("['hdap']", f"['hdap', '--config', '{tmp_path}/fleet.toml']")
    with terminal(["-c", command]) as screen:
        assert screen.end() == 2
    assert b"fleet.toml" in screen.output
    assert b"\x1b[?1049h" not in screen.output


def test_a_database_that_cannot_be_used_ends_in_a_sentence_on_the_shell(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('[fleet]\nstate = "state"\n')
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "fleet.db").write_bytes(b"this is no database" * 400)
    command = _RUN.replace("['hdap']", f"['hdap', '--config', '{tmp_path}/fleet.toml']")
    with terminal(["-c", command], HDAP_STATE=str(tmp_path / "state")) as screen:
        assert screen.end() != 0
    after = screen.output.rpartition(RESTORED)[2]
    assert b"hdap: " in after
    assert b"Traceback" not in screen.output


def test_the_first_screen_imports_nothing_heavy() -> None:
    code = (
        "import sys, hdap_tui.dashboard.application as a;"
        "heavy = {'torch', 'sklearn', 'scipy', 'paramiko', 'asyncssh', 'numpy', 'onnx', "
        "'onnxruntime', 'sqlite_utils', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environ", "look"),
    [
        ({"NO_COLOR": "1", "COLORTERM": "truecolor", "HDAP_THEME": "dark"}, "mono"),
        ({"COLORTERM": "truecolor", "TERM": "xterm"}, "dark"),
        ({"TERM": "tmux-256color"}, "dark"),
        ({"TERM": "linux"}, "ansi"),
        ({"TERM": "xterm"}, "ansi"),
        ({"TERM": "xterm-256color", "HDAP_THEME": "ansi"}, "ansi"),
    ],
)
def test_the_look_is_what_the_terminal_can_show(environ: dict[str, str], look: str) -> None:
    assert pick_look(environ) == look
