"""The deployments, and what is done on every device of one."""

from __future__ import annotations

from dataclasses import replace

from conftest import Open
from dashboard_fake import FakeSource, deployments, fleet

from hdap_tui.dashboard.screens.confirm import ConfirmScreen


async def test_a_deployment_shows_its_stages_and_every_device(open_app: Open) -> None:
    async with open_app(FakeSource(fleet()), size=(150, 44)) as hands:
        await hands.press("6")
        await hands.idle()
        for said in ("what it brought", "2.31× faster", "kept", "A/B measurement done"):
            await hands.sees(said)
        names = [row.name for row in hands.source.fleet.devices[:8]]
        for name in names:
            await hands.sees(name)


async def test_an_interrupted_deployment_says_which_keys_go_on_and_take_back(
    open_app: Open,
) -> None:
    async with open_app(FakeSource(fleet()), size=(150, 44)) as hands:
        await hands.press("6")
        cut = replace(
            deployments()[0], state="interrupted", stage=2, stages=3, stopped="", speedup=None
        )
        await hands.change(deployments=(cut,))
        await hands.sees("stage 2 of 3")
        await hands.sees("interrupted: R goes on, Z takes it back")
        await hands.press("R")
        await hands.until(
            lambda: (
                isinstance(hands.screen, ConfirmScreen)
                or any(name == "deployments resume" for name, _ in hands.source.ran)
            )
        )
        if isinstance(hands.screen, ConfirmScreen):
            hands.screen.action_answer(True)
        await hands.until(lambda: any(name == "deployments resume" for name, _ in hands.source.ran))
        given = next(given for name, given in hands.source.ran if name == "deployments resume")
        assert given["deployment"] == cut.id
