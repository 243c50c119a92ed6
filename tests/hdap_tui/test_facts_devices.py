"""Facts from real servers: with and without Python there, noticed when they change, and probed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from operating import QUICK, hdap, listed, make_models
from sshd import Sshd, fleet_toml, missing, start_sshds

from engine.latency import Latency
from hdap_tui import probing
from hdap_tui.errors import ExitCode
from hdap_tui.facts import asking, gather, look, merged, pythons
from hdap_tui.facts.noticing import Noticing
from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.store import facts
from hdap_tui.store.database import Store, open_store

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sshd]]:
    started = start_sshds(tmp_path_factory.mktemp("sshd"), 2)
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def file(servers: list[Sshd], tmp_path: Path) -> Path:
    make_models(tmp_path)
    path = tmp_path / "fleet.toml"
    path.write_text(fleet_toml(servers, tmp_path / "state", sys.executable, QUICK))
    return path


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    listed(file)  # makes the database and tells it of the devices
    opened = open_store(file.parent / "state" / "fleet.db")
    yield opened
    opened.close()


def test_a_device_without_python_still_has_facts(servers: list[Sshd]) -> None:
    connection = connect(servers[0].target(python="/no/such/python"))
    try:
        seen, gathered = look(connection), gather(connection)
    finally:
        connection.close()
    assert seen["machine"] == os.uname().machine
    assert seen["kernel"] == os.uname().release
    assert seen["cores"] >= 1  # type: ignore[operator]
    assert seen["disk_free_mb"] > 0  # type: ignore[operator]
    assert gathered["boot_id"] == seen["boot_id"]
    assert "onnxruntime" not in gathered
    assert all(one.path.startswith("/") for one in pythons(seen))


def test_what_only_python_knows_comes_with_it(servers: list[Sshd]) -> None:
    connection = connect(servers[0].target(python=sys.executable))
    try:
        found = gather(connection)
    finally:
        connection.close()
    assert found["python"] == platform.python_version()
    assert "CPUExecutionProvider" in found["providers"]  # type: ignore[operator]
    assert found["onnxruntime"]
    assert found["numpy"]
    assert len(found["runner"]) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [b"", b"nothing of the kind", b"machine=\n", b"\xff\xfe\x00" * 100, b"runner={}"],
)
def test_an_answer_without_sense_is_garbage(
    servers: list[Sshd], answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ask", lambda *_args, **_options: answer)
    connection = connect(servers[0].target())
    try:
        with pytest.raises(DeviceError, match="makes no sense") as caught:
            look(connection)
    finally:
        connection.close()
    assert caught.value.kind is ErrorKind.GARBAGE


@pytest.mark.parametrize(
    "told",
    ["[1]", "{", "null", "[" * 100_000, '{"onnxruntime": ["x"], "providers": 5, "cores": 1e999}'],
)
def test_a_runner_that_lies_spoils_only_its_own_part(
    servers: list[Sshd], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f"machine=x86_64\nprocessors=4\n\nrunner={told}\n".encode()
    monkeypatch.setattr(asking, "ask", lambda *_args, **_options: answer)
    connection = connect(servers[0].target())
    try:
        found = asking.gather_again(connection)
    finally:
        connection.close()
    assert (found["machine"], found["cores"]) == ("x86_64", 4)
    assert "onnxruntime" not in found
    assert "providers" not in found


def test_the_shell_knows_the_hardware_and_python_its_own() -> None:
    seen = {"cpu_model": "Cortex-A76", "cores": 4}
    told = {"cpu_model": "BCM2835", "memory_kb": 8192, "onnxruntime": "1.20.1", "python": None}
    assert merged(seen, told) == {
        "cpu_model": "Cortex-A76", "cores": 4, "memory_mb": 8, "onnxruntime": "1.20.1",
    }  # fmt: skip


def test_checking_keeps_what_it_found_and_every_view_shows_it(
    file: Path, servers: list[Sshd]
) -> None:
    assert hdap(file, "devices", "check").status == ExitCode.DONE
    name = servers[0].name
    shown = hdap(file, "devices", "facts").data["devices"]
    assert shown[0]["facts"]["kernel"] == os.uname().release
    assert listed(file)[name]["facts"] == shown[0]["facts"]
    assert hdap(file, "devices", "show", name).data["facts"]["machine"] == os.uname().machine
    assert hdap(file, "devices", "list", "--columns", "state,kernel,group").status == ExitCode.DONE
    picked = hdap(file, "devices", "list", "--select", f"kernel={os.uname().release}")
    assert len(picked.data["devices"]) == len(servers)
    found = hdap(file, "devices", "cohorts", "--by", "machine,state").data
    (cohort,) = found["cohorts"]
    assert cohort["facts"] == {"machine": os.uname().machine, "state": "ok"}
    assert (cohort["size"], cohort["median_ms"]) == (2, None)


def test_a_column_that_does_not_exist_is_one_sentence(file: Path) -> None:
    for command in (("facts", "--columns"), ("list", "--columns"), ("cohorts", "--by")):
        ended = hdap(file, "devices", *command, "kernl")
        assert ended.status == ExitCode.USAGE
        assert 'did you mean "kernel"?' in ended.said


def test_a_device_that_is_off_costs_only_its_own_facts(file: Path, servers: list[Sshd]) -> None:
    servers[1].stop()
    try:
        ended = hdap(file, "devices", "facts", "--refresh")
    finally:
        servers[1].restart()
    assert ended.status == ExitCode.PARTLY
    first, second = ended.data["devices"]
    assert first["facts"]["machine"]
    assert second["error"] == "refused"
    assert second["facts"] == {}


def test_a_visit_notices_another_kernel_and_the_history_says_so(
    file: Path, store: Store, servers: list[Sshd]
) -> None:
    name = servers[0].name
    assert hdap(file, "bench", "tiny").status == ExitCode.DONE  # the first contact
    first = facts.latest_of(store, name)
    assert first["kernel"] == os.uname().release
    query = "SELECT stamp FROM device_facts_latest"
    stamps = [row["stamp"] for row in store.rows(query)]
    hdap(file, "bench", "tiny")
    assert [row["stamp"] for row in store.rows(query)] == stamps  # nothing new, nobody asked
    facts.save(store, name, {**first, "kernel": "5.0.0-old", "boot_id": "before"})
    hdap(file, "bench", "tiny", "--select", name)
    again = facts.latest_of(store, name)
    assert (again["kernel"], again["boot_id"]) == (first["kernel"], first["boot_id"])
    history = hdap(file, "devices", "facts", "--history", "--select", name).data["devices"]
    assert history[0]["history"][-1]["changes"] == [
        {"name": "kernel", "before": "5.0.0-old", "after": os.uname().release}
    ]


def test_a_device_is_looked_at_once_for_each_change(store: Store, servers: list[Sshd]) -> None:
    name = servers[0].name
    noticing = Noticing(store)

    def said(**conditions: str) -> Latency:
        return Latency(device=name, model="x" * 64, median_ms=1.0, conditions=conditions)

    noticing.saw(said(kernel="1", boot_id="a"))
    assert noticing._due == {name}
    noticing._due.clear()
    noticing.saw(said(kernel="1", boot_id="a"))
    assert noticing._due == set()  # it was looked at for this already
    noticing.saw(said(kernel="1", boot_id="b"))
    assert noticing._due == {name}
    noticing._due.clear()
    noticing.saw(Latency(device=name, model="x" * 64, error="timeout"))
    noticing.saw(said(kernel="1", boot_id="b"))
    assert noticing._due == set()
    facts.save(store, name, {"kernel": "1", "boot_id": "c"})
    fresh = Noticing(store)
    fresh.saw(said(kernel="1", boot_id="c"))
    assert fresh._due == set()  # all that it says is known


def test_a_probe_finds_a_multiple_or_says_why_not(
    file: Path, store: Store, servers: list[Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "BLOCKS", 3)
    monkeypatch.setattr(probing, "_BLOCK_S", 0.02)
    name = servers[0].name
    ended = hdap(file, "devices", "probe", "--select", name)
    (one,) = ended.data["devices"]
    if not one["ok"]:
        pytest.skip(f"this machine is too busy: {one['detail']}")
    assert one["channel_multiple"] in {1, 2, 4, 8, 16, 32}
    assert len(one["latency_ms"]) == 18
    assert facts.latest_of(store, name)["channel_multiple"] == one["channel_multiple"]
    assert facts.common_multiple(store) == one["channel_multiple"]
    if "avx512f" in facts.latest_of(store, name).get("isa", []):  # type: ignore[operator]
        assert one["channel_multiple"] in {8, 16}
