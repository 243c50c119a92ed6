"""The pane of a job is rebuilt from its events, and jobs outlive the dashboard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Open
from dashboard_fake import FakeSource, fleet, job_stream

from engine.events import Reporter, to_json
from hdap_tui.context import Context
from hdap_tui.dashboard import announce
from hdap_tui.dashboard.follow import Follower
from hdap_tui.dashboard.jobwatch import JobWatch
from hdap_tui.dashboard.source import FleetSource
from hdap_tui.jobs.folder import EventFile, JobFolder


async def test_the_pane_is_rebuilt_from_the_event_file(open_app: Open, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text("".join(f"{line}\n" for line in job_stream(1.0)))
    async with open_app(FakeSource(fleet(), events), size=(160, 48)) as hands:
        await hands.press("4")
        for said in ("✓ trace", "24/24 finished", "400/400", "fine-tune",
                     "best predicted latency", "epoch 10: 0.98",
                     "surrogate: cluster A 2.1 %",
                     "compress-2  running"):  # fmt: skip
            await hands.sees(said)
        braille = sum(0x2800 < ord(c) < 0x2900 for c in hands.text())
        assert braille > 60


async def test_the_pane_follows_what_is_appended(open_app: Open, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    lines = job_stream(0.46)
    half = 20
    events.write_text("".join(f"{line}\n" for line in lines[:half]) + lines[half][:20])
    async with open_app(FakeSource(fleet(), events)) as hands:
        await hands.press("4")
        await hands.sees("▶ measure")
        with events.open("a") as file:
            file.write(lines[half][20:] + "\n")
            file.writelines(f"{line}\n" for line in lines[half + 1 :])
        await hands.sees("▶ search")
        await hands.sees("260/400")


class Two(FakeSource):
    """Each job has a stream of its own in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def job_events(self, job, offset):  # type: ignore[no-untyped-def]
        self.events = self.folder / f"{job.id}.jsonl"
        return super().job_events(job, offset)


async def test_another_job_shows_its_own_stream(open_app: Open, tmp_path: Path) -> None:
    (tmp_path / "compress-2.jsonl").write_text("".join(f"{line}\n" for line in job_stream()))
    written: list[str] = []
    tell = Reporter("compress-1", lambda event: written.append(to_json(event) + "\n"))
    tell.started("job", weight=10)
    tell.started("only step", total=2, weight=10)
    tell.failed("only step", "no [/] room")
    (tmp_path / "compress-1.jsonl").write_text("".join(written))
    async with open_app(Two(tmp_path)) as hands:
        await hands.press("4")
        await hands.sees("▶ search")
        await hands.press("down")
        await hands.sees("✗ only step")
        assert "▶ search" not in hands.text()
        await hands.sees("no [/] room")


async def test_a_job_without_a_search_shows_no_empty_curve(open_app: Open, tmp_path: Path) -> None:
    for job, scored in (("compress-2", True), ("compress-1", False)):  # runs; was broken off
        written: list[str] = []
        tell = Reporter(job, lambda event, to=written: to.append(to_json(event) + "\n"))
        tell.started("finetune", total=2)
        if scored:
            tell.scored("finetune", "accuracy", 1, 0.9)
        (tmp_path / f"{job}.jsonl").write_text("".join(written))
    async with open_app(Two(tmp_path), size=(160, 48)) as hands:
        await hands.press("4")
        await hands.sees("epoch 1: 0.9")
        assert "scored" not in hands.text()
        await hands.press("down")
        await hands.sees("Nothing was searched.")
        await hands.sees("Nothing was trained.")


async def test_cancel_and_resume_name_the_job_under_the_cursor(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("4", "down", "u")
        await hands.until(lambda: hands.source.ran)
        assert hands.source.ran[0] == ("jobs resume", {"job": "compress-1", "detach": True})
        await hands.press("up", "x")
        await hands.sees("Stop a job")
        await hands.press("y")
        await hands.until(lambda: len(hands.source.ran) == 2)
        assert hands.source.ran[1] == ("jobs cancel", {"job": "compress-2", "yes": False})


async def test_a_named_job_is_selected(open_app: Open) -> None:
    async with open_app() as hands:
        hands.app.desk.type("jobs show compress-1")
        await hands.sees("compress-1  interrupted")
        assert hands.view == "jobs"


def test_a_stream_that_begins_anew_is_read_from_its_start(tmp_path: Path) -> None:
    events = tmp_path / "e.jsonl"
    lines = [f"{line}\n" for line in job_stream()]
    events.write_text("".join(lines))
    source = FakeSource(events=events)
    follower, row = Follower(source, "compress-2"), source.fleet.jobs[0]
    first = follower.read(row)
    assert first is not None
    assert follower.read(row) is None

    class Shrunk(FakeSource):
        def job_events(self, job, offset):  # type: ignore[no-untyped-def]
            return super().job_events(job, 0) if offset == 0 else ((), 0)

    events.write_text("".join(lines[:8]))
    follower.source = Shrunk(events=events)
    again = follower.read(row)
    assert again is not None
    assert len(again.steps) < len(first.steps)


def test_the_watch_over_the_folders_sees_jobs_begin_go_on_and_end(tmp_path: Path) -> None:
    watch = JobWatch(tmp_path)
    watch.look()
    assert (watch.rows, watch.version) == ((), 0)
    folder = JobFolder.create(tmp_path, "compress", {})
    (tmp_path / "not-a-job").mkdir()
    (tmp_path / "not-a-job" / "request.json").write_text("{ half")
    with folder.working():
        file = EventFile(folder.path / "events.jsonl")
        tell = Reporter(folder.name, file)
        tell.started("job", weight=10)
        tell.started("search", total=10, weight=10)
        watch.look()
        assert [(r.id, r.state, r.step) for r in watch.rows] == [
            ("compress-1", "running", "search")
        ]
        version = watch.version
        watch.look()
        assert watch.version == version
        tell.advanced("search", 5)
        file.close()
        watch.look()
        assert watch.version > version
        assert watch.rows[0].progress == pytest.approx(0.5)
    watch.look()
    assert watch.rows[0].state == "interrupted"
    folder.finish("failed", error="no room")
    watch.look()
    assert (watch.rows[0].state, watch.rows[0].error) == ("failed", "no room")
    assert watch.rows[0] == folder.row()
    folder.reopen()
    watch.look()
    assert watch.rows[0].state == "interrupted"


_WORK = """
import sys
from pathlib import Path
from engine.events import Reporter
from hdap_tui.jobs.folder import EventFile, JobFolder
folder = JobFolder(Path(sys.argv[1]))
with folder.working():
    tell = Reporter(folder.name, EventFile(folder.path / "events.jsonl"))
    tell.started("job", weight=60)
    tell.started("search", total=10, weight=60)
    print("at work", flush=True)
    sys.stdin.read()
    folder.finish("finished")
"""


@pytest.fixture
def fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HDAP_STATE", raising=False)
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[fleet]\nname = "room"\nstate = "state"\n'
        '[[devices]]\nname = "edge-[1:3]"\nhost = "127.0.0.1"\nemulated = true\n'
        '[[models]]\nname = "m"\npath = "builtin:compute"\n'
    )
    return path


async def test_quitting_leaves_jobs_and_the_next_dashboard_finds_them(
    open_app: Open, fleet_file: Path
) -> None:
    folder = JobFolder.create(fleet_file.parent / "state" / "jobs", "compress", {})
    with subprocess.Popen(
        [sys.executable, "-c", _WORK, str(folder.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == b"at work\n"
        for _ in range(2):
            source = FleetSource(Context(config=fleet_file))
            async with open_app(source, size=(100, 30)) as hands:  # type: ignore[arg-type]
                await hands.sees("edge-3")
                await hands.press("4")
                await hands.sees("compress-1  running")
                await hands.sees("▶ search")
                await hands.press("q")
            said = list(announce.farewell(hands.app.snapshot))
            assert said == ["1 job goes on without the dashboard: compress-1 (hdap jobs follow)."]
            source.close()
            assert job.poll() is None
            assert folder.state == "running"
        job.communicate(b"")
    assert folder.state == "finished"


async def test_the_real_source_shows_what_the_settings_and_the_store_say(
    open_app: Open, fleet_file: Path
) -> None:
    from hdap_tui.store import devices

    source = FleetSource(Context(config=fleet_file))
    async with open_app(source, size=(120, 30)) as hands:  # type: ignore[arg-type]
        assert "room" in hands.text()
        assert "3 devices" in hands.text()
        writer = Context(config=fleet_file)
        devices.set_state(writer.store, "edge-2", "off", error="unreachable")
        await hands.sees("X off")
        await hands.sees("unreachable")
        writer.close()
        await hands.press("g")
        await hands.sees("fleet.name")
        assert str(fleet_file) in hands.text().replace("\n", "")
    source.close()
