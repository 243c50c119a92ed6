from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx.parser
import pytest
from sshd import Sshd, processes, wait_for

import engine.runner
from engine import results
from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.remote import RemoteJob
from hdap_tui.ssh.scripts import ask
from hdap_tui.ssh.transfer import Payload, upload

QUICK_RUN = {"runs": 3, "warmup_runs": 1, "warmup_s": 0.0, "block_s": 0.01, "time_limit_s": 60.0}
ENDLESS = {**QUICK_RUN, "blocks_min": 1000, "blocks_max": 1000, "block_s": 0.3}


@pytest.fixture(scope="module")
def server(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd()


@pytest.fixture
def connection(server: Sshd, tmp_path: Path) -> Iterator[Connection]:
    opened = connect(server.trusted(tmp_path / "known_hosts", python=sys.executable))
    yield opened
    opened.close()


class Bench:
    """A model and the runner on the device."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        text = '<ir_version: 8, opset_import: ["": 17]> g (float[1,8] x) => (float[1,8] y) {'
        model = folder / "model.onnx"
        model.write_bytes(onnx.parser.parse_model(text + "y = Relu(x) }").SerializeToString())
        self.model = Payload.of(model)
        self.runner = Payload.of(Path(engine.runner.__file__), "runner")
        upload(connection, [self.model, self.runner])

    def start(self, connection: Connection, job: RemoteJob, **request: object) -> None:
        models = [{"digest": self.model.digest, "path": f"../../{self.model.name}"}]
        job.start(connection, {"version": 1, "models": models, **request}, self.runner.name)


@pytest.fixture
def bench(connection: Connection, tmp_path: Path) -> Bench:
    return Bench(connection, tmp_path)


@pytest.fixture
def job(server: Sshd) -> Iterator[RemoteJob]:
    one = RemoteJob(f"test-{os.urandom(4).hex()}")
    yield one
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((server.home / one.folder / "pid").read_text()), signal.SIGKILL)


def group_of(server: Sshd, job: RemoteJob) -> int:
    """The runner's process group, once a block is running in it."""
    results_file = server.home / job.folder / "results.jsonl"
    wait_for(lambda: results_file.exists() and b'"block"' in results_file.read_bytes())
    group = int((server.home / job.folder / "pid").read_text())
    wait_for(lambda: len(members(group)) == 2)  # between two blocks it is alone
    assert group != os.getpgrp()
    return group


def members(group: int) -> list[str]:
    """Commands of a group's processes."""
    return [p.command for p in processes() if p.group == group and p.command]


def test_results_come_though_the_connection_was_lost_meanwhile(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    bench.start(connection, job, **QUICK_RUN, blocks_min=3, blocks_max=3)
    connection.transport.sock.close()  # no farewell: what a device sees of a dead network
    wait_for(lambda: not connection.alive)
    file = server.home / job.folder / "results.jsonl"
    wait_for(lambda: file.exists() and b'"done"' in file.read_bytes())
    again = connect(connection.target)
    fetched = job.fetch(again)
    again.close()
    lines = fetched.data.splitlines()
    latency = results.parse(lines, "real", [bench.model.digest]).latencies[bench.model.digest]
    assert latency.ok
    assert len(latency.block_medians_ms) == 3
    wait_for(lambda: not (server.home / job.folder / "pid").exists())


def test_each_fetch_brings_what_is_new_and_renews_the_lease(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    bench.start(connection, job, **ENDLESS, lease_s=60)
    group = group_of(server, job)
    lease = server.home / job.folder / "lease"
    first = job.fetch(connection)
    assert first.state == "running"
    assert first.data.startswith(b'{"event": "hello"')
    assert first.data.endswith(b"\n")
    assert first.offset == len(first.data)
    before, size = lease.stat().st_mtime_ns, first.offset
    wait_for(lambda: (server.home / job.folder / "results.jsonl").stat().st_size > size)
    second = job.fetch(connection, first.offset)
    assert lease.stat().st_mtime_ns > before
    assert b"hello" not in second.data
    whole = (server.home / job.folder / "results.jsonl").read_bytes()
    assert whole.startswith(first.data + second.data)
    job.cancel(connection)
    assert members(group) == []


def test_starting_twice_starts_once(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    bench.start(connection, job, **ENDLESS)
    group = group_of(server, job)
    bench.start(connection, job, **ENDLESS)
    assert int((server.home / job.folder / "pid").read_text()) == group
    assert job.fetch(connection).data.count(b'"hello"') == 1
    job.cancel(connection)


def test_cancelling_ends_the_whole_process_group_and_says_so(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    bench.start(connection, job, **ENDLESS)
    group = group_of(server, job)
    job.cancel(connection)
    assert members(group) == []
    fetched = job.fetch(connection)
    assert fetched.state == "ended"
    assert b'"cancelled"' in fetched.data.splitlines()[-1]
    job.cancel(connection)  # again does no harm
    job.clean(connection)
    assert not (server.home / job.folder).exists()
    assert job.fetch(connection).state == "gone"
    job.cancel(connection)


def test_a_group_that_will_not_end_is_killed(
    server: Sshd, connection: Connection, job: RemoteJob
) -> None:
    folder = server.home / job.folder
    stubborn = f"trap '' TERM; while :; do sleep 1; done # {job.id}"
    folder.mkdir(parents=True)
    process = subprocess.Popen(["sh", "-c", stubborn, str(folder)], start_new_session=True)
    (folder / "pid").write_text(f"{process.pid}\n")
    try:
        job.cancel(connection)
        assert process.wait(5) == -signal.SIGKILL
    finally:
        process.kill()


def test_what_lies_forgotten_goes_but_not_because_the_clock_was_set_right(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    jobs = server.home / ".hdap" / "jobs"

    def grow_old(folder: Path) -> None:
        os.utime(folder, (0, 0))  # made while the clock stood at 1970

    bench.start(connection, job, **ENDLESS)
    group = group_of(server, job)
    forgotten = jobs / "forgotten"
    forgotten.mkdir()
    (forgotten / "results.jsonl").touch()
    for folder in (forgotten, jobs / job.id):
        grow_old(folder)
    others = [RemoteJob(f"other-{number}") for number in range(2)]
    bench.start(connection, others[0], **QUICK_RUN)
    assert (forgotten / "results.jsonl").exists(), "whoever wants it may come yet"
    for folder in (forgotten, jobs / job.id):
        grow_old(folder)
    bench.start(connection, others[1], **QUICK_RUN)
    assert not forgotten.exists()
    assert members(group), "it runs, however old it looks"
    for one in (job, *others):
        one.cancel(connection)
        one.clean(connection)


def test_a_number_that_belongs_to_somebody_else_is_left_alone(
    server: Sshd, connection: Connection, job: RemoteJob
) -> None:
    folder = server.home / job.folder
    folder.mkdir(parents=True)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (folder / "pid").write_text(f"{stranger.pid}\n")
        assert job.fetch(connection).state == "ended"
        job.cancel(connection)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_runner_that_nobody_fetches_from_ends_by_its_lease(
    server: Sshd, connection: Connection, bench: Bench, job: RemoteJob
) -> None:
    bench.start(connection, job, **ENDLESS, lease_s=1.5)
    group = group_of(server, job)
    connection.close()
    wait_for(lambda: not members(group))
    assert b'"lease"' in (server.home / job.folder / "results.jsonl").read_bytes()


def test_an_interpreter_that_is_missing_is_named_in_the_log(
    sshd: Sshd, tmp_path: Path, job: RemoteJob
) -> None:
    opened = connect(sshd.trusted(tmp_path / "known_hosts", python="~/no-such-python"))
    bench = Bench(opened, tmp_path)
    bench.start(opened, job, **QUICK_RUN)
    wait_for(lambda: job.fetch(opened).state == "ended")
    assert "no-such-python" in job.log(opened)
    opened.close()


def test_noise_of_the_login_shell_is_left_out(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd({"ForceCommand": 'echo "Welcome!"; eval "$SSH_ORIGINAL_COMMAND"'})
    opened = connect(server.trusted(tmp_path / "known_hosts"))
    assert ask(opened, 'echo "$1"', "it's $HOME") == b"it's $HOME\n"
    opened.close()


def test_an_answer_without_its_mark_is_garbage(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd({"ForceCommand": "head -c 3000000 /dev/urandom"})
    opened = connect(server.trusted(tmp_path / "known_hosts"))
    with pytest.raises(DeviceError) as caught:
        ask(opened, "true", limit=1000)
    assert caught.value.kind is ErrorKind.GARBAGE
    opened.close()


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b", "-rf", "x" * 65, "a\n"])
def test_a_job_name_that_a_shell_could_misread_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a job"):
        RemoteJob(name)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox", "zsh", "mksh"])
def test_the_scripts_run_in_any_posix_shell(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    from hdap_tui.ssh import receiving, remote

    home = tmp_path / "home"
    job = home / ".hdap" / "jobs" / "j1"
    runner = home / ".hdap" / "runner" / "r.sh"
    command = [shell, "sh"] if shell == "busybox" else [shell]
    command += ["--emulate", "sh"] if shell == "zsh" else []

    def run(script: str, *arguments: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            [*command, "-c", script, "hdap", *arguments],
            cwd=home,
            input=stdin,
            capture_output=True,
            timeout=20,
            env={**os.environ, "HOME": str(home)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    home.mkdir()
    digest = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    words = ("models/m.onnx", digest, "part-1")
    assert run(receiving._CLAIM, "me", "", *words).splitlines()[1:] == ["part-1 mine 0 me"]
    part = home / ".hdap" / "parts" / "part-1"
    part.write_bytes(b"mod")
    assert run(receiving._CLAIM, "other", "", *words).endswith("part-1 busy 3 me\n")
    assert run(receiving._CLAIM, "me", "", *words).endswith("part-1 mine 3 me\n")
    part.write_bytes(b"model")
    assert run(receiving._PREFIX, "part-1", "5") == f"{digest}\n"
    assert run(receiving._SETTLE, "other", *words) == "part-1 lost\n"
    assert run(receiving._SETTLE, "me", *words) == "part-1 settled\n"
    assert run(receiving._CLAIM, "other", "", *words).endswith("part-1 there 0 -\n")
    assert list(part.parent.iterdir()) == []
    run(receiving._CLAIM, "me", "", "models/n.onnx", digest, "part-2")
    run(receiving._RELEASE, "me", "yes", "part-2")
    assert list(part.parent.iterdir()) == []
    run(receiving._REMOVE_UNUSED, "models/m.onnx", "part-1")
    assert list((home / ".hdap" / "models").iterdir()) == []
    runner.write_text('cat "$1/request.json" >"$1/results.jsonl"; sleep 60 & wait')
    run(remote._START, "j1", "7", "/bin/sh", "runner/r.sh", stdin=b'{"a":1}')
    wait_for(lambda: (job / "results.jsonl").exists() and (job / "results.jsonl").stat().st_size)
    assert run(remote._FETCH, "j1", "3", "100") == 'running 7\na":1}'
    group = int((job / "pid").read_text())
    run(remote._CANCEL, "j1")
    assert members(group) == []
    assert run(remote._FETCH, "j1", "8", "100") == "ended 7\n"
    run(remote._CLEAN, "j1")
    assert run(remote._FETCH, "j1", "1", "100") == "gone 0\n"


@pytest.mark.parametrize("moment", ["sha256sum", "sync", "mv"])
def test_a_file_that_a_cut_connection_still_moves_is_found_there(
    moment: str, tmp_path: Path
) -> None:
    """The command of a connection that was cut goes on beside that of the next connection."""
    from hdap_tui.ssh import receiving

    digest = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    words = ("models/m.onnx", digest, "part-1")
    tools = tmp_path / "tools"
    tools.mkdir()
    other = tools / moment
    other.write_text(
        "#!/bin/sh\nPATH=${PATH#*:}\n[ -e parts/part-1 ] && mv -f parts/part-1 models/m.onnx\n"
        f'exec {moment} "$@"\n'
    )
    openssl = tools / "openssl"
    openssl.write_text("#!/bin/sh\nexit 1\n")
    for tool in (other, openssl):
        tool.chmod(0o755)

    def run(script: str, *arguments: str, path: str = "") -> str:
        done = subprocess.run(
            ["sh", "-c", script, "hdap", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=20,
            env={**os.environ, "HOME": str(tmp_path), "PATH": path + os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(receiving._CLAIM, "me", "", *words)
    (tmp_path / ".hdap" / "parts" / "part-1").write_bytes(b"model")
    assert run(receiving._SETTLE, "me", *words, path=f"{tools}:") == "part-1 lost\n"
    assert run(receiving._CLAIM, "me", "", *words).endswith("part-1 there 0 -\n")
    assert (tmp_path / ".hdap" / "models" / "m.onnx").read_bytes() == b"model"
