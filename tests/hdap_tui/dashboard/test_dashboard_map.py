"""The map of the clusters."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import Open, Opened
from dashboard_fake import FakeSource, cluster_map, fleet

from hdap_tui.dashboard import formats
from hdap_tui.dashboard.widgets import scatter as scatter_module
from hdap_tui.dashboard.widgets.scatter import Scatter
from hdap_tui.store.records import ClusterMap


def scatter(hands: Opened) -> Scatter:
    return hands.app.screen.query_one(Scatter)


def spot(hands: Opened, device: str) -> tuple[int, int]:
    """Return where a device stands on the map."""
    chart = scatter(hands)
    return chart._spot(chart._map.devices.index(device))


def picture(hands: Opened) -> list[str]:
    """Return the lines of the map without the panel."""
    region = scatter(hands).region
    lines = hands.text().splitlines()[region.y : region.bottom]
    return [line[: region.width] for line in lines]


async def test_every_cluster_has_its_letter_and_noise_its_dot(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        await hands.idle()
        labels = hands.source.fleet.map.labels
        text = "".join(picture(hands)[:-2])
        for label, letter in ((0, "A"), (1, "B"), (2, "C"), (-1, "·")):
            assert 1 <= text.count(letter) <= labels.count(label)
        screen = hands.text()
        for fact in ("eps 3.5 %", "min. samples 3", "93 + 5 % of the variance",
                     "4 devices, like edge-01", "compute 62 % slower", "bandwidth 13.776",
                     "1 device like no other", "EMULATED"):  # fmt: skip
            assert fact in screen, fact


async def test_representatives_are_filled_and_the_selected_device_is_bracketed(
    open_app: Open,
) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        chart = scatter(hands)
        assert chart.device == "edge-01"
        assert "▐A▌" in "".join(picture(hands))
        for name in ("edge-01", "edge-02", "edge-03"):
            x, y = spot(hands, name)
            styles = {s.style.reverse for s in chart.render_line(y).crop(x, x + 1) if s.style}
            assert styles == {True}, name
        x, y = spot(hands, "edge-08")
        assert not any(s.style and s.style.reverse for s in chart.render_line(y).crop(x, x + 1))


async def test_n_walks_through_all_devices_cluster_by_cluster(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        clusters = dict(zip(hands.source.fleet.map.devices, hands.source.fleet.map.labels,
                            strict=True))  # fmt: skip
        seen = [scatter(hands).device]
        for _ in range(11):
            await hands.press("n")
            seen.append(scatter(hands).device)
        assert sorted(seen) == sorted(clusters)
        changes = sum(clusters[a] != clusters[b] for a, b in pairwise(seen))
        assert changes <= 4
        await hands.press("n", "N")
        assert scatter(hands).device == seen[-1]


async def test_arrows_go_to_the_next_device_in_their_direction(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        chart = scatter(hands)
        x = spot(hands, chart.device)[0]
        visited = [x]
        for _ in range(20):
            await hands.press("right")
            visited.append(spot(hands, chart.device)[0])
        assert visited == sorted(visited)
        assert chart.device in {"edge-03", "edge-06", "edge-09"}
        for _ in range(20):
            await hands.press("left")
        assert spot(hands, chart.device)[0] < visited[0] + 8


async def test_zooming_and_panning_change_what_is_seen_and_zero_shows_all(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        chart = scatter(hands)
        whole = chart.frame
        for _ in range(6):
            await hands.press("plus")
        assert chart.frame.x1 - chart.frame.x0 == pytest.approx((whole.x1 - whole.x0) * 0.7**6)
        assert "C" not in "".join(picture(hands)[:-2])
        before = chart.frame
        await hands.press("shift+right")
        assert chart.frame.x0 > before.x0
        await hands.press("minus", "0")
        assert chart.frame == whole
        assert "C" in "".join(picture(hands)[:-2])


async def test_the_mouse_picks_hovers_and_opens(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2")
        panel = lambda: hands.text()[-3000:]  # noqa: E731
        await hands.pilot.hover(Scatter, offset=spot(hands, "edge-09"))
        await hands.sees(" edge-09  emulated")
        assert scatter(hands).device == "edge-01"
        await hands.pilot.click(Scatter, offset=spot(hands, "edge-05"))
        await hands.until(lambda: scatter(hands).device == "edge-05")
        await hands.pilot.hover("#tabs")
        await hands.until(lambda: " edge-05  emulated" in panel())
        await hands.press("enter")
        await hands.until(lambda: hands.view == "device")
        assert hands.app.screen.selection().device == "edge-05"


async def test_hovering_over_many_devices_in_one_place_counts_them(open_app: Open) -> None:
    spread = cluster_map(fleet().devices, random.Random(1), None)
    same = replace(spread, points=((1.0, 1.0),) * 12)
    async with open_app(FakeSource(replace(fleet(), map=same)), size=(130, 36)) as hands:
        await hands.press("2")
        await hands.pilot.hover(Scatter, offset=spot(hands, "edge-04"))
        await hands.sees("12 devices here")


async def test_ten_thousand_devices_are_dots_with_a_letter_on_each_cluster(open_app: Open) -> None:
    async with open_app(FakeSource(fleet(10_000)), size=(130, 36)) as hands:
        await hands.press("2")
        text = "".join(picture(hands)[:-2])
        assert sum(0x2800 < ord(c) < 0x2900 for c in text) > 200
        assert {c for c in text if c.isalpha()} == {"A", "B", "C"}
        await hands.press("m")
        text = "".join(picture(hands)[:-2])
        assert not any(0x2800 < ord(c) < 0x2900 for c in text)
        assert text.count("B") > 50
        await hands.press("n", "n", "plus")
        assert scatter(hands).device


async def test_a_small_screen_shows_the_cluster_one_has_come_to(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("2")
        await hands.sees("A  4 devices, like edge-01")
        assert "C  3 devices" not in hands.text()
        scatter(hands).select("edge-09")
        await hands.sees("C  3 devices, like edge-03")


async def test_a_new_clustering_keeps_the_selected_device(open_app: Open) -> None:
    async with open_app(size=(130, 36)) as hands:
        await hands.press("2", "n", "n", "n", "n")
        chosen = scatter(hands).device
        old = hands.source.fleet.map
        new = replace(
            old, devices=old.devices[::-1], labels=old.labels[::-1], points=old.points[::-1]
        )
        await hands.change(map=new)
        assert scatter(hands).device == chosen
        await hands.change(map=ClusterMap())
        await hands.sees("Nothing has been clustered yet: press s")
        await hands.press("n", "right", "plus", "0", "m")
        assert scatter(hands).device == ""


async def test_without_unicode_the_map_is_plain_ascii(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "ASCII", True)
    monkeypatch.setattr(formats, "NOISE", ".")
    monkeypatch.setattr(scatter_module, "ASCII", True)
    async with open_app(FakeSource(fleet(2000)), size=(130, 36)) as hands:
        await hands.press("2")
        assert "".join(picture(hands)).isascii()
