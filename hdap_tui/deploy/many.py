"""One step of a deployment on many devices at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from hdap_tui.deploy.device import Work
from hdap_tui.fanout import on_each
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError


def on_devices(
    measuring: Measuring,
    work: Work,
    step: str,
    names: Sequence[str],
    action: Callable[[Connection], None],
    errors: dict[str, DeviceError],
    *,
    may_end: bool = False,
    weight: float = 0.3,
) -> list[str]:
    """Do something on devices; return where it worked, and put what went wrong into `errors`.

    `may_end` says whether it ends early once it is no longer wanted; `weight` is about how many
    seconds one device takes.
    """
    done: list[str] = []
    if not names:
        return done
    context, fleet = measuring.context, measuring.fleet
    reporter = context.reporter
    reporter.started(step, total=len(names), weight=len(names) * weight)
    stop = threading.Event()
    cancelled = context.cancelled if may_end else _never
    work.cancelled = (lambda: stop.is_set() or cancelled()) if may_end else _never
    targets = [fleet.members[name] for name in names]
    answers = on_each(
        fleet.pool, targets, work.steadily(action), cancelled, stop,
        on_stage=fleet.on_stage, doing=step,
    )  # fmt: skip
    for ended, (target, answer) in enumerate(answers, start=1):
        if isinstance(answer, DeviceError):
            errors[target.name] = answer
            reporter.noted(step, str(answer))
        else:
            done.append(target.name)
        reporter.advanced(step, ended)
    reporter.finished(step, done=len(done))
    return done


def _never() -> bool:
    return False
