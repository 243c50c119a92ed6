import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.events import Reporter
from hdap_tui.errors import RefusedError, SettingsError, UserError
from hdap_tui.jobs import control
from hdap_tui.jobs.folder import EventFile, JobFolder, write_json
from hdap_tui.progress import WHOLE

HOLD = """
import sys
from pathlib import Path
from hdap_tui.jobs.folder import JobFolder
with JobFolder(Path(sys.argv[1])).working():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path / "jobs", "compress", {"seed": 7})


def hold(folder: JobFolder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_jobs_are_numbered_and_the_request_is_kept_as_written(folder: JobFolder) -> None:
    second = JobFolder.create(folder.path.parent, "compress", {})
    assert (folder.name, second.name) == ("compress-1", "compress-2")
    assert folder.request["seed"] == 7
    assert folder.path.stat().st_mode & 0o077 == 0


def test_a_new_job_is_queued_until_its_process_speaks(folder: JobFolder) -> None:
    assert folder.state == "queued"


def test_a_job_whose_process_holds_it_runs_and_a_killed_one_is_interrupted(
    folder: JobFolder,
) -> None:
    (folder.path / "events.jsonl").touch()
    process = hold(folder)
    try:
        assert folder.state == "running"
        with pytest.raises(RefusedError, match="running already"), folder.working():
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert folder.state == "interrupted"


def test_the_result_tells_how_it_ended(folder: JobFolder) -> None:
    folder.finish("finished", speedup=2.0)
    assert folder.state == "finished"
    assert folder.row().result["speedup"] == 2.0
    with pytest.raises(RefusedError, match="has finished"):
        control.resume(folder)


def test_events_are_read_from_where_one_left_off_and_never_in_half(folder: JobFolder) -> None:
    stream = EventFile(folder.path / "events.jsonl")
    reporter = Reporter(folder.name, stream)
    reporter.started(WHOLE, weight=10)
    first, offset = folder.events()
    reporter.advanced("search", 1)
    with (folder.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "advanced", "jo')  # the process was killed in the middle
    later, offset = folder.events(offset)
    assert [len(first), len(later)] == [1, 1]
    stream.close()

    again = EventFile(folder.path / "events.jsonl")
    Reporter(folder.name, again, sequence=2).advanced("search", 2)
    again.close()
    resumed, _ = folder.events(offset)
    assert [e.sequence for e in resumed] == [3]
    assert [e.sequence for e in folder.events()[0]] == [1, 2, 3]


def test_cancel_is_a_request_and_resume_takes_it_back(folder: JobFolder) -> None:
    control.cancel(folder)
    assert folder.cancelled
    folder.finish("cancelled")
    with pytest.raises(RefusedError, match="it is cancelled"):
        control.cancel(folder)
    folder.reopen()
    assert not folder.cancelled
    assert folder.result is None


def test_a_job_that_is_not_there_gets_a_suggestion(folder: JobFolder) -> None:
    with pytest.raises(SettingsError, match="did you mean compress-1"):
        control.find(folder.path.parent, "compres-1")


def test_without_jobs_one_is_told_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="hdap compress"):
        control.find(tmp_path, None)


def test_a_folder_without_request_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a job"):
        _ = JobFolder(tmp_path).request


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"a": 1})
    write_json(target, {"a": 2})
    assert target.read_text().strip().endswith("}")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
