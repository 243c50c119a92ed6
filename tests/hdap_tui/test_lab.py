"""The emulated fleet, from the outside: a raw SSH client against its servers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from hdap_tui.config import load
from hdap_tui.errors import SettingsError, TimedOutError, UserError
from hdap_tui.lab import control, layout, processes
from hdap_tui.lab.profiles import Plan

pytest.importorskip("asyncssh", reason="the extra `lab` is not installed")

FIRST, SECOND, THIRD, FOURTH = (f"edge-0{number}" for number in range(1, 5))


@contextlib.contextmanager
def connected(
    lab: control.LabInfo, name: str, key: paramiko.PKey | None = None, user: str | None = None
) -> Iterator[paramiko.Transport]:
    """Log in as the product would: the host key checked, the socket without delay."""
    device = lab.device(name)
    plain = socket.create_connection((device.host, device.port), timeout=5)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(plain)
    transport.banner_timeout = transport.auth_timeout = 5
    try:
        transport.start_client(timeout=5)
        assert transport.get_remote_server_key().fingerprint == device.host_key_sha256
        key = key or paramiko.Ed25519Key.from_private_key_file(str(lab.identity))
        transport.auth_publickey(user or device.user, key)
        yield transport
    finally:
        transport.close()


def opened(transport: paramiko.Transport, command: str) -> paramiko.Channel:
    channel = transport.open_session(timeout=5)
    channel.settimeout(10)
    channel.exec_command(command)
    return channel


def run(
    transport: paramiko.Transport, command: str, given: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run to the end: exit status, standard output, standard error."""
    channel = opened(transport, command)
    collected: list[bytes] = []
    errors = threading.Thread(target=lambda: collected.append(channel.makefile_stderr().read()))
    feeder = threading.Thread(target=lambda: (channel.sendall(given), channel.shutdown_write()))
    for thread in (errors, feeder):
        thread.start()
    output = channel.makefile("rb").read()
    for thread in (errors, feeder):
        thread.join(10)
    return channel.recv_exit_status(), output, collected[0]


def ask(lab: control.LabInfo, name: str, command: str) -> str:
    with connected(lab, name) as transport:
        status, output, errors = run(transport, command)
    assert status == 0, errors
    return output.decode().strip()


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Commands


def test_a_command_answers_with_both_streams_and_its_exit_status(lab: control.LabInfo) -> None:
    with connected(lab, FIRST) as transport:
        assert run(transport, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
        assert run(transport, "true") == (0, b"", b"")


def test_a_command_ended_by_a_signal_has_no_exit_status(lab: control.LabInfo) -> None:
    with connected(lab, FIRST) as transport:
        assert run(transport, "kill -KILL $$")[0] == -1


def test_big_output_on_both_streams_at_once_comes_whole(lab: control.LabInfo) -> None:
    script = (
        "import sys,threading\n"
        "def w(f,b):\n"
        "    for _ in range(80): f.write(b*100000)\n"
        "    f.flush()\n"
        "t=threading.Thread(target=w,args=(sys.stderr.buffer,b'e')); t.start()\n"
        "w(sys.stdout.buffer,b'o'); t.join()\n"
    )
    with connected(lab, FIRST) as transport:
        status, output, errors = run(transport, f'python3 -S -c "{script}"')
    assert (status, len(output), len(errors)) == (0, 8_000_000, 8_000_000)
    assert output.strip(b"o") == errors.strip(b"e") == b""


def test_standard_input_arrives_whole_and_its_end_too(lab: control.LabInfo) -> None:
    given = random.Random(1).randbytes(3_000_000)
    with connected(lab, FIRST) as transport:
        status, output, _ = run(transport, "cat", given)
        assert status == 0
        assert output == given
        assert run(transport, "sha256sum", given)[1].split()[0].decode() == (
            hashlib.sha256(given).hexdigest()
        )


def test_a_shell_without_a_command_is_refused_with_a_sentence(lab: control.LabInfo) -> None:
    with connected(lab, FIRST) as transport:
        channel = transport.open_session()
        channel.settimeout(5)
        channel.invoke_shell()
        assert b"give a command" in channel.makefile_stderr().read()
        assert channel.recv_exit_status() == 255
        with pytest.raises(paramiko.SSHException):
            transport.open_session().get_pty()


def test_a_device_has_its_own_home_user_and_python(lab: control.LabInfo) -> None:
    device = lab.device(SECOND)
    told = ask(
        lab, SECOND, "pwd; echo $HOME; echo $USER; command -v python3; python3 -c "
        "'import sys, onnxruntime; print(sys.prefix)'"
    )  # fmt: skip
    assert told.splitlines() == [
        str(device.home),
        str(device.home),
        SECOND,
        f"{device.home}/.lab/bin/python3",
        sys.prefix,
    ]


def test_the_environment_is_the_devices_and_not_the_callers(
    make_lab: Callable[..., control.LabInfo],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HDAP_STATE", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    monkeypatch.setenv("SECRET_TOKEN", "42")
    own = make_lab(1, state=tmp_path)
    names = {line.partition("=")[0] for line in ask(own, FIRST, "env").splitlines()}
    allowed = "HOME USER LOGNAME SHELL PATH LANG PYTHONPATH HDAP_LAB_PROFILE HDAP_LAB_CACHE PWD"
    assert names - {"LD_LIBRARY_PATH", "TZ", "_", "SHLVL", "OLDPWD"} == set(allowed.split())
    assert ask(own, FIRST, "cat $HDAP_LAB_PROFILE") == own.device(FIRST).profile.read_text()


def test_a_detached_process_survives_its_connection(lab: control.LabInfo) -> None:
    home = lab.device(FIRST).home
    with connected(lab, FIRST) as transport:
        status, output, _ = run(
            transport, "mkfifo go; setsid nohup sh -c 'read x <go; echo done >result' "
            ">log 2>&1 </dev/null & echo $!"
        )  # fmt: skip
    assert status == 0
    assert is_alive(int(output))
    with open(home / "go", "w") as go:
        go.write("now\n")
    until(lambda: (home / "result").exists() and (home / "result").read_text() == "done\n")


def test_a_command_outlives_a_lost_connection_and_sees_its_streams_closed(
    lab: control.LabInfo,
) -> None:
    with connected(lab, FIRST) as transport:
        channel = opened(transport, "echo $$; cat; echo gone >end; sleep 60")
        pid = int(channel.recv(64))
    until((lab.device(FIRST).home / "end").exists)
    assert is_alive(pid)
    os.killpg(pid, signal.SIGKILL)


def test_many_devices_answer_at_once(lab: control.LabInfo) -> None:
    answers: dict[str, str] = {}

    def one(name: str) -> None:
        answers[name] = ask(lab, name, "sleep 0.2; echo $USER")

    threads = [threading.Thread(target=one, args=(name.name,)) for name in lab.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {name: name for name in (FIRST, SECOND, THIRD, FOURTH)}


# Files


def test_files_go_over_sftp_and_commands_see_them_under_the_same_names(
    lab: control.LabInfo, tmp_path: Path
) -> None:
    home = str(lab.device(FIRST).home)
    data = random.Random(2).randbytes(1_500_000)
    (tmp_path / "model").write_bytes(data)
    with connected(lab, FIRST) as transport:
        files = paramiko.SFTPClient.from_transport(transport)
        assert files is not None
        assert files.normalize(".") == home
        files.mkdir(".hdap", 0o700)
        files.put(str(tmp_path / "model"), ".hdap/model.part")
        files.posix_rename(".hdap/model.part", f"{home}/.hdap/model")
        files.symlink("model", ".hdap/current")
        assert files.stat(".hdap/current").st_size == len(data)
        assert stat.S_ISLNK(files.lstat(".hdap/current").st_mode or 0)
        assert files.readlink(".hdap/current") == "model"
        assert sorted(files.listdir(".hdap")) == ["current", "model"]
        digest = run(transport, "sha256sum <.hdap/current")[1].split()[0].decode()
        assert digest == hashlib.sha256(data).hexdigest()
        files.get(".hdap/current", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == data
        run(transport, "echo second >.hdap/other")
        files.posix_rename(".hdap/other", ".hdap/model")
        with pytest.raises(OSError, match="exists"):
            files.rename(".hdap/model", ".hdap/current")
        with files.open(".hdap/current") as file:
            assert file.read() == b"second\n"
        files.remove(".hdap/current")
        with pytest.raises(FileNotFoundError):
            files.stat(".hdap/nothing")


@pytest.mark.parametrize("path", ["/etc/passwd", "../profile.json", ".hdap/../../host_key", "out"])
def test_sftp_does_not_leave_the_home_folder(lab: control.LabInfo, path: str) -> None:
    with connected(lab, SECOND) as transport:
        run(transport, "ln -sf /etc/passwd out")
        files = paramiko.SFTPClient.from_transport(transport)
        assert files is not None
        with pytest.raises(PermissionError):
            files.open(path)


# Who is let in


def test_another_user_and_another_key_are_refused(lab: control.LabInfo) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    stranger = paramiko.Ed25519Key.from_private_key(_openssh(Ed25519PrivateKey.generate()))
    for options in ({"user": SECOND}, {"user": "root"}, {"key": stranger}):
        with (
            pytest.raises(paramiko.AuthenticationException),
            connected(lab, FIRST, **options),  # type: ignore[arg-type]
        ):
            pass


def _openssh(key: Any) -> Any:
    import io

    from cryptography.hazmat.primitives import serialization as s

    form = (s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption())
    return io.StringIO(key.private_bytes(*form).decode())


def test_a_password_is_not_a_way_in(lab: control.LabInfo) -> None:
    device = lab.device(FIRST)
    transport = paramiko.Transport((device.host, device.port))
    try:
        transport.start_client(timeout=5)
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_password(device.user, "secret")
        assert refused.value.allowed_types == ["publickey"]
    finally:
        transport.close()


def test_secrets_can_be_read_by_their_owner_only(lab: control.LabInfo) -> None:
    folder = lab.state / "lab"
    secret = [lab.identity, folder / "control", folder / "devices" / FIRST / "host_key"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret] == [0o600] * 3
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# Faults


def test_refuse_closes_the_port_and_cuts_who_was_connected(
    lab: control.LabInfo, fault: Any
) -> None:
    with connected(lab, FIRST) as transport:
        fault(FIRST, "refuse")
        until(lambda: not transport.is_active())
    with pytest.raises(ConnectionRefusedError), connected(lab, FIRST):
        pass
    assert ask(lab, SECOND, "echo well") == "well"
    fault(FIRST, "none")
    assert ask(lab, FIRST, "echo back") == "back"


def test_hang_accepts_and_says_nothing_until_mended(lab: control.LabInfo, fault: Any) -> None:
    fault(FIRST, "hang")
    device = lab.device(FIRST)
    with socket.create_connection((device.host, device.port), timeout=0.3) as silent:
        with pytest.raises(TimeoutError):
            silent.recv(1)
        fault(FIRST, "none")
        silent.settimeout(5)
        assert silent.recv(4) == b"SSH-"


def test_hang_after_auth_lets_in_but_answers_no_command(lab: control.LabInfo, fault: Any) -> None:
    fault(FIRST, "hang-after-auth")
    with connected(lab, FIRST) as transport:
        channel = opened(transport, "echo late")
        channel.settimeout(0.3)
        with pytest.raises(TimeoutError):
            channel.recv(1)
        fault(FIRST, "none")
        channel.settimeout(5)
        assert channel.recv(5) == b"late\n"


def test_drop_cuts_the_connection_in_mid_command_as_often_as_asked(
    lab: control.LabInfo, fault: Any
) -> None:
    fault(FIRST, "drop", after_s=0.2, times=1)
    with connected(lab, FIRST) as transport:
        channel = opened(transport, "echo begun; sleep 30")
        assert channel.recv(16) == b"begun\n"
        until(lambda: not transport.is_active())
        assert channel.recv_exit_status() == -1
    assert ask(lab, FIRST, "sleep 0.4; echo whole") == "whole"
    assert control.status(lab.state).device(FIRST).fault == "none"  # type: ignore[union-attr]


def test_drop_is_not_spent_on_a_client_that_has_gone() -> None:
    """Not even where the lab had no time yet to notice that."""
    from hdap_tui.lab import device

    ours, theirs = socket.socketpair()
    connection = SimpleNamespace(get_extra_info=lambda name: {"socket": ours}[name])
    assert device._is_there(connection)
    theirs.send(b"x")
    assert device._is_there(connection)
    assert ours.recv(1) == b"x"
    theirs.close()
    assert not device._is_there(connection)
    ours.close()
    assert not device._is_there(connection)


def test_drop_cuts_a_connection_that_was_already_open(lab: control.LabInfo, fault: Any) -> None:
    with connected(lab, FIRST) as transport:
        assert run(transport, "true")[0] == 0
        fault(FIRST, "drop", after_s=0.1)
        until(lambda: not transport.is_active())


def test_full_disk_fails_writes_of_every_kind_and_of_running_processes(
    lab: control.LabInfo, fault: Any
) -> None:
    script = (
        "import time\n"
        "f = open('grow', 'wb', buffering=0)\n"
        "try:\n"
        "    while True: f.write(b'x'); time.sleep(0.01)\n"
        "except OSError: print('full')\n"
    )
    with connected(lab, FIRST) as transport:
        files = paramiko.SFTPClient.from_transport(transport)
        assert files is not None
        running = opened(transport, f'python3 -S -c "{script}"')
        until((lab.device(FIRST).home / "grow").exists)
        fault(FIRST, "full-disk")
        assert running.recv(16) == b"full\n"
        with pytest.raises(OSError, match="No space left"), files.open("upload", "wb") as upload:
            upload.write(b"data")
        with pytest.raises(OSError, match="No space left"):
            files.mkdir("folder")
        status, _, errors = run(transport, "echo data >written")
        assert status != 0
        assert errors
        assert run(transport, "echo readable")[1] == b"readable\n"
        fault(FIRST, "none")
        assert run(transport, "echo data >written; cat written")[1] == b"data\n"


@pytest.mark.parametrize(
    ("style", "expected"),
    [("bytes", lambda b: len(b) == 4096), ("escapes", lambda b: b"\x1b[2J" in b),
     ("line", lambda b: len(b) == 10_000_000 and b"\n" not in b)],
)  # fmt: skip
def test_garbage_takes_the_place_of_output(
    lab: control.LabInfo, fault: Any, style: str, expected: Callable[[bytes], bool]
) -> None:
    with connected(lab, FIRST) as transport:
        files = paramiko.SFTPClient.from_transport(transport)
        assert files is not None
        run(transport, "echo true words >words")
        fault(FIRST, "garbage", style=style)
        status, output, _ = run(transport, "cat words")
        assert status == 0
        assert expected(output)
        with files.open("words") as file:
            read = file.read()
        assert len(read) == len(b"true words\n")
        assert read != b"true words\n"


def test_host_key_changed_shows_another_key_until_mended(lab: control.LabInfo, fault: Any) -> None:
    fault(FIRST, "host-key-changed")
    device = lab.device(FIRST)
    transport = paramiko.Transport((device.host, device.port))
    try:
        transport.start_client(timeout=5)
        assert transport.get_remote_server_key().fingerprint != device.host_key_sha256
    finally:
        transport.close()
    fault(FIRST, "none")
    assert ask(lab, FIRST, "echo known") == "known"


def test_slow_delays_every_answer(lab: control.LabInfo, fault: Any) -> None:
    with connected(lab, FIRST) as transport:
        fault(FIRST, "slow", delay_s=0.3)
        before = time.monotonic()
        assert run(transport, "echo late") == (0, b"late\n", b"")
        assert time.monotonic() - before >= 0.6


@pytest.mark.parametrize(
    ("device", "kind", "options", "sentence"),
    [
        ("edge-01", "refuze", {}, "did you mean refuse"),
        ("edge-09", "refuse", {}, "has no device 'edge-09'"),
        ("edge-01", "drop", {"after_s": "soon"}, "cannot be set so"),
        ("edge-01", "drop", {"later": 1}, "cannot be set so"),
        ("edge-01", "refuse", {"times": 2}, "Only drop and garbage"),
    ],
)
def test_a_wrong_fault_is_told_in_a_sentence(
    lab: control.LabInfo, device: str, kind: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        control.fault(lab.state, device, kind, **options)
    assert {one.fault for one in control.status(lab.state).devices} == {"none"}  # type: ignore[union-attr]


# Life of a lab


def test_a_drift_is_a_step_from_now_and_zero_mends_it(lab: control.LabInfo) -> None:
    path = lab.device(THIRD).profile
    control.drift(lab.state, THIRD, 30)
    profile = json.loads(path.read_text())
    steady, step = profile["schedule"][-2:]
    assert steady["kind"] == "steady"
    assert (step["kind"], step["percent"], step["until_s"]) == ("step", 30, None)
    assert step["at_s"] == pytest.approx(time.time() - profile["started_at"], abs=5)
    control.drift(lab.state, THIRD, 0)
    old, new = json.loads(path.read_text())["schedule"][-2:]
    assert old["until_s"] == new["at_s"] >= step["at_s"]
    assert new["percent"] == 0
    with pytest.raises(SettingsError, match="per cent"):
        control.drift(lab.state, THIRD, -100)


def test_a_second_up_finds_the_running_lab_and_another_make_up_is_refused(
    lab: control.LabInfo,
) -> None:
    assert control.up(lab.state, 4) == control.status(lab.state)
    assert control.up(lab.state, 4).pid == lab.pid
    with pytest.raises(UserError, match="4 devices with other settings is already running"):
        control.up(lab.state, 5)
    with pytest.raises(UserError, match="already running"):
        control.up(lab.state, 4, plan=Plan(seed=8))


def test_keys_and_ports_stay_over_a_restart_and_foreign_known_hosts_are_kept(
    make_lab: Callable[..., control.LabInfo], tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    foreign = "# mine\ngate.example.org ssh-ed25519 AAAAC3Nz\n|1|c2FsdA==|aGFzaA== ssh-rsa AAAA\n"
    known.write_text(foreign)
    first = make_lab(2, state=tmp_path)
    lines = known.read_text().splitlines()
    assert control.down(tmp_path)
    again = make_lab(2, state=tmp_path)
    assert [(one.port, one.host_key_sha256) for one in again.devices] == [
        (one.port, one.host_key_sha256) for one in first.devices
    ]
    assert again.pid != first.pid
    assert known.read_text().splitlines() == lines
    assert known.read_text().startswith(foreign)
    keys = paramiko.HostKeys(str(tmp_path / "known_hosts"))
    for device in again.devices:
        entry = keys.lookup(f"[{device.host}]:{device.port}")
        assert entry is not None
        assert entry["ssh-ed25519"].fingerprint == device.host_key_sha256
    assert ask(again, FIRST, "echo same key") == "same key"


def test_down_ends_every_process_of_its_devices(
    make_lab: Callable[..., control.LabInfo], tmp_path: Path
) -> None:
    own = make_lab(2, state=tmp_path)
    pids = [
        int(ask(own, name, "setsid nohup sh -c 'trap \"\" TERM HUP; (sleep 300 & wait)' "
                ">/dev/null 2>&1 </dev/null & echo $!"))
        for name in (FIRST, SECOND)
    ]  # fmt: skip
    until(lambda: len(processes.processes(tmp_path / "lab" / "devices")) >= 4)
    assert control.down(tmp_path)
    assert not any(map(is_alive, [own.pid, *pids]))
    assert processes.processes(tmp_path / "lab" / "devices") == []
    assert control.status(tmp_path) is None
    assert not control.down(tmp_path)
    with pytest.raises(UserError, match="No emulated lab is running"):
        control.fault(tmp_path, FIRST, "none")


def test_a_killed_lab_is_not_taken_for_a_running_one_and_its_leftovers_go(
    make_lab: Callable[..., control.LabInfo], tmp_path: Path
) -> None:
    own = make_lab(1, state=tmp_path)
    left = int(ask(own, FIRST, "setsid sleep 300 >/dev/null 2>&1 </dev/null & echo $!"))
    os.kill(own.pid, signal.SIGKILL)
    until(lambda: control.status(tmp_path) is None)
    assert is_alive(left)
    again = make_lab(1, state=tmp_path)
    assert again.pid != own.pid
    assert again.devices == own.devices
    assert not is_alive(left)


def test_a_lab_ends_with_the_process_that_it_belongs_to(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from hdap_tui.lab import control\n"
        "print(control.up(Path(sys.argv[1]), 1, detach=False).pid, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert control.status(tmp_path) is not None
    owner.kill()
    owner.communicate()
    until(lambda: control.status(tmp_path) is None)
    until(lambda: not is_alive(pid))


def test_a_detached_lab_survives_its_starter_and_ends_on_a_signal(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from hdap_tui.lab import control\n" + (
        "print(control.up(Path(sys.argv[1]), 1).pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True
    )
    info = control.status(tmp_path)
    assert info is not None
    assert info.pid == int(done.stdout)
    os.kill(info.pid, signal.SIGTERM)
    until(lambda: layout.holder(tmp_path / "lab" / "lock") is None)
    assert control.status(tmp_path) is None
    assert not (tmp_path / "lab" / "lab.json").exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((layout.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1, meant for edge-01, is al"):
            control.up(tmp_path, 2, port)
    assert control.status(tmp_path) is None


def test_without_asyncssh_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hdap-tui\[lab\]'"):
        control.up(tmp_path, 1)


def test_a_lab_that_does_not_come_up_points_at_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"ended before it was up; see .*lab\.log"):
        control.up(tmp_path, 1)


def test_a_lab_that_takes_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(TimedOutError, match=r"not up after 0\.01 s"):
        control.up(tmp_path, 1, timeout_s=0.01)
    control.down(tmp_path)
    assert control.status(tmp_path) is None


def test_a_deep_folder_is_no_obstacle(
    make_lab: Callable[..., control.LabInfo], tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    assert ask(make_lab(1, state=deep), FIRST, "echo reached") == "reached"


def test_the_fleet_file_of_a_lab_is_read_back(fleet_file: Path, lab: control.LabInfo) -> None:
    settings = load(fleet_file)
    assert [(d.name, d.host, d.port, d.user) for d in settings.devices] == [
        (d.name, d.host, d.port, d.user) for d in lab.devices
    ]
    assert all(d.emulated and d.identity == lab.identity for d in settings.devices)
    assert settings.known_hosts == lab.known_hosts


def test_the_labs_process_stays_light(lab: control.LabInfo) -> None:
    status = Path(f"/proc/{lab.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 80_000
    mapped = Path(f"/proc/{lab.pid}/maps").read_text()
    assert not any(heavy in mapped for heavy in ("torch", "sklearn", "onnxruntime", "numpy"))
