"""The pane of one job: steps, one bar, curves, log."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.widgets import Static

from hdap_tui.dashboard.follow import JobView, StepView
from hdap_tui.dashboard.formats import bar, number
from hdap_tui.dashboard.theme import Palette
from hdap_tui.dashboard.widgets.chart import LineChart, Plot, Series
from hdap_tui.progress import duration
from hdap_tui.store.records import JobRow
from hdap_tui.text import clean

LIVE = {"running", "queued"}
_SIGNS = {"running": "▶", "finished": "✓", "failed": "✗"}
_STYLES = {"running": "running", "finished": "good", "failed": "bad"}
CURVES = (
    ("latency", "Nothing is scored yet.", "Nothing was searched."),
    ("accuracy", "No epoch yet.", "Nothing was trained."),
)
"""Word in the name of a curve, and what stands in its place while there is none, and at the end."""


class JobPane(Container):
    """Shows a job's row and its stream."""

    def __init__(self, palette: Palette, id: str | None = None) -> None:
        super().__init__(id=id)
        self._palette = palette
        self._row: JobRow | None = None
        self._view: JobView | None = None
        self._bar, self._steps, self._log = (
            Static(id=name) for name in ("job-bar", "job-steps", "job-log")
        )
        self._curves = [LineChart(palette, id=f"curve-{i}") for i in range(len(CURVES))]

    def compose(self) -> ComposeResult:
        """Lay the pane out."""
        yield self._bar
        yield Horizontal(self._steps, Vertical(*self._curves, id="job-curves"), id="job-body")
        yield self._log

    def show_row(self, row: JobRow | None) -> None:
        """Show what the store knows about the job."""
        self._row = row
        self._draw_bar()

    def show_view(self, view: JobView | None) -> None:
        """Show what the job's stream tells; None: nothing has been read yet."""
        self._view = view
        self._draw_bar()
        steps = view.steps if view else ()
        self._steps.update(Text("\n").join(map(self._step, steps)))
        self._draw_log()
        names = " ".join(name for name, _ in view.curves) if view else ""
        # Where there is room for one curve only, the later one counts.
        self.set_class("accuracy" in names, "-epochs")
        self.set_class("accuracy" in names and "latency" not in names.lower(), "-unsearched")
        over = self._row is not None and self._row.state not in LIVE
        for chart, (word, not_yet, none) in zip(self._curves, CURVES, strict=True):
            chart.show(_plot(view, word, none if over else not_yet))

    def on_resize(self) -> None:
        """Show as much of the log as there is room for."""
        if self.is_mounted:
            self._draw_bar()
            self.call_after_refresh(self._draw_log)

    def _draw_log(self) -> None:
        lines = self._view.log if self._view else ()
        room = max(1, self._log.size.height)
        text = Text("\n".join(lines[-room:]), style=self._palette["muted"], no_wrap=True)
        text.overflow = "ellipsis"
        self._log.update(text)

    def _draw_bar(self) -> None:
        row, view = self._row, self._view
        if row is None:
            self._bar.update(Text(""))
            return
        live = row.state in LIVE
        fraction = view.fraction if view and live else row.progress
        left = view.left_s if view else row.left_s
        done, rest = bar(fraction, max(10, min(48, self.size.width - 56)))
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f" {clean(row.id, 40)} ", self._palette["title"])
        text.append(f" {row.state}  ", self._palette[row.state])
        text.append(done, self._palette["accent"]).append(rest, self._palette["faint"])
        text.append(f" {fraction:4.0%}")
        if live and left is not None:
            text.append(f"  about {duration(left)} left", self._palette["muted"])
        error = row.error or (view.error if view else "")
        if error and not live:
            text.append(f"  {clean(error)}", self._palette["bad"])
        elif row.result and not live:
            facts = {k: v for k, v in row.result.items() if k not in {"state", "at", "error"}}
            text.append(f"  {number(facts)}"[:200], self._palette["muted"])
        self._bar.update(text)

    def _step(self, step: StepView) -> Text:
        style = self._palette[_STYLES[step.state]]
        text = Text(f" {_SIGNS[step.state]} ", style=style, no_wrap=True)
        text.append(f"{step.name:<14} ", self._palette["strong" if step.state == "running" else ""])
        count = f"{step.n}/{step.total}" if step.total else ""
        text.append(f"{count:>9} ", self._palette["muted"])
        if step.state == "running":
            done, rest = bar(step.fraction, 8)
            text.append(done, style).append(rest, self._palette["faint"])
        else:
            text.append(step.state, self._palette["muted"])
        return text


def _plot(view: JobView | None, word: str, empty: str) -> Plot:
    """Return the chart of the curve with that word in its name, the bare word before all."""
    curves = dict(view.curves) if view else {}
    names = sorted((name for name in curves if word in name.lower()), key=lambda name: name != word)
    if not names:
        return Plot(title=word, empty=empty)
    points = latest_run(curves[names[0]])
    x, y = points[-1]
    return Plot(
        title=names[0],
        series=(Series([x for x, _ in points], [y for _, y in points]),),
        notes=(f"{'epoch' if names[0] == 'accuracy' else 'evaluation'} {x:g}: {y:.4g}", f"{y:.4g}"),
        empty=empty,
        least=0.02 * max(abs(value) for _, value in points),
    )


def latest_run(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of a curve that were not written anew by a resumed or repeated step."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        while kept and kept[-1][0] >= x:
            kept.pop()
        kept.append((x, y))
    return kept
