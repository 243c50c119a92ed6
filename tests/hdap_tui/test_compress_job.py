"""A compression job on a real fleet, killed, resumed, and compared with an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from operating import JOBS, Site, few_digits, listed, on_terminal

from engine.events import Advanced, Scored
from hdap_tui.cli.app import run
from hdap_tui.errors import ExitCode
from hdap_tui.jobs import control as jobs
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan

SETTINGS = f"""{JOBS}
samples = 10
evaluations = 20
outer_iterations = 1
max_extra_pruning = 0.5
maximum_drop = 100
alpha = 0.3
accuracy_images = 32
finalists = 1
surrogate = "ridge"
threads = 2
executor = "threads"
[compression.finetune]
epochs = 2
lr = 0.05
threads = 1
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(2, plan=Plan(step_at_s=None))
    file = tmp_path_factory.mktemp("site") / "fleet.toml"
    file.write_text(fleet_toml(lab, SETTINGS))
    few_digits(file.parent)
    return Site(lab, file)


def hdap(site: Site, *arguments: str) -> int:
    return run(["--config", str(site.file), *arguments], lambda _context: 0)


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> JobFolder:
    assert hdap(site, "compress") == ExitCode.FAILED, "without a sweep it must not start"
    assert hdap(site, "sweep") == ExitCode.DONE
    assert hdap(site, "compress") == ExitCode.DONE
    return jobs.find(site.jobs, None)


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def pid_of(folder: JobFolder) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"hdap_tui.jobs.worker" in words and str(folder.path).encode() in words:
                return int(entry.name)
    raise AssertionError(f"no process works on {folder.name}")


def steps_done(folder: JobFolder) -> set[str]:
    return {e.step for e in folder.events()[0] if isinstance(e, Advanced | Scored)}


def test_a_job_ends_in_an_artifact_with_its_lineage(site: Site, undisturbed: JobFolder) -> None:
    assert undisturbed.state == "finished"
    result = undisturbed.result or {}
    metrics = result["metrics"]
    assert Path(result["path"]).is_file()
    assert metrics["parameters_after"] < metrics["parameters_before"]
    assert metrics["precision"] in {"fp32", "int8"}
    assert set(metrics["measured_speedups"]) == {"fp32", "int8"}
    assert metrics["emulated"] is True
    assert 0 < metrics["test_accuracy"] <= 1
    recipe = metrics["recipe"]
    assert (recipe["steps"], recipe["data"]) == (
        [{"method": "search"}, {"method": "static"}],
        str(site.folder / "few.npz"),
    )
    assert recipe["compression"]["evaluations"] == 20
    assert recipe["compression"]["surrogate"] == "ridge"
    assert recipe["finetune"]["epochs"] == 2
    assert recipe["margin_percent"] == 2

    from hdap_tui.store import models
    from hdap_tui.store.database import open_store

    store = open_store(site.lab.state / "fleet.db")
    try:
        line = [row.name for row in models.lineage(store, result["digest"])]
    finally:
        store.close()
    assert line == [result["model"], "resnet20-digits"]


def test_what_is_known_of_it_is_shown_in_readable_lines(
    site: Site, undisturbed: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    model = (undisturbed.result or {})["model"]
    assert hdap(site, "models", "show", model) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "channels kept in" in shown
    assert "step 1" in shown
    assert "surrogate A" in shown
    assert "{" not in shown


def test_its_progress_is_rebuilt_from_its_folder(undisturbed: JobFolder) -> None:
    progress = undisturbed.progress()
    assert progress.state == "finished"
    assert progress.fraction == 1
    assert {"sample", "search", "finetune", "export", "quantize", "decide"} <= set(progress.steps)
    assert len(progress.curves["accuracy"]) == 2
    numbers = [e.sequence for e in undisturbed.events()[0]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_killed_twice_and_resumed_it_ends_in_the_same_model(
    site: Site, undisturbed: JobFolder
) -> None:
    other = JobFolder.create(site.jobs, "compress", undisturbed.request)
    for name in ("measurements.jsonl", "facts.json", "decision.json"):
        shutil.copy(undisturbed.work / name, other.work / name)
    jobs._spawn(other)
    for step in ("search", "finetune"):
        wait_for(lambda step=step: step in steps_done(other))
        os.kill(pid_of(other), signal.SIGKILL)
        wait_for(lambda: other.state == "interrupted")
        assert other.result is None
        jobs.resume(other)
    wait_for(lambda: other.state in {"finished", "failed"})
    assert other.state == "finished", other.result
    # The same recorded measurements, so the same model to the last bit.
    assert (other.result or {})["digest"] == (undisturbed.result or {})["digest"]
    recorded = [(f / "measurements.jsonl").read_text() for f in (undisturbed.work, other.work)]
    assert recorded[0] == recorded[1]


@dataclass(frozen=True)
class Stopped:
    """A job that was cancelled while three looked on, each with `hdap jobs follow`."""

    folder: JobFolder
    measured: str
    """Its record of measurements then."""
    left: list[Path]
    """What lay on the devices then."""
    drawn: tuple[int, str, str]
    dumb: tuple[int, str, str]
    """On a terminal that can draw nothing."""
    program: tuple[int, str, str]
    """With --json."""


@pytest.fixture(scope="module")
def stopped(site: Site, undisturbed: JobFolder) -> Stopped:
    request = undisturbed.request
    request["compression"] |= {"seed": 9, "samples": 200}
    folder = jobs.start(site.jobs, "compress", request)
    follow = ("-m", "hdap_tui", "--config", str(site.file), "jobs", "follow", folder.name)
    with ThreadPoolExecutor() as pool:
        drawn = pool.submit(on_terminal, *follow)
        dumb = pool.submit(on_terminal, *follow, TERM="dumb")
        program = pool.submit(on_terminal, *follow, "--json")
        log = folder.work / "measurements.jsonl"
        wait_for(lambda: log.exists() and log.read_text().count("\n") >= 1)
        assert hdap(site, "jobs", "cancel", folder.name, "--yes") == ExitCode.DONE
    wait_for(lambda: folder.state == "cancelled")
    left = [p for d in site.lab.devices for p in (d.home / ".hdap" / "jobs").glob("*")]
    ends = (drawn.result(), dumb.result(), program.result())
    return Stopped(folder, log.read_text(), left, *ends)


def test_cancelled_it_keeps_what_it_measured_and_goes_on_from_there(
    site: Site, stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped.left == [], "a cancelled job leaves nothing running on a device"
    folder, log = stopped.folder, stopped.folder.work / "measurements.jsonl"
    capsys.readouterr()
    assert hdap(site, "jobs", "list", "--json") == ExitCode.DONE
    listed = {j["job"]: j["state"] for j in json.loads(capsys.readouterr().out)["jobs"]}
    assert listed[folder.name] == "cancelled"
    jobs.resume(folder)
    wait_for(lambda: log.read_text().count("\n") > stopped.measured.count("\n"))
    assert log.read_text().startswith(stopped.measured)
    jobs.cancel(folder)
    wait_for(lambda: folder.state == "cancelled")


def test_who_follows_it_on_a_terminal_sees_every_device_that_it_measures(
    site: Site, stopped: Stopped
) -> None:
    status, output, shown = stopped.drawn
    assert status == ExitCode.INTERRUPTED
    assert output == f"{stopped.folder.name}: cancelled\n"
    measured = {json.loads(line)["latency"]["device"] for line in stopped.measured.splitlines()}
    assert all(f"{device} (emulated)" in shown for device in measured)
    assert re.search(r"\b(connecting|upload|timing|starting|waiting) 1\b", shown)  # how many
    assert re.search(r"\(emulated\) +timing\b.* \d+ s", shown)
    for status, output, shown in (stopped.dumb, stopped.program):
        assert status == ExitCode.INTERRUPTED
        assert output
        assert "(emulated)" not in shown
        assert "\x1b" not in shown
    assert {one["stage"] for one in listed(site.file).values()} == {""}


def test_a_job_that_cannot_be_done_says_why_in_one_sentence(
    site: Site, undisturbed: JobFolder
) -> None:
    request = undisturbed.request
    request["weights"] = str(site.file)  # no weights at all
    folder = JobFolder.create(site.jobs, "compress", request)
    jobs._spawn(folder)
    wait_for(lambda: folder.state == "failed")
    assert "not a readable safetensors file" in (folder.result or {})["error"]
    assert folder.progress().state == "failed"


def test_each_cluster_can_have_a_model_of_its_own_which_goes_to_its_devices(
    site: Site, undisturbed: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    request = undisturbed.request
    names = [name for cluster in request["clusters"] for name in cluster["members"]]
    parts = (names[:1], names[1:])
    request["clusters"] = [
        {"id": number, "size": len(part), "devices": part, "members": part, "levels": []}
        for number, part in enumerate(parts)
    ]
    request["compression"] |= {"per_cluster": "always", "quantize": "never"}
    request["compression"]["finetune"]["epochs"] = 1
    folder = jobs.start(site.jobs, "compress", request, measured=undisturbed)
    wait_for(lambda: folder.state in {"finished", "failed"})
    assert folder.state == "finished", folder.result
    progress = folder.progress()
    assert {"search (cluster A)", "decide (cluster A)", "search (cluster B)"} <= set(progress.steps)
    said = "\n".join(progress.log)
    assert not re.search(r"cluster-?\d|cluster \d+\b(?!\.)", said), "clusters go by letters"
    result = folder.result or {}
    assert result["models"][0]["model"].endswith("-A")
    same = result["models"][0]["digest"] == result["models"][1]["digest"]
    assert result["forecast"]["own_fleet"] >= result["forecast"]["one_fleet"]
    for made, part in zip(result["models"], parts, strict=True):
        assert hdap(site, "deploy", made["model"], "--dry-run", "--json") == ExitCode.DONE
        planned = json.loads(capsys.readouterr().out.strip())
        goes_to = {name for stage in planned["stages"] for name in stage}
        assert goes_to == (set(names) if same else set(part))
