"""The models as a plot of accuracy against latency, with the front that none of them beats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.cells import cell_len

from hdap_tui.dashboard.formats import ASCII, listed
from hdap_tui.dashboard.widgets.chart import Dot, Plot, Series
from hdap_tui.figures import count
from hdap_tui.profiles import Comparison, Profiled
from hdap_tui.text import clean

BEST, BEATEN = ("*", "o") if ASCII else ("●", "○")
RUNS_BEST, RUNS_BEATEN = ("#", "+") if ASCII else ("◆", "◇")
_LEAST = 1.0
"""The axis of accuracies spans so many per cent at least."""


def front_plot(found: Comparison, selected: str) -> Plot:
    """Return the plot of a comparison; `selected` is the digest of the model under the cursor."""
    shown = [row for row in found.rows if row.timed is not None and row.accuracy is not None]
    if not shown:
        return Plot(title="accuracy against latency", empty=_why_empty(found))
    emulated = " (emulated)" if found.emulated else ""
    corners = sorted(_place(row) for row in shown if row.on_front)
    steps = [corners[0]]
    for before, after in pairwise(corners):
        steps += [(after[0], before[1]), after]
    return Plot(
        title=f"accuracy by latency on {clean(found.device, 40)}{emulated}, ms",
        notes=(
            f"{BEST} no other beats it  {BEATEN} beaten  {RUNS_BEST} {RUNS_BEATEN} runs on devices",
            f"{BEST} best {BEATEN} beaten {RUNS_BEST}{RUNS_BEATEN} runs",
        ),
        series=(Series([x for x, _ in steps], [y for _, y in steps], "trend"),),
        dots=tuple(
            _dot(row, row.model.digest == selected) for row in sorted(
                shown, key=lambda r: (r.model.digest != selected, not r.model.deployed_on,
                                      not r.on_front)
            )
        ),
        y_text=_per_cent,
        least=_LEAST,
    )  # fmt: skip


def left_out(found: Comparison, room: int) -> str:
    """Return which models are not in the plot, why, and what brings them there.

    One line, or one for each reason; names give way where a line has more than `room` cells, so
    that what to do is always there to read.
    """
    if not any(row.timed is not None and row.accuracy is not None for row in found.rows):
        return ""
    unknown = [row.model.name for row in found.rows if row.accuracy is None]
    said = [
        _fitting("not timed there: ", found.missing, " (:bench)", room),
        _fitting("accuracy unknown: ", unknown, " (:models compare --data)", room),
    ]
    line = "  ".join(filter(None, said))
    return line if cell_len(line) <= room else "\n".join(filter(None, said))


def _fitting(why: str, names: Sequence[str], what: str, room: int) -> str:
    """Return a line about models: with as many names as it has room for, else their number."""
    if not names:
        return ""
    lines = (f"{why}{listed(names, limit)}{what}" for limit in (3, 2, 1))
    return next(
        (line for line in lines if cell_len(line) <= room),
        f"{why}{count(len(names), 'model')}{what}",
    )


def _why_empty(found: Comparison) -> str:
    if not found.rows:
        return "No model is known yet: press r to make a smaller one."
    if not found.device:
        return "No model was timed yet: b on a device times what it runs, :bench A B others."
    return "No accuracy is known of what was timed: :models compare --data DATA adds it."


def _dot(row: Profiled, selected: bool) -> Dot:
    best, beaten = (RUNS_BEST, RUNS_BEATEN) if row.model.deployed_on else (BEST, BEATEN)
    char, style = (best, "mark") if row.on_front else (beaten, "muted")
    x, y = _place(row)
    return Dot(x, y, char, clean(row.model.name, 60), f"{style}+filled" if selected else style)


def _per_cent(value: float) -> str:
    return f"{value:g} %"


def _place(row: Profiled) -> tuple[float, float]:
    """Return latency in ms and accuracy in per cent."""
    assert row.timed is not None
    assert row.accuracy is not None
    return row.timed.median_ms, 100 * row.accuracy
