"""The clusters: a map of the fleet, and what the clusters are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text
from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.facts import cluster_lines, cluster_words, pairs
from hdap_tui.dashboard.formats import age, change, listed, ms
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.screens.base import NARROW, HdapScreen, Hint, hint
from hdap_tui.dashboard.widgets.scatter import Scatter
from hdap_tui.figures import count
from hdap_tui.store.records import ClusterMap, DeviceRow, FleetSnapshot
from hdap_tui.text import clean


class MapScreen(HdapScreen):
    """Map on the left, clusters and the selected device on the right."""

    view = "map"
    travels = True
    hints = (
        Hint("arrows", "select", ""),
        Hint("n", "next", "screen.walk"),
        Hint("+", "nearer", "screen.zoom(0.7)"),
        Hint("-", "farther", "screen.zoom(1.43)"),
        Hint("0", "all", "screen.whole"),
        Hint("enter", "details", "app.enter"),
        hint("compress", "recompress"),
        Hint("m", "dots", "screen.letters"),
        hint("sweep", "sweep"),
    )

    def body(self) -> Iterable[Widget]:
        """Return map and panel."""
        self._title = Static(id="map-title")
        self._clusters = Static(id="clusters")
        self._device = Static(id="picked")
        self._begins: Mapping[int, int] = {}
        self.scatter = Scatter(self.palette, id="main")
        yield self._title
        self._box = VerticalScroll(self._clusters, id="clusters-box", can_focus=False)
        panel = Vertical(self._box, self._device, id="panel")
        yield Horizontal(self.scatter, panel, id="map-body")

    def selection(self) -> Selection:
        """Return the selected device."""
        return Selection(device=self.scatter.device)

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show the clustering."""
        self.scatter.show(snapshot.map)
        self._show_title(snapshot.map)
        width = 42 if self.size.width >= NARROW else 27
        clusters, self._begins = cluster_lines(snapshot.map, self.palette, width)
        self._clusters.update(clusters)
        self._show_device([self.scatter.device])

    def on_resize(self) -> None:
        """Say as much in the title as there is room for."""
        super().on_resize()
        if self.snapshot is not None and self.is_mounted:
            self._show_title(self.snapshot.map)

    def action_walk(self) -> None:
        """Go to the next device."""
        self.scatter.action_walk(1)

    def action_zoom(self, factor: float) -> None:
        """Look nearer or farther."""
        self.scatter.action_zoom(factor)

    def action_letters(self) -> None:
        """Change between letters and dots."""
        self.scatter.action_letters()

    def action_whole(self) -> None:
        """Show all devices."""
        self.scatter.action_whole()

    @on(Scatter.Picked)
    def _picked(self, message: Scatter.Picked) -> None:
        self._show_device([message.device])
        # The cluster that one has come to is always to be seen, however small the screen is.
        cluster = next((d.cluster for d in self._devices([message.device])), None)
        if cluster is not None and cluster in self._begins:
            self._box.scroll_to(y=self._begins[cluster], animate=False)

    @on(Scatter.Hovered)
    def _hovered(self, message: Scatter.Hovered) -> None:
        self._show_device(message.devices or [self.scatter.device])

    @on(Scatter.Opened)
    def _opened(self) -> None:
        self.dash.action_enter()

    def _show_title(self, clustering: ClusterMap) -> None:
        title = Text(" map", style=self.palette["title"], no_wrap=True)
        if clustering.devices:
            first, second = (round(100 * share) for share in clustering.explained)
            when = age(clustering.at, self.clock())
            words = [
                "axes in % of latency" if self.size.width >= NARROW else "axes in %",
                f"{first} + {second} % of the variance",
                f"eps {clustering.eps_percent:.2g} %",
                f"min. samples {clustering.min_samples}",
                f"{when} old" if when else "",
                _apart(clustering) if self.size.width >= NARROW else "",
            ]
            title.append("  " + "  ".join(word for word in words if word), self.palette["muted"])
        self._title.update(title)

    def _show_device(self, names: Sequence[str]) -> None:
        snapshot = self.snapshot
        rows = self._devices(names)
        if snapshot is None or not rows:
            self._device.update(Text("No device is selected.", style=self.palette["muted"]))
        elif len(rows) == 1:
            self._device.update(self._one(rows[0], snapshot))
        else:
            title = Text(f"{count(len(rows), 'device')} here", style=self.palette["title"])
            self._device.update(
                Text("\n").join([title, Text(listed([row.name for row in rows], 12))])
            )

    def _devices(self, names: Sequence[str]) -> list[DeviceRow]:
        snapshot, wanted = self.snapshot, set(names)
        return [d for d in snapshot.devices if d.name in wanted] if snapshot else []

    def _one(self, row: DeviceRow, snapshot: FleetSnapshot) -> Text:
        title = Text(clean(row.name, 60), style=self.palette["title"], no_wrap=True)
        if row.emulated:
            title.append("  emulated", self.palette["emulated"])
        latency = f"{ms(row.latency_ms)} ms  {change(row.change_percent)}"
        facts: list[tuple[str, str | Text]] = [
            ("cluster", cluster_words(row, snapshot.map, self.palette)),
            ("latency", latency if row.latency_ms is not None else "not measured yet"),
            ("model", clean(row.model, 60)),
        ]
        place = _place(row.name, snapshot.map)
        if place:
            facts.append(("place", place))
        return Text("\n").join(
            [title, pairs(facts, self.palette, 43 if self.size.width >= NARROW else 28, width=8)]
        )


def _place(device: str, clustering: ClusterMap) -> str:
    for name, (x, y) in zip(clustering.devices, clustering.points, strict=False):
        if name == device:
            return f"{x:+.1f} %, {y:+.1f} %"
    return ""


def _apart(clustering: ClusterMap) -> str:
    """Return how well the clusters stand apart, in words."""
    if clustering.silhouette is None or clustering.apart_percent is None:
        return ""
    return f"silhouette {clustering.silhouette:.2f}, {clustering.apart_percent:.0f} % apart"
