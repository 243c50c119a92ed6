"""The map of the fleet: every device a letter, alike ones close together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from hdap_tui.dashboard import canvas
from hdap_tui.dashboard.formats import ASCII, fit, letter
from hdap_tui.dashboard.theme import Palette
from hdap_tui.dashboard.widgets.sheet import Sheet
from hdap_tui.store.records import ClusterMap

LETTERS = 600
"""So many devices are drawn as letters; beyond, as dots with a letter on each cluster."""
_ZOOM = 0.7
_PAN = 0.15


class Scatter(Widget, can_focus=True):
    """Draws a clustering; one device is selected."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "toward(-1,0)", "left", show=False),
        Binding("right", "toward(1,0)", "right", show=False),
        Binding("up", "toward(0,1)", "up", show=False),
        Binding("down", "toward(0,-1)", "down", show=False),
        Binding("n", "walk(1)", "next device", show=False),
        Binding("N", "walk(-1)", "device before", show=False),
        Binding("plus,equals_sign", f"zoom({_ZOOM})", "nearer", show=False),
        Binding("minus", f"zoom({1 / _ZOOM})", "farther", show=False),
        Binding("0", "whole", "all", show=False),
        Binding("shift+left", f"pan(-{_PAN},0)", "pan left", show=False),
        Binding("shift+right", f"pan({_PAN},0)", "pan right", show=False),
        Binding("shift+up", f"pan(0,{_PAN})", "pan up", show=False),
        Binding("shift+down", f"pan(0,-{_PAN})", "pan down", show=False),
        Binding("m", "letters", "letters or dots", show=False),
    ]

    class Picked(Message):
        """Another device is selected."""

        def __init__(self, device: str) -> None:
            super().__init__()
            self.device = device

    class Hovered(Message):
        """The mouse is on these devices, or on none."""

        def __init__(self, devices: Sequence[str]) -> None:
            super().__init__()
            self.devices = devices

    class Opened(Message):
        """A device was clicked twice."""

    def __init__(self, palette: Palette, id: str | None = None) -> None:
        super().__init__(id=id)
        self._palette = palette
        self._map = ClusterMap()
        self._xs = self._ys = np.zeros(0)
        self._labels = np.zeros(0, dtype=np.int64)
        self._representatives: frozenset[int] = frozenset()
        self._frame: canvas.Frame | None = None
        self._sheet: Sheet | None = None
        self._cells: canvas.Cells | None = None
        self._left = 0
        self._hovered: tuple[int, ...] = ()
        self._drag: tuple[int, int] | None = None
        self.letters: bool | None = None
        """Whether to draw letters; None: as many devices as there are decide."""
        self.index = -1
        """The selected device."""

    # ----------------------------------------------------------------- what others do with it

    @property
    def device(self) -> str:
        """The selected device's name."""
        return self._map.devices[self.index] if 0 <= self.index < len(self._map.devices) else ""

    @property
    def frame(self) -> canvas.Frame:
        """What part of the plane is shown."""
        return self._frame or canvas.around(self._xs, self._ys)

    def show(self, clustering: ClusterMap) -> None:
        """Show this clustering; what is selected and how near one is stay."""
        if clustering == self._map:
            return
        chosen = self.device
        self._map = clustering
        points = np.array(clustering.points, dtype=float).reshape(-1, 2)
        points = points[: len(clustering.devices)]
        self._xs, self._ys = points[:, 0], points[:, 1]
        labels = (*clustering.labels, *[-1] * len(points))[: len(points)]
        self._labels = np.array(labels, dtype=np.int64)
        names = {cluster.representative for cluster in clustering.clusters}
        self._representatives = frozenset(
            i for i, name in enumerate(clustering.devices[: len(points)]) if name in names
        )
        found = clustering.devices.index(chosen) if chosen in clustering.devices else 0
        self.index = found if len(points) else -1
        self._redraw()
        self.post_message(self.Picked(self.device))

    def select(self, device: str) -> None:
        """Select a device by its name."""
        if device in self._map.devices:
            self._pick(self._map.devices.index(device))

    # ----------------------------------------------------------------- keys

    def action_walk(self, by: int) -> None:
        """Go to the next device in the order of clusters."""
        if self.index < 0:
            return
        order = np.lexsort((np.arange(len(self._labels)), self._labels))
        place = int(np.flatnonzero(order == self.index)[0])
        self._pick(int(order[(place + by) % len(order)]))

    def action_toward(self, right: int, up: int) -> None:
        """Go to the nearest device in a direction."""
        if self.index < 0:
            return
        frame = self.frame
        # Distances as the eye sees them: in shares of the frame, not in per cent.
        dx = (self._xs - self._xs[self.index]) / (frame.x1 - frame.x0) * self.size.width
        dy = (self._ys - self._ys[self.index]) / (frame.y1 - frame.y0) * self.size.height * 2
        along, aside = dx * right + dy * up, np.abs(dx * up + dy * right)
        cost = np.where(along > 0.5, along + 2 * aside, np.inf)
        cost[self.index] = np.inf
        best = int(np.argmin(cost))
        if np.isfinite(cost[best]):
            self._pick(best)

    def action_zoom(self, factor: float) -> None:
        """Look nearer (below 1) or farther, around the selected device."""
        if self.index < 0:
            return
        frame, x, y = self.frame, float(self._xs[self.index]), float(self._ys[self.index])
        if not (frame.x0 <= x <= frame.x1 and frame.y0 <= y <= frame.y1):
            x, y = (frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2
        self._look(frame.zoomed(factor, x, y))

    def action_pan(self, right: float, up: float) -> None:
        """Move what is shown."""
        self._look(self.frame.moved(right, up))

    def action_whole(self) -> None:
        """Show all devices."""
        self._look(None)

    def action_letters(self) -> None:
        """Change between letters and dots."""
        self.letters = not self._as_letters
        self._redraw()

    # ----------------------------------------------------------------- mouse

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Say which devices the mouse is on, or pan while a button is down."""
        if self._drag is not None and event.button:
            width, height = self._plot_size()
            x, y = self._drag
            self._drag = event.x, event.y
            self._look(self.frame.moved((x - event.x) / width, (event.y - y) / height))
            return
        hovered = self._under(event.x, event.y)
        if hovered != self._hovered:
            self._hovered = hovered
            self.post_message(self.Hovered([self._map.devices[i] for i in hovered]))

    def on_leave(self) -> None:
        """The mouse is elsewhere."""
        if self._hovered:
            self._hovered = ()
            self.post_message(self.Hovered([]))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begin to drag."""
        self._drag = event.x, event.y
        self.capture_mouse()

    def on_mouse_up(self) -> None:
        """End dragging."""
        self._drag = None
        self.release_mouse()

    def on_click(self, event: events.Click) -> None:
        """Select the device under the mouse."""
        under = self._under(event.x, event.y, reach=2)
        if under:
            self._pick(under[0])
            if event.chain == 2:
                self.post_message(self.Opened())

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Look nearer, around the mouse."""
        self._zoom_at(event.x, event.y, _ZOOM)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Look farther, around the mouse."""
        self._zoom_at(event.x, event.y, 1 / _ZOOM)

    # ----------------------------------------------------------------- drawing

    def on_resize(self) -> None:
        """Draw anew."""
        self._sheet = None

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        width, height = self.size
        if self._sheet is None or (self._sheet.columns, self._sheet.rows) != (width, height):
            self._sheet = self._draw(width, height)
        base = self.rich_style
        strip = self._sheet.strip(y, self._palette)
        return strip.apply_style(base).adjust_cell_length(width, base)

    @property
    def _as_letters(self) -> bool:
        if self.letters is not None:
            return self.letters
        return ASCII or self._palette.look == "mono" or len(self._xs) <= LETTERS

    def _plot_size(self) -> tuple[int, int]:
        return max(1, self.size.width - self._left), max(1, self.size.height - 2)

    def _draw(self, width: int, height: int) -> Sheet:
        sheet = Sheet(width, height)
        if not len(self._xs):
            text = "Nothing has been clustered yet: press s for a sweep of the fleet."
            sheet.put(1, height // 2, fit(text, width - 2), "muted")
            self._cells = None
            return sheet
        frame = self.frame
        labels = canvas.labelled(frame.y0, frame.y1, max(2, (height - 2) // 4))
        self._left = max(len(text) for _, text in labels) + 2 if labels else 2
        columns, rows = width - self._left, height - 2
        if columns < 5 or rows < 3:
            return sheet
        self._axes(sheet, frame, labels, columns, rows)
        self._cells = canvas.place(self._xs, self._ys, frame, columns, rows)
        winners = canvas.majority(self._cells, self._labels)
        self._points(sheet, frame, winners, columns, rows)
        self._special(sheet)
        return sheet

    def _points(
        self, sheet: Sheet, frame: canvas.Frame, winners: canvas.Ints, columns: int, rows: int
    ) -> None:
        lines = None if self._as_letters else canvas.dots(self._xs, self._ys, frame, columns, rows)
        for row, column in np.argwhere(winners > -2).tolist():
            label = int(winners[row, column])
            char = letter(label)[:1] if lines is None else lines[row][column]
            style = "noise" if label < 0 else f"cluster{label}"
            sheet.put(self._left + column, row, char, style)

    def _special(self, sheet: Sheet) -> None:
        """Draw representatives filled, and brackets around the selected device."""
        cells = self._cells
        assert cells is not None
        for index in self._representatives:
            if cells.inside[index]:
                x, y = self._spot(index)
                label = int(self._labels[index])
                sheet.put(x, y, letter(label)[:1], f"cluster{label}+filled")
        if 0 <= self.index < len(self._xs) and cells.inside[self.index]:
            x, y = self._spot(self.index)
            label = int(self._labels[self.index])
            style = "noise" if label < 0 else f"cluster{label}"
            filled = self.index in self._representatives
            left, right = "[]" if ASCII or self._palette.look == "mono" else "▐▌"
            sheet.put(x - 1, y, left, "pointer")
            sheet.put(x, y, letter(label)[:1], f"{style}+filled" if filled else f"{style}+picked")
            sheet.put(x + 1, y, right, "pointer")

    def _spot(self, index: int) -> tuple[int, int]:
        assert self._cells is not None
        row, column = divmod(int(self._cells.cell[index]), self._cells.columns)
        return self._left + column, row

    def _axes(
        self,
        sheet: Sheet,
        frame: canvas.Frame,
        labels: Sequence[tuple[float, str]],
        columns: int,
        rows: int,
    ) -> None:
        left, wide = self._left, self._left - 2
        for y in range(rows):
            sheet.put(left - 1, y, "|" if ASCII else "│", "faint")
        for value, text in labels:
            y = min(rows - 1, int((frame.y1 - value) / (frame.y1 - frame.y0) * rows))
            sheet.put(0, y, text.rjust(wide), "muted")
            sheet.put(left - 1, y, "+" if ASCII else "┤", "faint")
        sheet.put(left - 1, rows, ("+" if ASCII else "└") + ("-" if ASCII else "─") * columns,
                  "faint")  # fmt: skip
        taken = -1
        end = left + columns - 2
        for value, text in canvas.labelled(frame.x0, frame.x1, max(4, columns // 12)):
            column = int((value - frame.x0) / (frame.x1 - frame.x0) * columns)
            start = left + column - len(text) // 2
            if start > taken and start + len(text) <= end and 0 <= column < columns:
                sheet.put(left + column, rows, "+" if ASCII else "┴", "faint")
                sheet.put(max(left, start), rows + 1, text, "muted")
                taken = start + len(text)
        sheet.put(left + columns - 1, rows + 1, "%", "muted")
        if frame.x0 < 0 < frame.x1:
            zero = left + int(-frame.x0 / (frame.x1 - frame.x0) * columns)
            sheet.down(zero, 0, rows, ":" if ASCII else "┊", "faint")
        if frame.y0 < 0 < frame.y1:
            y = min(rows - 1, int(frame.y1 / (frame.y1 - frame.y0) * rows))
            sheet.put(left, y, ("." if ASCII else "┈") * columns, "faint")

    # ----------------------------------------------------------------- inner workings

    def _under(self, x: int, y: int, reach: int = 1) -> tuple[int, ...]:
        if self._cells is None or x < self._left:
            return ()
        column = x - self._left
        here = self._cells.at(column, y) if y < self._cells.rows else ()
        if len(here):
            return tuple(int(i) for i in here)
        near = self._cells.near(column, y, reach)
        return () if near is None else (near,)

    def _pick(self, index: int) -> None:
        if index == self.index:
            return
        self.index = index
        x, y, frame = float(self._xs[index]), float(self._ys[index]), self.frame
        if not (frame.x0 <= x <= frame.x1 and frame.y0 <= y <= frame.y1):
            self._frame = frame.moved(
                (x - (frame.x0 + frame.x1) / 2) / (frame.x1 - frame.x0),
                (y - (frame.y0 + frame.y1) / 2) / (frame.y1 - frame.y0),
            )
        self._redraw()
        self.post_message(self.Picked(self.device))

    def _zoom_at(self, x: int, y: int, factor: float) -> None:
        width, height = self._plot_size()
        frame = self.frame
        self._look(
            frame.zoomed(
                factor,
                frame.x0 + (x - self._left + 0.5) / width * (frame.x1 - frame.x0),
                frame.y1 - (y + 0.5) / height * (frame.y1 - frame.y0),
            )
        )

    def _look(self, frame: canvas.Frame | None) -> None:
        if frame is not None:
            wide = frame.x1 - frame.x0
            if not (1e-3 < wide < 1e6 and math.isfinite(wide)):
                return
        self._frame = frame
        self._redraw()

    def _redraw(self) -> None:
        self._sheet = None
        self.refresh()
