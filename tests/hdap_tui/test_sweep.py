from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from engine.latency import Latency
from hdap_tui import slots
from hdap_tui.errors import UserError
from hdap_tui.reach import targets
from hdap_tui.ssh.target import Target, Timeouts
from hdap_tui.sweep import Bench, Fleet

LIMITS = Timeouts(
    connect=2, handshake=2, auth=2, channel=2, command=4, stall=4, total=3, dead_after=6
)
QUICK = Bench(
    runs=3, warmup_runs=1, warmup_s=0.0, block_s=0.02, blocks_min=2, blocks_max=2,
    interval_percent=1000.0, time_limit_s=30.0, lease_s=10.0,
)  # fmt: skip
ENDLESS = replace(QUICK, blocks_min=1000, blocks_max=1000, block_s=0.3)
TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[1,8] x) => (float[1,8] y) {{ y = {}(x) }}'
OPERATORS = ("Relu", "Tanh", "Abs", "Exp", "Neg", "Sigmoid", "Sin", "Cos")
FOREVER = """<ir_version: 8, opset_import: ["": 17]> g (float[1,8] x) => (float[1,8] y) {
n = Constant <value = int64 {4000000000000}> () t = Constant <value = bool {1}> ()
y = Loop <body = b (int64 i, bool c, float[1,8] a) => (bool d, float[1,8] z)
{ d = Identity(c) z = Tanh(a) }> (n, t, x) }"""


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    for name in OPERATORS:
        model = onnx.parser.parse_model(TEXT.format(name))
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    return [tmp_path / f"{name}.onnx" for name in OPERATORS]


class Stages:
    """What the fleet says it is doing, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def __call__(self, device: str, stage: str) -> None:
        self.all.append((device, stage))

    def of(self, device: str) -> list[str]:
        return [stage for name, stage in self.all if name == device]


@pytest.fixture
def stages() -> Stages:
    return Stages()


@pytest.fixture
def fleet(lab: Any, tmp_path: Path, stages: Stages) -> Iterator[Fleet]:
    members = [
        Target(
            name=device.name, host=device.host, port=device.port, user=device.user,
            identity=lab.identity, known_hosts=lab.known_hosts, timeouts=LIMITS,
            host_group="machine", emulated=True,
        )
        for device in lab.devices
    ]  # fmt: skip
    opened = Fleet(
        members, QUICK, slots_folder=tmp_path / "slots", cores=lambda _: 2, on_stage=stages
    )
    with opened:
        yield opened


def everything(fleet: Fleet, models: list[Path]) -> dict[Target, list[Path]]:
    return dict.fromkeys(fleet.members.values(), models)


def home(lab: Any, device: str) -> Path:
    return Path(lab.device(device).home)


def runners(lab: Any) -> list[str]:
    """Command lines of the runners that live on the lab's devices."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return [command for command in found if str(lab.state) in command and ".py" in command]


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_every_device_is_measured_and_tidied_up(
    lab: Any, fleet: Fleet, models: list[Path], stages: Stages
) -> None:
    found = list(fleet.measure_many(everything(fleet, models[:2])))
    assert all(latency.ok for latency in found), found
    assert len({(latency.device, latency.model) for latency in found}) == 8
    assert {latency.device for latency in found} == set(fleet.members)
    for latency in found:
        assert latency.emulated
        assert latency.low_ms <= latency.median_ms <= latency.high_ms
        assert len(latency.block_medians_ms) == 2
        assert latency.clock_offset_s is not None
        assert abs(latency.clock_offset_s) < 5
        assert latency.at
    for name in fleet.members:
        assert list((home(lab, name) / ".hdap" / "jobs").iterdir()) == []
        seen = stages.of(name)
        for stage in ("connecting", "upload", "waiting", "starting", "timing"):
            assert seen.index(stage) < seen.index("done")
    wait_for(lambda: not runners(lab))


def test_eight_models_are_timed_interleaved_in_one_run(
    lab: Any, fleet: Fleet, models: list[Path], stages: Stages
) -> None:
    target = next(iter(fleet.members.values()))
    found = fleet.visit(target, models)
    assert len(found) == 8
    assert all(latency.ok for latency in found), found
    assert stages.of(target.name).count("starting") == 1


def test_two_files_with_one_content_are_timed_once_and_answered_twice(
    fleet: Fleet, models: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "copy.onnx").write_bytes(models[0].read_bytes())
    target = next(iter(fleet.members.values()))
    found = fleet.visit(target, [models[0], tmp_path / "copy.onnx"])
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0].ok


def test_the_engine_can_ask_by_name(fleet: Fleet, models: list[Path]) -> None:
    names = list(fleet.members)[:2]
    found = list(fleet.measure([(model, name) for name in names for model in models[:2]]))
    assert len(found) == 4
    assert {latency.device for latency in found} == set(names)
    with pytest.raises(UserError, match='no device is called "nobody"'):
        fleet.measure([(models[0], "nobody")])


def test_one_hanging_device_costs_only_its_limit_and_delays_nobody(
    fleet: Fleet, models: list[Path], fault: Callable[..., None]
) -> None:
    hanging = next(iter(fleet.members))
    fault(hanging, "hang")
    began = time.monotonic()
    found = list(fleet.measure_many(everything(fleet, models[:1])))
    assert time.monotonic() - began < 25
    record = {latency.device: latency for latency in found}
    assert len(found) == 4
    assert record.pop(hanging).error == "timeout"
    assert all(latency.ok for latency in record.values())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("refuse", "refused"),
        ("hang-after-auth", "timeout"),
        ("host-key-changed", "host key changed"),
        ("full-disk", "disk full"),
        ("garbage", "garbage"),
    ],
)
def test_a_failing_device_is_a_record_for_every_model(
    lab: Any, fleet: Fleet, models: list[Path], fault: Callable[..., None], stages: Stages,
    kind: str, error: str,
) -> None:  # fmt: skip
    target = list(fleet.members.values())[1]
    fault(target.name, kind)
    began = time.monotonic()
    found = fleet.visit(target, models[2:4])
    assert time.monotonic() - began < 12
    assert [latency.error for latency in found] == [error, error]
    assert {latency.model for latency in found} == {_digest(model) for model in models[2:4]}
    assert all(target.name in latency.detail and latency.at for latency in found)
    assert all(latency.emulated for latency in found)
    assert stages.of(target.name)[-1] == f"failed: {error}"


def test_a_connection_dropped_during_the_benchmark_loses_nothing(
    fleet: Fleet, models: list[Path], fault: Callable[..., None], stages: Stages
) -> None:
    target = list(fleet.members.values())[2]

    def drop(device: str, stage: str) -> None:
        stages(device, stage)
        if stage == "timing":
            fault(device, "drop", after_s=0.0, times=1)

    found = fleet.visit(target, models[:1], replace(QUICK, block_s=0.3), drop)
    assert [latency.ok for latency in found] == [True], found
    assert stages.of(target.name).count("starting") == 1


def test_no_more_benchmarks_run_on_a_machine_than_it_has_cores(
    lab: Any, tmp_path: Path, fleet: Fleet, models: list[Path]
) -> None:
    running: set[str] = set()
    most = 0

    def on_stage(device: str, stage: str) -> None:
        nonlocal most
        if stage == "starting":
            running.add(device)
        elif stage == "done":
            running.discard(device)
        most = max(most, len(running))

    found = list(fleet.measure_many(everything(fleet, models[:1]), on_stage=on_stage))
    assert all(latency.ok for latency in found)
    assert most == 2


def test_a_machine_that_another_process_uses_is_waited_for(
    tmp_path: Path, fleet: Fleet, models: list[Path], stages: Stages
) -> None:
    held = [slots.take(tmp_path / "slots", "machine", 2) for _ in range(2)]
    target = next(iter(fleet.members.values()))
    found: list[Latency] = []
    thread = threading.Thread(target=lambda: found.extend(fleet.visit(target, models[:1])))
    thread.start()
    wait_for(lambda: stages.of(target.name)[-1:] == ["waiting"])
    time.sleep(0.3)
    assert stages.of(target.name)[-1] == "waiting"
    for slot in held:
        assert slot is not None
        slot.close()
    thread.join(20)
    assert [latency.ok for latency in found] == [True]


def test_cancelling_ends_the_runners_before_it_returns(
    lab: Any, fleet: Fleet, models: list[Path], stages: Stages
) -> None:
    unwanted = threading.Event()

    def cancel_when_they_run() -> None:
        wait_for(lambda: sum("--block" in args for args in runners(lab)) == 2)
        unwanted.set()

    def on_stage(device: str, stage: str) -> None:
        stages(device, stage)
        if stage == "timing" and [s for _, s in stages.all].count("timing") == 2:
            threading.Thread(target=cancel_when_they_run).start()

    visits = everything(fleet, models[:1])
    assert list(fleet.measure_many(visits, ENDLESS, on_stage, unwanted.is_set)) == []
    assert unwanted.is_set()
    assert runners(lab) == []
    assert [stages.of(name)[-1] for name in fleet.members] == ["cancelled"] * 4
    for name in fleet.members:
        assert list((home(lab, name) / ".hdap" / "jobs").iterdir()) == []


def test_a_killed_controller_leaves_runners_that_end_by_their_lease(
    lab: Any, tmp_path: Path
) -> None:
    device = lab.devices[3]
    endless = tmp_path / "endless.onnx"
    endless.write_bytes(onnx.parser.parse_model(FOREVER).SerializeToString())
    script = f"""
        from pathlib import Path
        from hdap_tui.ssh.target import Target
        from hdap_tui.sweep import Bench, Fleet
        target = Target(name="edge", host={device.host!r}, port={device.port},
                        user={device.user!r}, identity=Path({str(lab.identity)!r}),
                        known_hosts=Path({str(lab.known_hosts)!r}))
        bench = Bench(warmup_s=0.0, block_s=0.1, blocks_min=1, blocks_max=1, lease_s=1.0)
        with Fleet([target], bench, slots_folder=Path({str(tmp_path / "slots")!r})) as fleet:
            list(fleet.measure([(Path({str(endless)!r}), "edge")]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        wait_for(lambda: [args for args in runners(lab) if "--block" in args])
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    wait_for(lambda: not runners(lab))
    assert time.monotonic() - began < 10


def test_models_wanted_only_once_do_not_stay(
    lab: Any, fleet: Fleet, models: list[Path], tmp_path: Path
) -> None:
    target = list(fleet.members.values())[3]
    folder = home(lab, target.name) / ".hdap" / "models"
    fleet.visit(target, models[:1])
    assert (folder / f"{_digest(models[0])}.onnx").exists()
    fleet.visit(target, models[:1] + models[6:7], replace(QUICK, keep_models=False))
    assert (folder / f"{_digest(models[0])}.onnx").exists()  # it was there before
    assert not (folder / f"{_digest(models[6])}.onnx").exists()


def test_what_is_no_model_fails_alone(fleet: Fleet, models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    target = next(iter(fleet.members.values()))
    bad, good = fleet.visit(target, [tmp_path / "text.onnx", models[0]])
    assert bad.error == "model"
    assert good.ok


def test_a_model_file_that_is_missing_is_the_operators_mistake(
    fleet: Fleet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"none\.onnx"):
        fleet.visit(next(iter(fleet.members.values())), [tmp_path / "none.onnx"])


def test_the_settings_say_how_devices_are_reached(fleet_file: Path, lab: Any) -> None:
    from hdap_tui.config import load

    settings = load(fleet_file)
    found = {target.name: target for target in targets(settings)}
    assert set(found) == {device.name for device in lab.devices}
    for device in lab.devices:
        target = found[device.name]
        assert (target.host, target.port, target.user) == (device.host, device.port, device.user)
        assert target.emulated
        assert target.host_group
        assert target.known_hosts == settings.known_hosts
    assert Bench.of(settings.benchmark).runs == settings.benchmark.runs
    assert Bench.of(settings.canary).blocks_max == settings.canary.blocks_max
    with Fleet.of(settings) as fleet:
        assert set(fleet.members) == set(found)


def _digest(model: Path) -> str:
    import hashlib

    return hashlib.sha256(model.read_bytes()).hexdigest()
