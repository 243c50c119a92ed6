"""The watcher as a child process of the dashboard.

A thread would share the interpreter with the screen, and clustering's libraries hold it for longer
than a key press may wait. The child ends with the dashboard, however that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hdap_tui.config import Settings
from hdap_tui.errors import ExitCode


class ChildWatcher:
    """Runs `hdap watch` for as long as it is wanted."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = settings.state_dir / "watch.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.running:
            return
        self._wanted = True
        self._log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hdap_tui", "--config", str(self._settings.path), "watch"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is not meant for it
                env={
                    **os.environ,
                    "HDAP_STATE": str(self._settings.state_dir),
                    "HDAP_WATCH_WITH": str(os.getpid()),
                },
            )

    def stop(self) -> None:
        """Ask it to stop, and return at once; it ends what it runs on the devices first."""
        self._wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Give it that long to end."""
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return  # it ends by itself: its parent is gone

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Number of the latest one; 0 where there never was one."""
        return self._process.pid if self._process is not None else 0

    @property
    def said(self) -> str:
        """Why it ended, where nobody asked it to."""
        process = self._process
        if process is None or not self._wanted or process.poll() in (None, ExitCode.DONE):
            return ""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        told = [line.removeprefix("hdap: ") for line in lines if line.startswith("hdap: ")]
        return told[-1] if told else f"Watching failed; see {self._log}."
