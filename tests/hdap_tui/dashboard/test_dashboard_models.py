"""The models, and their plot of accuracy against latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Open
from dashboard_fake import HOSTILE, FakeSource

from engine.latency import Latency
from hdap_tui.config import load
from hdap_tui.context import Context
from hdap_tui.dashboard.source import FleetSource
from hdap_tui.store import measurements, models
from hdap_tui.store.database import open_store
from hdap_tui.store.records import ModelRow


def shelf() -> FakeSource:
    """Return a fleet with six models: three on the front, one beaten, two that miss something."""
    source = FakeSource()
    small, first, *probes = source.fleet.models

    def made(name: str, digest: str, accuracy: float | None) -> ModelRow:
        known = {} if accuracy is None else {"test_accuracy": accuracy}
        return replace(small, id=9, name=name, digest=digest * 64, metrics=known)

    more = (
        made("resnet20-int8", "6", 0.9902),
        made("resnet20-slow", "7", 0.9855),
        made("resnet20-untried", "8", None),
        made("resnet20-untimed", "9", 0.97),
    )
    source.fleet = replace(source.fleet, models=(small, first, *more, *probes))
    source.latencies |= {"resnet20-int8": 2.9, "resnet20-slow": 3.4, "resnet20-untried": 3.0}
    return source


@pytest.mark.parametrize(
    ("size", "keys"), [((80, 24), ("V",)), ((160, 48), ("5",))], ids=["80x24", "160x48"]
)
async def test_the_plot_looks_as_it_did(
    open_app: Open,
    snapshot: Callable[[str, str], None],
    size: tuple[int, int],
    keys: tuple[str, ...],
) -> None:
    async with open_app(shelf(), size=size) as hands:
        await hands.press(*keys)
        await hands.sees("accuracy by latency on edge-01 (emulated), ms")
        await hands.idle()
        snapshot(f"front-{size[0]}x{size[1]}", hands.text())


async def test_a_key_opens_the_plot_from_anywhere_and_hides_it_again(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("V")
        assert hands.view == "models"
        await hands.sees("accuracy by latency on edge-01 (emulated), ms")
        assert "what it brought" not in hands.text(), "the plot has the lower part for itself"
        await hands.press("V")
        await hands.sees("lineage")
        assert "accuracy by latency" not in hands.text()
        await hands.press("V", "escape")
        assert hands.view == "models"
        await hands.sees("lineage")
        await hands.press("escape")
        assert hands.view == "fleet"
        assert hands.source.ran == [], "nothing ran; what is known is shown"


async def test_the_command_shows_the_plot_and_never_hides_it(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await hands.press("5")
        await hands.sees("accuracy by latency on edge-01 (emulated), ms")
        for _ in range(2):
            await hands.press("colon")
            await hands.type("models compare")
            await hands.press("enter")
            await hands.idle()
            assert "accuracy by latency" in hands.text()
        await hands.press("V")
        assert "accuracy by latency" not in hands.text(), "the key hides what is shown already"
        await hands.press("colon")
        await hands.type("models compare")
        await hands.press("enter")
        await hands.sees("accuracy by latency on edge-01 (emulated), ms")


def nine_unknown() -> FakeSource:
    source = shelf()
    _, first, *_ = source.fleet.models
    more = tuple(
        replace(first, id=20 + i, name=f"network-of-{i}-blocks", digest=f"{i:064x}", metrics={})
        for i in range(9)
    )
    source.fleet = replace(source.fleet, models=(*source.fleet.models, *more))
    return source


@pytest.mark.parametrize("size", [(80, 24), (100, 40), (120, 40), (160, 48)], ids=str)
@pytest.mark.parametrize("source", [shelf, nine_unknown], ids=["two", "many"])
async def test_what_brings_a_model_into_the_plot_is_always_there_to_read(
    open_app: Open, source: Callable[[], FakeSource], size: tuple[int, int]
) -> None:
    async with open_app(source(), size=size) as hands:
        await hands.press("5" if size[1] >= 40 else "V")
        await hands.sees("(:models compare --data)")
        await hands.sees("(:bench)")


async def test_the_line_under_the_plot_follows_the_size_of_the_screen(open_app: Open) -> None:
    async with open_app(nine_unknown(), size=(100, 40)) as hands:
        await hands.press("5")
        await hands.sees("accuracy unknown: 10 models (:models compare --data)")
        await hands.pilot.resize_terminal(220, 60)
        await hands.sees("resnet20-untried, network-of-0-blocks, network-of-1-blocks and 7 more")


async def test_every_model_of_the_front_and_the_one_that_runs_have_a_mark_of_their_own(
    open_app: Open,
) -> None:
    async with open_app(shelf(), size=(160, 48)) as hands:
        await hands.press("5")
        for said in ("● resnet20-slow", "○ resnet20-digits"):
            assert said not in hands.text()
        await hands.sees("resnet20-int8 ●")
        await hands.sees("resnet20-digits ◆")
        await hands.sees("○ resnet20-slow")
        await hands.sees("not timed there: resnet20-untimed (:bench)")
        await hands.sees("accuracy unknown: resnet20-untried")
        small, first, *rest = hands.source.fleet.models
        moved = (replace(small, deployed_on=12), replace(first, deployed_on=0), *rest)
        await hands.change(models=moved)
        await hands.sees("resnet20-digits ●")
        slow = next(row for row in rest if row.name == "resnet20-slow")
        others = tuple(row for row in moved if row.digest != slow.digest)
        await hands.change(models=(*others, replace(slow, deployed_on=1)))
        await hands.sees("◇ resnet20-slow")


async def test_the_model_under_the_cursor_is_the_one_picked_out_in_the_plot(
    open_app: Open,
) -> None:
    async with open_app(shelf(), size=(160, 48)) as hands:
        await hands.press("5")
        await hands.sees("○ resnet20-slow")

        def reversed_names() -> list[str]:
            strips = hands.app.screen._compositor.render_strips()[24:]
            return [s.text for strip in strips for s in strip if s.style and s.style.reverse]

        await hands.until(lambda: "resnet20-digits-h1" in reversed_names())
        await hands.press("down", "down")
        await hands.until(lambda: "resnet20-int8" in reversed_names())
        assert "resnet20-digits-h1" not in reversed_names()


async def test_keys_read_nothing_anew(open_app: Open) -> None:
    async with open_app(shelf()) as hands:
        await hands.press("5")
        await hands.idle()
        before = hands.source.compared
        assert before > 0
        await hands.press("V", "down", "down", "V", "V", "escape", "up")
        await hands.idle()
        assert hands.source.compared == before


@pytest.mark.parametrize(
    ("ms", "known", "said"),
    [
        ({}, True, "No model was timed yet: b on a device times what it runs, :bench A B others."),
        (
            {"resnet20-digits": 4.0},
            False,
            "No accuracy is known of what was timed: :models compare --data DATA adds it.",
        ),
    ],
    ids=["no latency", "no accuracy"],
)
async def test_an_empty_plot_says_what_to_do(
    open_app: Open, ms: dict[str, float], known: bool, said: str
) -> None:
    source = FakeSource()
    source.latencies = ms
    if not known:
        bare = tuple(replace(row, metrics={}) for row in source.fleet.models)
        source.fleet = replace(source.fleet, models=bare)
    async with open_app(source) as hands:
        await hands.press("V")
        await hands.sees(said)


async def test_without_models_the_plot_says_how_one_is_made(open_app: Open) -> None:
    source = FakeSource()
    source.fleet = replace(source.fleet, models=())
    async with open_app(source) as hands:
        await hands.press("V")
        await hands.sees("No model is known yet: press r to make a smaller one.")


async def test_a_single_model_and_equal_ones_have_a_plot_too(open_app: Open) -> None:
    source = FakeSource()
    small, first, *probes = source.fleet.models
    source.fleet = replace(source.fleet, models=(first, *probes))
    async with open_app(source) as hands:
        await hands.press("V")
        await hands.sees("◆ resnet20-digits")
        hands.source.latencies[small.name] = hands.source.latencies[first.name]
        same = replace(small, metrics=first.metrics)
        await hands.change(models=(first, same, *probes))
        await hands.sees("resnet20-digits-h1")


async def test_names_from_elsewhere_cannot_break_the_plot(open_app: Open) -> None:
    source = FakeSource()
    _, first, *_ = source.fleet.models
    rows = [
        replace(first, name=name, digest=f"{i:064x}", metrics={"test_accuracy": 0.9 + i / 1000})
        for i, name in enumerate(HOSTILE)
    ]
    source.latencies = {name: 2.0 + i / 10 for i, name in enumerate(HOSTILE)}
    source.fleet = replace(source.fleet, models=tuple(rows))
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press("5")
        await hands.sees("dev[eu-1]")
        lines = hands.text().splitlines()
        assert len(lines) == 48
        assert "\x1b" not in hands.text()


def test_the_source_reads_models_and_latencies_from_the_store(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[fleet]\nname = "f"\n[[devices]]\nname = "a"\n')
    settings = load(file)
    source = FleetSource(Context(settings=settings))
    assert source.comparison().rows == ()
    with_probe = (("m", "model"), ("p", "probe"))
    store = open_store(settings.database)
    for name, kind in with_probe:
        models.add(
            store, name=name, digest=name * 64, path="/m", kind=kind, size=9,  # type: ignore[arg-type]
            metrics={"test_accuracy": 0.9},
        )  # fmt: skip
    sweep = measurements.begin(store, "bench")
    measurements.add(store, sweep, Latency(device="a", model="m" * 64, median_ms=3.0))
    store.close()
    (row,) = source.comparison().rows
    source.close()
    assert row.model.name == "m"
    assert row.timed is not None
    assert (row.timed.median_ms, row.on_front) == (3.0, True)
