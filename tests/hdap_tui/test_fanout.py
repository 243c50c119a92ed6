from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from left_over import watch
from sshd import Sshd, wait_for

from hdap_tui import schedule
from hdap_tui.fanout import on_each
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> Iterator[list[Sshd]]:
    started = make_sshds(4)
    yield started
    for server in started:
        server.stop()


def test_every_kind_of_failure_is_a_value_and_leaves_nothing_behind(
    servers: list[Sshd], tmp_path: Path
) -> None:
    before = watch([])
    good, broken, refused, unknown = (server.target() for server in servers)
    refused = replace(refused, identity=tmp_path / "nothing")
    unknown = replace(unknown, known_hosts=tmp_path / "known_hosts")
    told: list[tuple[str, str]] = []

    def act(connection: Connection) -> bytes:
        if connection.target == broken:
            raise ValueError("what it answers is no number")
        return connection.call("echo here").out

    with Connections(4) as pool:
        found = dict(
            on_each(
                pool, [good, broken, refused, unknown], act,
                on_stage=lambda *stage: told.append(stage),
            )
        )  # fmt: skip
    kinds = {t.name: a.kind if isinstance(a, DeviceError) else a for t, a in found.items()}
    assert kinds == {
        good.name: b"here\n",
        broken.name: ErrorKind.GARBAGE,
        refused.name: ErrorKind.AUTHENTICATION,
        unknown.name: ErrorKind.HOST_KEY_UNKNOWN,
    }
    stages = [stage for name, stage in told if name == good.name]
    assert stages == ["connecting", "asking", "done"]
    assert (unknown.name, "failed: host key unknown") in told
    wait_for(lambda: not before.left_over())


def test_devices_that_stay_silent_keep_no_other_waiting(
    servers: list[Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_MOMENT_S", 0.2)
    silent = [replace(servers[0].target(), name=f"silent-{number}") for number in range(6)]
    quick = [server.target() for server in servers[1:]]
    free = threading.Event()

    def act(connection: Connection) -> str:
        if connection.where.startswith("silent"):
            free.wait(30)
        return "done"

    with Connections(2) as pool:
        answers = on_each(pool, [*silent, *quick], act)
        first: list[Target] = [next(answers)[0] for _ in quick]
        assert {target.name for target in first} == {target.name for target in quick}
        free.set()
        assert len(list(answers)) == 6


def test_an_interrupted_fan_out_ends_what_still_runs(servers: list[Sshd]) -> None:
    begun, stop = threading.Event(), threading.Event()

    def act(connection: Connection) -> None:
        if connection.where == servers[0].name:
            return
        begun.set()
        stop.wait(30)

    with Connections(4) as pool:
        answers = on_each(pool, [server.target() for server in servers], act, stop=stop)
        next(answers)
        assert begun.wait(10)
        began = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        assert stop.is_set()
        assert time.monotonic() - began < 10
