"""What a device is asked, and what is believed of its answer."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hdap_tui.provision import building, survey
from hdap_tui.provision.survey import Survey, parse

SHELLS = ("dash", "bash", "busybox", "mksh", "zsh")
PI = """machine aarch64
free 1000000
py path /usr/bin/python3.9
py version 3.9.2
py abi cp39
py bits 64
py libc glibc 2.31
py unpacks 1
py end .
py path /usr/bin/python3.11
py version 3.11.2
py abi cp311
py bits 64
py libc glibc 2.31
py unpacks 1
py end .
used python 3.11.2
link environment.0123456789abcdef
wheel wheels/aa/x-1-py3-none-any.whl"""


@pytest.fixture(params=SHELLS)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path]:
    """A shell and an empty home folder."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    command = [request.param]
    command += {"busybox": ["sh"], "zsh": ["--emulate", "sh"]}.get(request.param, [])
    return command, tmp_path


def run(shell: tuple[list[str], Path], script: str, *arguments: str, **variables: str) -> list[str]:
    command, home = shell
    done = subprocess.run(
        [*command, "-c", script, "hdap", *arguments],
        cwd=home,
        capture_output=True,
        timeout=60,
        env={**os.environ, "HOME": str(home), **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


def look(shell: tuple[list[str], Path], python: str = "", wanted: str = "") -> Survey:
    lines = run(shell, survey._LOOK, python, wanted, survey._DESCRIBE, survey._VERSION_OF)
    found = parse(lines)
    assert found is not None, lines
    return found


def test_the_scripts_run_in_any_posix_shell(home: tuple[list[str], Path]) -> None:
    root = home[1] / ".hdap"
    named = home[1] / "own pythons" / "python3"
    named.parent.mkdir()
    named.symlink_to(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
    found = look(home, sys.executable, "~/own pythons/python3")
    assert [one.version for one in found.interpreters] == [sys.version_info[:3]]
    assert found.interpreters[0].path == os.path.realpath(named)
    assert found.interpreters[0].libc.startswith(("glibc 2.", "musl"))
    assert set(found.used) == {"python", "onnxruntime", "numpy"}
    assert (found.environment, found.wheels, found.running, found.read_only) == ("", set(), (), "")
    assert run(home, building._UNDO) == ["nothing"]

    (root / "environment.0123456789abcdef").mkdir(parents=True)
    (root / "environment").symlink_to("environment.0123456789abcdef")
    (root / "wheels" / "aa").mkdir(parents=True)
    (root / "wheels" / "aa" / "x-1-py3-none-any.whl").write_bytes(b"x" * 5000)
    job = root / "jobs" / "job-1"
    job.mkdir(parents=True)
    with subprocess.Popen(["sh", "-c", "sleep 60; :", str(job)]) as process:
        (job / "pid").write_text(f"{process.pid}\n")
        again = look(home, wanted="/nowhere/python3")
        assert again.environment == "0123456789abcdef"
        assert again.wheels == {"wheels/aa/x-1-py3-none-any.whl"}
        assert (again.running, again.interpreters) == (("job-1",), ())
        assert run(home, building._UNDO) == ["running"]
        process.kill()
    word, freed = run(home, building._UNDO)[0].split()
    assert word == "removed"
    assert int(freed) > 0
    assert sorted(path.name for path in root.iterdir()) == ["environment.lock", "jobs"]


@pytest.mark.parametrize("by", ["flock", "python3"])
def test_what_is_being_built_is_not_removed(
    home: tuple[list[str], Path], tmp_path: Path, by: str
) -> None:
    """Real tools only: a device has one of the two."""
    if not shutil.which(by):
        pytest.skip(f"{by} is not installed")
    root = home[1] / ".hdap"
    (root / "environment.new" / "lib").mkdir(parents=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("readlink", "cat", "grep", "rm", "du", "awk", "sleep", by):
        found = sys.executable if name == "python3" else str(shutil.which(name))
        (tools / name).symlink_to(os.path.realpath(found))
    quick = building._UNDO.replace(f"-lt {building._BUILDS_S} ]", "-lt 1 ]")
    shell = ([str(shutil.which(home[0][0])), *home[0][1:]], home[1])
    with (root / "environment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(shell, quick, PATH=str(tools)) == ["building"]
        assert (root / "environment.new" / "lib").exists()
    assert run(shell, quick, PATH=str(tools))[0].startswith("removed ")
    assert [path.name for path in root.iterdir()] == ["environment.lock"]


def test_interpreters_come_newest_first() -> None:
    found = parse(PI.splitlines())
    assert found is not None
    assert [one.short for one in found.interpreters] == ["3.11", "3.9"]
    assert (found.free, found.environment) == (1024 * 10**6, "0123456789abcdef")


def test_a_free_threaded_python_comes_after_the_others() -> None:
    more = "py path /opt/p\npy version 3.14.0\npy abi cp314t\npy libc glibc 2.31\npy end ."
    found = parse(f"{PI}\n{more}".splitlines())
    assert found is not None
    assert [one.abi for one in found.interpreters] == ["cp311", "cp39", "cp314t"]


@pytest.mark.parametrize(
    "line",
    [
        "py path ../../bin/sh\npy version 3.11.2\npy end .",
        "py path /x\npy version 3.x\npy end .",
        "py version 3.11.2\npy end .",
        "py " + "x" * 10_000,
        "py end .\n" * 1000,
        "\x1b[2J",
    ],
)
def test_a_hostile_answer_is_not_believed(line: str) -> None:
    found = parse(f"{PI}\n{line}".splitlines())
    assert found is not None
    assert [one.path for one in found.interpreters] == ["/usr/bin/python3.11", "/usr/bin/python3.9"]


def test_what_a_device_calls_its_c_library_names_no_file_elsewhere() -> None:
    found = parse(PI.replace("glibc 2.31", "glibc 2.31/../../../x").splitlines())
    assert found is not None
    assert {one.libc for one in found.interpreters} == {""}
    assert all("/" not in one.key for one in found.interpreters)


def test_an_old_busybox_that_wants_its_timeout_otherwise_is_no_obstacle(
    home: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = home[1] / "tools"
    tools.mkdir()
    (tools / "timeout").write_text("#!/bin/sh\nexit 1\n")
    (tools / "timeout").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    found = look(home, wanted=sys.executable)
    assert [one.version for one in found.interpreters] == [sys.version_info[:3]]


def test_an_odd_link_is_none_of_ours() -> None:
    other = PI.replace("environment.0123456789abcdef", "/etc")
    found = parse(other.splitlines())
    assert found is not None
    assert found.environment == "?"


@pytest.mark.parametrize("text", ["", "machine x", "machine x\nfree lots", "free 1"])
def test_an_answer_without_the_most_basic_is_none(text: str) -> None:
    assert parse(text.splitlines()) is None
