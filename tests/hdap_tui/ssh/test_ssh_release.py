"""The scripts that switch links, lock and tidy up, in the shells that devices have."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hdap_tui.provision import building, survey
from hdap_tui.ssh import locks, release, remote
from hdap_tui.ssh.scripts import ALIVE

SHELLS = {
    "dash": ("dash",),
    "bash": ("bash",),
    "mksh": ("mksh",),
    "busybox": ("busybox", "sh"),
}


class Home:
    """A device's home folder, with models in it."""

    def __init__(self, folder: Path, shell: tuple[str, ...]) -> None:
        self.folder, self.shell = folder, shell
        self.root = folder / ".hdap"
        (self.root / "models").mkdir(parents=True)
        self.digests = [self.model(f"model {n}".encode()) for n in range(3)]
        self.path = os.environ["PATH"]

    def model(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "models" / f"{digest}.onnx").write_bytes(data)
        return digest

    def command(self, script: str, *arguments: str) -> list[str]:
        return [*self.shell, "-c", f"cd || exit 1\n{script}", "hdap", *arguments]

    def run(self, script: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            self.command(script, *arguments),
            env={"HOME": str(self.folder), "PATH": self.path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    def switch(self, to: int, base: int, token: str = "a") -> list[str]:
        words = (token, "60", f"{token}@desk")
        return self.run(release._SWITCH, *words, self.digests[to], self.digests[base])

    def restore(self, taken: int, to: int, token: str = "a") -> list[str]:
        words = (token, "60", f"{token}@desk")
        return self.run(release._RESTORE, *words, self.digests[taken], self.digests[to])

    def back(self) -> list[str]:
        return self.run(release._RESTORE, "a", "60", "a@desk", "", "")

    @property
    def links(self) -> tuple[int | None, int | None]:
        """Numbers of the models that current and previous name."""
        return self._link("current"), self._link("previous")

    def _link(self, name: str) -> int | None:
        path = self.root / name
        return self.digests.index(path.readlink().stem) if path.is_symlink() else None


@pytest.fixture(params=SHELLS)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    program = shutil.which(SHELLS[request.param][0])
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    found = Home(tmp_path, (program, *SHELLS[request.param][1:]))
    tools = tmp_path / "bin"
    tools.mkdir()
    if request.param == "busybox":  # nothing but BusyBox's own tools
        subprocess.run([program, "--install", "-s", str(tools)], check=True)
        found.path = ""
        (tools / "sync").unlink()
    # The disk is shared with everything else that runs here.
    (tools / "sync").write_text("#!/bin/sh\nexit 0\n")
    (tools / "sync").chmod(0o755)
    found.path = f"{tools}:{found.path}"
    return found


def test_a_switch_keeps_the_previous_and_a_roll_back_brings_it(home: Home) -> None:
    home.switch(1, 0)
    assert home.links == (1, 0)
    home.switch(1, 0)  # again does no harm
    assert home.links == (1, 0)
    home.switch(2, 1)
    assert home.links == (2, 1)
    home.restore(2, 1)
    assert home.links == (1, 0)  # as before the switch that was taken back
    home.restore(2, 1)
    assert home.links == (1, 0)
    home.back()
    assert home.links == (0, None)
    assert not list(home.root.glob("*.part"))
    assert not (home.root / "older").is_symlink()


def test_a_roll_back_never_brings_what_is_gone_or_was_just_taken_back(home: Home) -> None:
    home.switch(1, 0)
    home.switch(2, 1)
    (home.root / "models" / f"{home.digests[0]}.onnx").unlink()
    home.restore(2, 1)
    assert home.links == (1, None)
    home.model(b"model 0")
    home.switch(2, 1)
    home.switch(1, 2)
    assert home.links == (1, 2)
    home.restore(1, 2)  # 1 was also what ran before 2
    assert home.links == (2, None)


@pytest.mark.parametrize("script", ["switch", "restore"])
def test_whichever_link_was_the_last_the_next_script_brings_the_rest_in_order(
    home: Home, script: str
) -> None:
    """Both are cut before their first, second, … renaming; then all is done again."""
    cut = 0
    while True:
        shutil.rmtree(home.root / "locks", ignore_errors=True)
        for name in ("current", "previous", "older", "pending"):
            (home.root / name).unlink(missing_ok=True)
        home.switch(1, 0)
        if script == "restore":
            home.switch(2, 1)
        counted = f"moves=0; mv() {{ [ $moves -lt {cut} ] || exit 9; moves=$((moves + 1)); "
        counted += 'command mv "$@"; }\n'
        whole = {"switch": release._SWITCH, "restore": release._RESTORE}[script]
        models = home.digests[2], home.digests[1]
        done = subprocess.run(
            home.command(counted + whole, "a", "60", "a@desk", *models),
            env={"HOME": str(home.folder), "PATH": home.path},
            stdout=subprocess.DEVNULL,
        )
        assert home.links[0] in (1, 2)
        if cut % 2:  # as when the same deployment goes on, or takes it back
            home.switch(2, 1)
            assert home.links == (2, 1)
        home.restore(2, 1)
        assert home.links == (1, 0)
        if done.returncode == 0:
            break
        cut += 1
    assert cut >= 2


def test_what_is_not_as_expected_is_left_alone(home: Home) -> None:
    home.switch(1, 0)
    assert "foreign" in home.switch(2, 0)
    assert "foreign" in home.restore(2, 0)
    (home.root / "models" / f"{home.digests[2]}.onnx").write_bytes(b"damaged")
    assert "damaged" in home.switch(2, 1)
    (home.root / "models" / f"{home.digests[2]}.onnx").unlink()
    assert "missing" in home.switch(2, 1)
    assert home.links == (1, 0)


@pytest.mark.parametrize("before", [None, 0])
def test_a_cut_between_the_two_links_loses_neither(home: Home, before: int | None) -> None:
    """What a switch from 1 to 2 leaves when the power goes after the first rename."""
    home.switch(1, 0)
    if before is None:
        (home.root / "previous").unlink()
    older = "none" if before is None else f"models/{home.digests[0]}.onnx"
    (home.root / "pending").symlink_to(older)
    (home.root / "previous").unlink(missing_ok=True)
    (home.root / "previous").symlink_to(f"models/{home.digests[1]}.onnx")
    assert home.links == (1, 1)
    home.restore(2, 1)  # whoever comes next mends it
    assert home.links == (1, before)
    home.switch(2, 1)
    assert home.links == (2, 1)
    assert not (home.root / "pending").is_symlink()


def test_killed_at_any_moment_it_serves_the_old_or_the_new_model(home: Home) -> None:
    home.switch(1, 0)
    for turn in range(12):
        now, other = (1, 2) if turn % 2 == 0 else (2, 1)
        words = ("a", "60", "a@desk", home.digests[other], home.digests[now])
        process = subprocess.Popen(
            home.command(release._SWITCH, *words),
            env={"HOME": str(home.folder), "PATH": home.path},
            stdout=subprocess.DEVNULL,
        )
        time.sleep(0.002 * turn)
        process.kill()
        process.wait()
        assert home.links[0] in (now, other)
        home.switch(other, now)
        assert home.links == (other, now)


def test_only_one_of_many_gets_the_lock(home: Home) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: home.switch(1, 0, f"token{n}"), range(8)))
    winners = [answer for answer in answers if answer[0].startswith("current")]
    assert len(winners) == 1
    assert all(a[0].startswith("held ") for a in answers if a not in winners)
    assert len(list((home.root / "locks").iterdir())) == 1


def test_a_lock_ends_with_its_time_with_a_restart_and_when_it_is_given_back(home: Home) -> None:
    home.switch(1, 0, "anna")
    assert home.switch(2, 1, "ben")[0].startswith("held ")
    home.run(release._RELEASE, "ben")  # not his to give
    assert home.switch(2, 1, "ben")[0].startswith("held ")
    home.run(release._RELEASE, "anna")
    assert home.switch(2, 1, "ben")[0].startswith("current")
    (lock,) = (home.root / "locks").iterdir()
    token, boot, until, who = os.readlink(lock).split()
    for stale in (
        f"{token} {boot} 1 {who}",
        f"{token} other-boot {until} {who}",
        f"{token} {boot} 999999999 {who}",
        "nonsense",
    ):
        shutil.rmtree(home.root / "locks")
        (home.root / "locks").mkdir()
        lock.symlink_to(stale)
        assert home.run(locks._HOLDER) == []
        assert home.restore(2, 1, "carl")[0].startswith("current")
        home.run(release._RELEASE, "carl")
        assert home.switch(2, 1, "dora")[0].startswith("current")


def test_a_script_that_was_overtaken_changes_nothing(home: Home) -> None:
    home.switch(1, 0)
    slow = release._SWITCH.replace("mine ||", "sleep 1; mine ||", 1)
    words = ("a", "60", "a@desk", home.digests[2], home.digests[1])
    with subprocess.Popen(
        home.command(slow, *words),
        env={"HOME": str(home.folder), "PATH": home.path},
        stdout=subprocess.PIPE,
        text=True,
    ) as left:
        while set(os.listdir(home.root / "locks")) <= {"1"}:
            time.sleep(0.01)  # until it has the lock
        home.restore(2, 1)  # the same deployment, taken up again
        said, _ = left.communicate()
    assert "overtaken" in said
    assert home.links[0] == 1


def test_only_old_models_that_nobody_names_go(home: Home) -> None:
    home.switch(1, 0)
    old = [home.model(f"old {n}".encode()) for n in range(3)]
    for path in (home.root / "models").iterdir():
        os.utime(path, (1e9, 1e9))
    recent = home.model(b"recent")
    job = home.root / "jobs" / "one"
    job.mkdir(parents=True)
    (job / "request.json").write_text(f'{{"models": ["{old[0]}"]}}')
    gone = home.run(release._TIDY, old[1])
    assert sorted(gone) == sorted([old[2], home.digests[2]])
    left = {path.stem for path in (home.root / "models").iterdir()}
    assert left == {*home.digests[:2], old[0], old[1], recent}


def test_what_was_left_ends_and_a_number_of_somebody_else_does_not(home: Home) -> None:
    digest = home.digests[0]
    left = {}
    for job, named in (("mine", "runner mine"), ("other", "something else")):
        folder = home.root / "jobs" / job
        folder.mkdir(parents=True)
        left[job] = subprocess.Popen(["sh", "-c", "sleep 60; true", named], start_new_session=True)
        (folder / "request.json").write_text(digest)
        (folder / "pid").write_text(str(left[job].pid))
    try:
        home.run(release._END_LEFT, "a", "60", "a@desk", digest)
        assert left["mine"].wait(10) != 0
        assert left["other"].poll() is None
        assert list((home.root / "jobs").iterdir()) == []
    finally:
        for process in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_one_function_says_everywhere_whether_a_job_is_alive() -> None:
    scripts = (
        remote._START, remote._FETCH, remote._CANCEL, release._END_LEFT, survey._LOOK,
        building._UNDO,
    )  # fmt: skip
    assert all(ALIVE in script for script in scripts)
    assert not any("/cmdline" in script.replace(ALIVE, "") for script in scripts)
