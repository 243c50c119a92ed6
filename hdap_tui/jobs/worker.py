"""The process of one job: `python -m hdap_tui.jobs.worker FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType

from engine.events import AnyEvent, Failed, Noted, Reporter
from hdap_tui.errors import UserError
from hdap_tui.jobs.folder import EventFile, JobFolder
from hdap_tui.names import with_letters
from hdap_tui.progress import WHOLE


def main(path: Path) -> int:
    """Work on the job until it is done, cancelled or broken; return the exit status."""
    folder = JobFolder(path)
    # Whatever the settings say by now: the job belongs to the state folder that it lies in.
    os.environ["HDAP_STATE"] = str(path.absolute().parents[1])
    signal.signal(signal.SIGTERM, _raise_interrupt)
    with folder.working():
        past, _ = folder.events()
        stream = EventFile(path / "events.jsonl")
        sequence = past[-1].sequence if past else 0
        reporter = Reporter(folder.name, lambda event: stream(_named(event)), sequence)
        try:
            return _work(folder, reporter)
        finally:
            stream.close()


def _work(folder: JobFolder, reporter: Reporter) -> int:
    from hdap_tui.jobs.compress import Cancelled, run

    try:
        result = run(folder, reporter)
    except Cancelled:
        reporter.failed(WHOLE, "Cancelled; what was measured and trained is kept.")
        folder.finish("cancelled")
        return 0
    except KeyboardInterrupt:
        # The machine shuts down, or somebody sent a signal: no result, so it can be resumed.
        reporter.noted(WHOLE, "Interrupted; it can be resumed.")
        return 130
    except (UserError, ValueError, OSError) as error:
        traceback.print_exc()  # into the job's log
        reporter.failed(WHOLE, str(error))
        folder.finish("failed", error=with_letters(str(error)))
        return 1
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}; the job's log.txt has the details."
        reporter.failed(WHOLE, text)
        folder.finish("failed", error=text)
        return 1
    folder.finish("finished", **result)
    reporter.finished(WHOLE, **result)
    return 0


def _named(event: AnyEvent) -> AnyEvent:
    """Return an event that names clusters as the screens do; the engine counts them."""
    if isinstance(event, Noted):
        event = replace(event, text=with_letters(event.text))
    elif isinstance(event, Failed):
        event = replace(event, error=with_letters(event.error))
    return replace(event, step=with_letters(event.step))


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
