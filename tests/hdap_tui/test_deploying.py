"""A deployment on real SSH: stages, self-test, hooks, locks, faults, interruption, history."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from operating import Hdap, Site, caller, network
from sshd import make_key

from hdap_tui.config import load
from hdap_tui.deploy import Rollout, rollout
from hdap_tui.deploy.owning import is_owned, owning
from hdap_tui.errors import ExitCode
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan
from hdap_tui.library import from_file
from hdap_tui.ssh import pool
from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.target import Target
from hdap_tui.store.database import open_store

NAMES = ("edge-01", "edge-02", "edge-03", "edge-04")
SETTINGS = """
[[models]]
name = "slow"
path = "slow.onnx"
[[models]]
name = "fast"
path = "fast.onnx"
[[models]]
name = "slower"
path = "slower.onnx"
[benchmark]
runs = 7
warmup_runs = 1
warmup_s = 0.0
block_s = 0.1
blocks_min = 2
blocks_max = 2
time_limit_s = 30
[deploy]
stages = ["1", "100 %"]
blocks = 4
margin_percent = 5
"""
WRONG = """#!/bin/sh
# A device whose runtime computes nonsense: everything comes out a little too large.
case " $* " in *" --check "*) exec {python} -c '
import json, subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)
told = json.loads(done.stdout)
for run in told["known"]:
    for output in run:
        output["values"] = [1.2 * v for v in output["values"]]
print(json.dumps(told))
' "$@" ;; esac
exec {python} "$@"
"""


@pytest.fixture(scope="module")
def ground(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(4, plan=Plan(step_at_s=None))
    folder = tmp_path_factory.mktemp("ground")
    network(folder / "slow.onnx", layers=24)
    network(folder / "fast.onnx", layers=1)
    network(folder / "slower.onnx", layers=30)
    return Site(lab, folder / "fleet.toml")


@pytest.fixture
def site(ground: Site) -> Iterator[Site]:
    """The lab with clean devices and an empty store."""
    for name in NAMES:
        control.fault(ground.lab.state, name, "none")
        home = ground.lab.device(name).home
        for entry in ("current", "previous", "older", "locks", "jobs"):
            path = home / ".hdap" / entry
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                missing_ok=True
            )
    for old in ground.lab.state.glob("fleet.db*"):
        old.unlink()
    configure(ground)
    yield ground
    for name in NAMES:
        control.fault(ground.lab.state, name, "none")


def configure(site: Site, deploy: str = "") -> None:
    site.file.write_text(fleet_toml(site.lab, SETTINGS + deploy))


@pytest.fixture
def hdap(site: Site, capsys: pytest.CaptureFixture[str]) -> Hdap:
    return caller(site, capsys)


def link(site: Site, device: str, name: str = "current") -> str:
    path = site.lab.device(device).home / ".hdap" / name
    return path.readlink().stem if path.is_symlink() else ""


def digest(hdap: Hdap, name: str) -> str:
    return next(m["digest"] for m in hdap("models")[1]["models"] if m["name"] == name)


def running(site: Site, hdap: Hdap) -> list[str]:
    names = {m["digest"]: m["name"] for m in hdap("models")[1]["models"]}
    return [names.get(link(site, device), "") for device in NAMES]


def report_of(report: Any) -> str:
    """Return what a failed assertion should say of a deployment."""
    return json.dumps(report, indent=1)


def token_of(site: Site) -> str:
    """Return what the locks of the first deployment say."""
    from hdap_tui.store import deployments

    store = open_store(load(site.file).database)
    try:
        return deployments.kept_plan(store, 1)[1]
    finally:
        store.close()


def locks(site: Site, device: str) -> list[str]:
    folder = site.lab.device(device).home / ".hdap" / "locks"
    return [os.readlink(p) for p in folder.iterdir()] if folder.is_dir() else []


def stepwise(site: Site, number: int) -> list[tuple[str, str, str]]:
    from hdap_tui.store import deployments

    store = open_store(load(site.file).database)
    try:
        return [(s.device, s.step, s.phase) for s in deployments.steps(store, number)]
    finally:
        store.close()


def test_a_dry_run_says_of_every_device_what_would_be_done_and_writes_nothing(
    site: Site, hdap: Hdap
) -> None:
    configure(site, 'hook = "true"\n')
    control.fault(site.lab.state, "edge-03", "refuse")
    before = sorted(p.name for p in (site.lab.device("edge-02").home / ".hdap").rglob("*"))
    status, plan, _ = hdap("deploy", "fast", "--dry-run", "--stages", "1, 50 %, 100 %")
    assert status == ExitCode.PARTLY
    assert [len(stage) for stage in plan["stages"]] == [1, 1, 2]
    devices = {d["device"]: d for d in plan["devices"]}
    assert devices["edge-03"] == {
        "device": "edge-03", "stage": devices["edge-03"]["stage"], "will_run": "fast",
        "runs": "slow", "reachable": False, "error": "refused", "hook": "true",
    }  # fmt: skip
    assert devices["edge-02"]["bytes"] > 0
    assert devices["edge-02"]["runs"] == "slow"
    after = sorted(p.name for p in (site.lab.device("edge-02").home / ".hdap").rglob("*"))
    assert after == before
    assert hdap("deployments")[1]["deployments"] == []


def test_a_deployment_writes_every_step_down_and_no_reader_finds_a_gap(
    site: Site, hdap: Hdap
) -> None:
    home = site.lab.device("edge-01").home
    assert hdap("deploy", "fast", "--dry-run")[0] == ExitCode.DONE  # knows the models now
    fast, slow = digest(hdap, "fast"), digest(hdap, "slow")
    models = home / ".hdap" / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / f"{fast}.onnx").write_bytes(b"damaged")
    old, recent = models / f"{'0' * 64}.onnx", models / f"{'1' * 64}.onnx"
    for path in (old, recent):
        path.write_bytes(b"nothing")
    os.utime(old, (time.time() - 7200,) * 2)
    clock = home / ".lab" / "bin" / "date"  # off by years
    clock.write_text('#!/bin/sh\n[ "$1" = +%s ] && exec echo 1700000000\nexec /bin/date "$@"\n')
    clock.chmod(0o755)
    shutil.copy(site.folder / "slow.onnx", models / f"{slow}.onnx")
    (home / ".hdap" / "current").symlink_to(f"models/{slow}.onnx")
    with reading(home / ".hdap" / "current") as read:
        status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01,edge-02")
        assert status == ExitCode.DONE, report_of(report)
        assert running(site, hdap) == ["fast", "fast", "", ""]
        _, answer, _ = hdap("rollback", "--yes", "--select", "edge-01")
        assert (answer["rolled_back"], answer["without_previous"]) == (["edge-01"], [])
    clock.unlink()
    assert running(site, hdap)[0] == "slow"
    assert read.count(0) == 0
    assert len(read) > 50
    shown = hdap("deployments", "show")[1]
    assert (shown["state"], shown["stage"], shown["stages"]) == ("finished", 2, 2)
    assert [(d["device"], d["stage"], d["outcome"]) for d in shown["per_device"]] == [
        ("edge-01", 1, "kept"),
        ("edge-02", 2, "kept"),
    ]
    done = [s for s in stepwise(site, report["deployment"]) if s[0] == "edge-01"]
    wanted = ("upload", "self-test", "switch", "hook", "A/B measurement")
    assert done == [("edge-01", w, p) for w in wanted for p in ("begun", "done")]
    assert locks(site, "edge-01") == ["free"]
    assert not old.exists()
    assert recent.exists()
    recent.unlink()


def test_a_device_that_computes_something_else_is_not_switched(site: Site, hdap: Hdap) -> None:
    configure(site, 'max_failures = "2"\n')
    python = site.lab.device("edge-03").home / ".lab" / "bin" / "python3"
    right = python.read_text()
    python.write_text(WRONG.format(python=sys.executable))
    try:
        status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01,edge-03")
    finally:
        python.write_text(right)
    assert status == ExitCode.PARTLY
    assert running(site, hdap)[2] in ("", "slow")
    wrong = next(d for d in report["per_device"] if d["device"] == "edge-03")
    assert "computes the model wrong" in wrong["detail"]
    assert running(site, hdap)[0] == "fast"


def test_a_slower_model_goes_back_with_its_whole_stage(site: Site, hdap: Hdap) -> None:
    status, report, _ = hdap("deploy", "slower", "--yes", "--stages", "2")
    assert status == ExitCode.FAILED
    assert report["state"] == "rolled back"
    assert sorted(report["taken_back"]) == ["edge-01", "edge-02"]
    assert running(site, hdap) == ["slow", "slow", "", ""]
    assert "not measured faster" in report["stopped"]


def test_after_a_deployment_was_taken_back_a_roll_back_goes_on_from_before_it(
    site: Site, hdap: Hdap
) -> None:
    both = ("--yes", "--select", "edge-01,edge-02")
    assert hdap("deploy", "fast", *both)[0] == ExitCode.DONE
    assert hdap("deploy", "slower", "--yes", "--select", "edge-01")[0] == ExitCode.FAILED
    assert running(site, hdap)[:2] == ["fast", "fast"]
    assert link(site, "edge-01", "previous") == digest(hdap, "slow")
    assert hdap("deployments", "check")[1]["devices"][0]["finding"] == "as recorded"
    status, report, _ = hdap("rollback", *both)
    assert (status, sorted(report["rolled_back"])) == (ExitCode.DONE, ["edge-01", "edge-02"])
    assert running(site, hdap)[:2] == ["slow", "slow"]
    assert hdap("rollback", *both)[0] == ExitCode.REFUSED


def test_a_roll_back_leaves_alone_what_does_not_run_the_latest(site: Site, hdap: Hdap) -> None:
    """Else that device would go a step further back than the others."""
    both = ("--yes", "--select", "edge-01,edge-02")
    middle = str(network(site.folder / "middle.onnx", layers=5))
    status, report, _ = hdap("deploy", middle, *both)
    assert status == ExitCode.DONE, report_of(report)
    fails = "hook = 'case $HDAP_ACTION$HOME in deploy*edge-02*) exit 7 ;; esac'\n"
    configure(site, f'{fails}max_failures = "1"\n')
    assert hdap("deploy", "fast", *both)[0] == ExitCode.PARTLY
    assert link(site, "edge-02") != link(site, "edge-01") == digest(hdap, "fast")
    status, report, _ = hdap("rollback", *both)
    assert (status, report["rolled_back"], report["not_on_latest"]) == (
        ExitCode.DONE, ["edge-01"], ["edge-02"],
    )  # fmt: skip
    assert link(site, "edge-01") == link(site, "edge-02")
    assert sorted(hdap("rollback", *both)[1]["rolled_back"]) == ["edge-01", "edge-02"]
    assert running(site, hdap)[:2] == ["slow", "slow"]


@pytest.mark.parametrize(("fault", "options"), [("full-disk", {}), ("drop", {"after_s": 0.02})])
def test_a_fault_on_one_device_costs_only_that_device(
    site: Site, hdap: Hdap, fault: str, options: dict[str, float]
) -> None:
    configure(site, 'max_failures = "1"\n')
    models = site.lab.device("edge-04").home / ".hdap" / "models"
    shutil.rmtree(models, ignore_errors=True)  # so that there is something to write
    control.fault(site.lab.state, "edge-04", fault, **options)
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-03,edge-04")
    control.fault(site.lab.state, "edge-04", "none")
    assert status == ExitCode.PARTLY, report_of(report)
    assert report["state"] == "partly"
    assert running(site, hdap)[2] == "fast"
    assert link(site, "edge-04") in ("", digest(hdap, "slow"))
    failed = [d for d in report["per_device"] if "error" in d]
    assert [d["device"] for d in failed] == ["edge-04"]


def test_more_failures_than_allowed_take_the_stage_back(site: Site, hdap: Hdap) -> None:
    configure(site, 'max_failures = "0"\n')
    control.fault(site.lab.state, "edge-04", "refuse")
    status, report, _ = hdap("deploy", "fast", "--yes", "--stages", "1, 2")
    assert status == ExitCode.PARTLY
    assert running(site, hdap) == ["fast", "fast", "slow", ""]
    assert "at most 0 may" in report["stopped"]
    assert report["taken_back"] == ["edge-03"]


def test_the_hook_knows_the_model_and_a_hook_that_fails_takes_the_device_back(
    site: Site, hdap: Hdap
) -> None:
    note = 'echo "$HDAP_ACTION $HDAP_DIGEST $(readlink "$HDAP_MODEL")" >>hook.log'
    fails = "case $HOME in *edge-02*) [ $HDAP_ACTION = rollback ];; esac"
    configure(site, f"hook = '''{note}; {fails} || {{ echo no service; exit 7; }}'''\n"
              'health = "test -s hook.log"\nmax_failures = "1"\n')  # fmt: skip
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01,edge-02")
    assert status == ExitCode.PARTLY
    fast, slow = digest(hdap, "fast"), digest(hdap, "slow")
    logs = {n: (site.lab.device(n).home / "hook.log").read_text().split("\n") for n in NAMES[:2]}
    assert logs["edge-01"] == [f"deploy {fast} models/{fast}.onnx", ""]
    assert logs["edge-02"] == [
        f"deploy {fast} models/{fast}.onnx", f"rollback {slow} models/{slow}.onnx", "",
    ]  # fmt: skip
    assert running(site, hdap)[:2] == ["fast", "slow"]
    failed = next(d for d in report["per_device"] if d["device"] == "edge-02")
    assert "status 7: no service" in failed["detail"]
    for name in NAMES:
        (site.lab.device(name).home / "hook.log").unlink(missing_ok=True)


def test_a_hook_that_hangs_is_ended_with_all_its_children(site: Site, hdap: Hdap) -> None:
    mark = f"{site.folder}/sleeper"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", mark)
    configure(site, f"hook = '''[ $HDAP_ACTION = rollback ] || {{ {mark} 300 & {mark} 300; }}'''\n"
              "hook_timeout_s = 1\n")  # fmt: skip
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01")
    assert status in (ExitCode.FAILED, ExitCode.TIMED_OUT)
    assert "did not end within 1 s" in report["per_device"][0]["detail"]
    assert running(site, hdap)[0] == "slow"
    assert locks(site, "edge-01") == ["free"]
    until = time.monotonic() + 10
    while (left := named(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


def test_two_deployments_at_once_are_refused_and_a_locked_device_says_who(
    site: Site, hdap: Hdap
) -> None:
    with owning(site.lab.state):
        assert is_owned(site.lab.state)
        status, _, said = hdap("deploy", "fast", "--yes")
        assert (status, "Another deployment" in said) == (ExitCode.REFUSED, True)
        assert hdap("rollback", "--yes")[0] == ExitCode.REFUSED
    assert not is_owned(site.lab.state)
    hold(site, "edge-01", 600)
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01")
    assert status == ExitCode.REFUSED
    assert (
        "anna@desk deploys to it; the lock ends by itself within 10 min"
        in (report["per_device"][0]["detail"])
    )
    assert link(site, "edge-01") == ""
    hold(site, "edge-01", 600, boot="another-boot")  # the device was restarted meanwhile
    assert hdap("deploy", "fast", "--yes", "--select", "edge-01")[0] == ExitCode.DONE


def test_a_roll_back_to_nothing_leaves_no_lock(site: Site, hdap: Hdap) -> None:
    assert hdap("deploy", "fast", "--yes", "--select", "edge-01")[0] == ExitCode.DONE
    (site.lab.device("edge-01").home / ".hdap" / "previous").unlink()
    status, _, said = hdap("rollback", "--yes", "--select", "edge-01")
    assert (status, "no previous model" in said) == (ExitCode.FAILED, True)
    assert locks(site, "edge-01") == ["free"]


def hold(
    site: Site, device: str, seconds: int, boot: str = "", token: str = "0123456789abcdef"
) -> None:
    """Lock a device as another operator would."""
    folder = site.lab.device(device).home / ".hdap" / "locks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))
    boot = boot or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (folder / "7").symlink_to(f"{token} {boot} {uptime + seconds} anna@desk")


def test_what_somebody_else_put_on_a_device_is_left_alone_and_can_be_taken_over(
    site: Site, hdap: Hdap
) -> None:
    home = site.lab.device("edge-01").home / ".hdap"
    own = network(site.folder / "own.onnx", layers=24, note="made on the device")
    name = f"models/{_sha(own)}.onnx"
    shutil.copy(own, home / name)
    (home / "current").symlink_to(name)
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01")
    assert status == ExitCode.FAILED
    assert "somebody else has changed it" in report["per_device"][0]["detail"]
    assert link(site, "edge-01") == _sha(own)

    status, found, _ = hdap("deployments", "check", "--select", "edge-01,edge-02")
    assert status == ExitCode.DONE, report_of(found)
    assert [(d["finding"], d["recorded"]) for d in found["devices"]] == [
        ("changed", "slow"), ("nothing deployed", "slow"),
    ]  # fmt: skip
    assert found["devices"][0]["runs"] == f"found@{_sha(own)[:8]}"
    status, report, _ = hdap("deploy", "fast", "--yes", "--select", "edge-01")
    assert status == ExitCode.DONE, report_of(report)
    assert link(site, "edge-01", "previous") == _sha(own)


def test_a_model_whose_file_is_gone_is_one_sentence(site: Site, hdap: Hdap) -> None:
    lost = network(site.folder / "lost.onnx", layers=2)
    store = open_store(load(site.file).database)
    from_file(store, lost)
    store.close()
    lost.unlink()
    status, _, said = hdap("deploy", "lost", "--yes")
    assert status == ExitCode.FAILED
    assert "is gone; put it back" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stages", "some"), "--stages"),
        (("--pause", "long"), "--pause"),
        (("--max-failures", "few"), "--max-failures"),
        (("--resume", "--abort"), "name one of them"),
        (("--resume", "--stages", "1"), "keeps to the plan"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    site: Site, hdap: Hdap, arguments: tuple[str, ...], words: str
) -> None:
    status, document, said = hdap("deploy", *(("fast",) if len(arguments) < 2 else ()), *arguments)
    assert (status, document) == (ExitCode.USAGE, None)
    assert words in said


def test_between_two_stages_devices_that_became_slower_or_died_end_it(
    site: Site, hdap: Hdap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "FRESH_S", 0.0)
    may_go_on = Rollout._may_go_on
    fast = digest(hdap, "fast")

    def meanwhile(self: Rollout, index: int) -> bool:
        if index == 3:  # somebody changes a device that was switched
            home = site.lab.device("edge-01").home / ".hdap"
            (home / "current").unlink()
            (home / "current").symlink_to(f"models/{digest_of_slow}.onnx")
        return may_go_on(self, index)

    digest_of_slow = digest(hdap, "slow")
    monkeypatch.setattr(Rollout, "_may_go_on", meanwhile)
    configure(site, 'max_failures = "0"\n')
    _, report, _ = hdap("deploy", "fast", "--yes", "--stages", "1, 2, 3")
    assert "before stage 3 devices that were switched fail: edge-01" in report["stopped"]
    assert [link(site, n) for n in NAMES] == [digest_of_slow, digest_of_slow, "", ""]
    assert fast not in [link(site, n) for n in NAMES]


# ------------------------------------------------------------------------------------ interruption


def start(site: Site, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hdap_tui", "--config", str(site.file), *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def when(site: Site, step: str, process: subprocess.Popen[bytes], phase: str = "begun") -> None:
    """Wait until a deployment's journal says that a step has begun."""
    until = time.monotonic() + 40
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        if any(s[1:] == (step, phase) for s in stepwise(site, 1)):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {step}")


@pytest.mark.parametrize("step", ["switch", "A/B measurement done"])
def test_a_killed_deployment_goes_on_and_leaves_nothing_behind(
    site: Site, hdap: Hdap, step: str
) -> None:
    process = start(site, "deploy", "fast", "--yes")
    when(site, *((step, process) if step == "switch" else ("A/B measurement", process, "done")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    slow, fast = digest(hdap, "slow"), digest(hdap, "fast")
    assert {link(site, n) for n in NAMES} <= {"", slow, fast}
    assert hdap("deployments")[1]["deployments"][0]["state"] == "interrupted"
    status, _, said = hdap("deploy", "fast", "--yes")
    assert status == ExitCode.REFUSED
    assert '"hdap deploy --resume"' in said

    for name in NAMES[:1]:  # as if it had been killed before it gave the device free
        hold(site, name, 600, token=token_of(site))
    status, report, _ = hdap("deploy", "--resume", "--yes")
    assert status == ExitCode.DONE, report_of(report)
    assert report["state"] == "finished"
    assert report["deployment"] == 1
    assert running(site, hdap) == ["fast"] * 4
    assert len([d for d in report["per_device"] if d.get("verdict") == "faster"]) == 4
    assert [locks(site, n) for n in NAMES] == [["free"]] * 4
    assert hdap("deploy", "--resume", "--yes")[0] == ExitCode.REFUSED
    assert runners(site) == []


def test_where_the_login_is_refused_a_resumed_deployment_tries_it_once(
    site: Site, hdap: Hdap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's PerSourcePenalties lock out whoever repeats it."""
    strange = make_key(site.folder / "strange")
    configure(site, 'max_failures = "1"\n')
    before, at, own = site.file.read_text().partition('name = "edge-04"')
    own = own.replace("emulated = true", f'identity = "{strange}"', 1)
    site.file.write_text(before + at + own)
    process = start(site, "deploy", "fast", "--yes", "--select", "edge-03,edge-04")
    when(site, "switch", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    tried: list[str] = []

    def counted(target: Target, *arguments: Any, **options: Any) -> Connection:
        tried.append(target.name)
        return connect(target, *arguments, **options)

    monkeypatch.setattr(pool, "connect", counted)
    status, report, _ = hdap("deploy", "--resume", "--yes")
    assert status == ExitCode.PARTLY, report_of(report)
    failed = [(d["device"], d["error"]) for d in report["per_device"] if "error" in d]
    assert failed == [("edge-04", "authentication")]
    assert tried.count("edge-04") == 1
    assert locks(site, "edge-03") == ["free"]


def test_a_killed_deployment_can_be_taken_back_whole(site: Site, hdap: Hdap) -> None:
    process = start(site, "deploy", "fast", "--yes")
    when(site, "A/B measurement", process, "done")  # the first stage is proven
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, report, _ = hdap("deploy", "--abort", "1", "--yes")
    assert status == ExitCode.DONE, report_of(report)
    assert report["state"] == "rolled back"
    assert {link(site, n) for n in NAMES} <= {"", digest(hdap, "slow")}
    assert {d["model"] for d in hdap("devices")[1]["devices"]} == {"slow"}
    assert hdap("deploy", "fast", "--yes", "--select", "edge-01")[0] == ExitCode.DONE


def test_an_interrupted_deployment_takes_its_stage_back_at_once(site: Site, hdap: Hdap) -> None:
    process = start(site, "deploy", "fast", "--yes", "--stages", "2")
    when(site, "A/B measurement", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=40)
    assert process.returncode == ExitCode.INTERRUPTED
    assert b"Traceback" not in said
    assert hdap("deployments")[1]["deployments"][0]["state"] == "rolled back"
    assert {link(site, n) for n in NAMES} <= {"", digest(hdap, "slow")}
    assert runners(site) == []


@contextmanager
def reading(path: Path) -> Iterator[list[int]]:
    """Read a file all the time, beside; yields how much each read found, 0 where nothing."""
    ended, found = threading.Event(), [1]

    def read() -> None:
        while not ended.is_set():
            try:
                found.append(len(path.read_bytes()))
            except OSError:
                found.append(0)
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        ended.set()
        reader.join()


def named(text: str) -> list[str]:
    """Return the command lines of running processes that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def runners(site: Site) -> list[str]:
    """Return the runners that go on on the devices, once they had time to end."""
    until = time.monotonic() + 10
    mark = str(site.lab.device("edge-01").home.parent.parent)
    while (left := [n for n in named(mark) if "runner" in n]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def _sha(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
