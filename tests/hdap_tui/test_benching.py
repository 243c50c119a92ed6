"""Time several models, batches and thread counts in one visit, on real lab devices."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from operating import Site, hdap, network
from sshd import Sshd

from engine.latency import Latency
from hdap_tui.cli.app import run
from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan
from hdap_tui.measuring import is_off
from hdap_tui.store import measurements
from hdap_tui.store.database import open_store
from hdap_tui.sweep import Bench, Fleet

SETTINGS = """
[[models]]
name = "slow"
path = "slow.onnx"
[benchmark]
runs = 10
warmup_runs = 3
warmup_s = 0.02
block_s = 0.05
blocks_min = 4
blocks_max = 4
time_limit_s = 30
"""


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(2, plan=Plan(step_at_s=None))
    file = tmp_path_factory.mktemp("benching") / "fleet.toml"
    file.write_text(fleet_toml(lab, SETTINGS))
    network(file.parent / "slow.onnx", layers=18)
    network(file.parent / "fast.onnx", layers=1)
    new = onnx.load(file.parent / "fast.onnx")
    new.opset_import[0].version = 99
    onnx.save(new, file.parent / "new.onnx")
    return Site(lab, file)


def test_a_device_whose_runner_ran_out_of_time_is_not_off() -> None:
    silent = Latency(device="edge", model="m", error="timeout", detail="no answer")
    assert is_off(silent)
    slow = Latency(device="edge", model="m", error="timeout", conditions={"python": "3.11"})
    assert not is_off(slow)


def test_all_combinations_are_timed_in_one_run_and_none_but_the_standard_is_watched(
    site: Site,
) -> None:
    before = hdap(site.file, "bench")
    assert before.status == ExitCode.DONE
    listed = {d["name"]: d["latency_ms"] for d in hdap(site.file, "devices").data["devices"]}

    fast = str(site.folder / "fast.onnx")
    ended = hdap(site.file, "bench", "slow", fast, "--batch", "2,4", "--threads", "1,2")
    assert ended.status == ExitCode.DONE, ended.said
    found = {
        (m["device"], m["model"], m["batch"], m["threads"]): m for m in ended.data["measurements"]
    }
    assert len(found) == 2 * 2 * 2 * 2
    for (_, _, batch, _), one in found.items():
        assert one["per_image_ms"] == pytest.approx(one["median_ms"] / batch)
        assert one["energy_mj"] is None, "an emulated device has no sensor"
        assert one["during"]["span_s"] > 0
    for device in ("edge-01", "edge-02"):
        assert found[device, "slow", 4, 1]["median_ms"] > found[device, "slow", 2, 1]["median_ms"]
        starts = {found[key]["at"] for key in found if key[0] == device}
        assert len(starts) == 1, "one run on the device, fetched at once"

    after = {d["name"]: d["latency_ms"] for d in hdap(site.file, "devices").data["devices"]}
    assert after == listed, "the latest latency is that of the standard configuration"
    shown = hdap(site.file, "devices", "show", "edge-01").data["history"]
    assert {p["configuration"] for p in shown} == {
        "",
        *(f"batch {b}, {t}, CPU" for b in (2, 4) for t in ("1 thread", "2 threads")),
    }
    store = open_store(load(site.file).database)
    watched = measurements.history(store, "edge-01")
    store.close()
    assert {point.configuration for point in watched} == {""}


def test_two_models_are_compared_block_by_block_on_each_device_and_over_the_fleet(
    site: Site,
) -> None:
    fast = str(site.folder / "fast.onnx")
    ended = hdap(site.file, "bench", "slow", fast, "--compare", "--batch", "1,2")
    assert ended.status == ExitCode.DONE
    pairs = {(c["device"], c["batch"]): c for c in ended.data["comparisons"]}
    assert set(pairs) == {(d, b) for d in ("edge-01", "edge-02") for b in (1, 2)}
    for pair in pairs.values():
        assert (pair["old"], pair["new"], pair["emulated"]) == ("slow", "fast", True)
        assert pair["low"] <= pair["speedup"] <= pair["high"]
        assert pair["speedup"] > 1.5
    assert {(f["batch"], f["devices"], f["faster"]) for f in ended.data["fleet"]} == {
        (1, 2, 2), (2, 2, 2),
    }  # fmt: skip


def test_a_model_too_new_for_the_runtime_is_one_sentence_and_the_others_are_measured(
    site: Site,
) -> None:
    ended = hdap(site.file, "bench", "slow", str(site.folder / "new.onnx"))
    assert ended.status == ExitCode.PARTLY
    for one in ended.data["measurements"]:
        if one["model"] == "slow":
            assert one["error"] == ""
        else:
            assert one["error"] == "model"
            assert one["detail"].startswith("the model has opset 99 and IR version 8; the ONNX Run")
            assert "export it for an older opset, or update ONNX Runtime" in one["detail"]


def test_a_comparison_says_what_could_not_be_compared(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("slow", str(site.folder / "fast.onnx"), str(site.folder / "new.onnx"))
    arguments = ["bench", *models, "--compare", "--select", "edge-01", "--config", str(site.file)]
    assert run(arguments, lambda _context: 0) == ExitCode.PARTLY
    told = capsys.readouterr().out
    assert "faster" in told
    assert "on 1 device (emulated)" in told
    assert "edge-01\tnew\t" in told
    assert "opset 99" in told


def test_a_provider_that_the_device_lacks_is_named_beside_those_that_it_has(site: Site) -> None:
    ended = hdap(site.file, "bench", "slow", "--provider", "cpu,cuda", "--select", "edge-01")
    assert ended.status == ExitCode.PARTLY
    good, bad = sorted(ended.data["measurements"], key=lambda one: str(one["error"]))
    assert good["provider"] == "CPUExecutionProvider"
    assert bad["provider"] == "CUDAExecutionProvider"
    assert "no CUDAExecutionProvider; it has" in bad["detail"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("slow", "--batch", "1,none"), "--batch"),
        (("slow", "--threads", "0"), "--threads"),
        (("slow", "--provider", "cude"), 'did you mean "cuda"'),
        (("slow", "--compare"), "name two models"),
        (("slow", "--idle-below", "20"), "share from 0 to 1"),
        (("slow", "--cool-below", "-3"), "--cool-below"),
    ],
)
def test_an_option_without_sense_is_refused_in_one_sentence(
    site: Site, arguments: tuple[str, ...], said: str
) -> None:
    ended = hdap(site.file, "bench", *arguments)
    assert ended.status == ExitCode.USAGE
    assert said in ended.said


class Board:
    """A real SSH server whose Python finds its sensors in a folder."""

    def __init__(self, server: Sshd, folder: Path) -> None:
        self.root = folder / "root"
        self.zone = self.root / "sys/class/thermal/thermal_zone0"
        self.zone.mkdir(parents=True)
        (self.zone / "type").write_text("cpu-thermal")
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nHDAP_SYSROOT={self.root} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.target = server.trusted(folder / "known_hosts", python=str(python))
        self.stages: list[str] = []

    def heat(self, celsius: int) -> None:
        aside = self.zone / "temp.new"
        aside.write_text(str(1000 * celsius))
        aside.replace(self.zone / "temp")

    def visit(self, folder: Path, **changes: Any) -> list[Latency]:
        bench = Bench(
            runs=5, warmup_runs=1, warmup_s=0.0, block_s=0.05, blocks_min=2, blocks_max=2,
            time_limit_s=60.0, **changes,
        )  # fmt: skip
        model = network(folder / "model.onnx", layers=1)

        def say(_device: str, stage: str) -> None:
            self.stages.append(stage)

        with Fleet([self.target], bench, slots_folder=folder / "slots", on_stage=say) as fleet:
            return fleet.visit(self.target, [model])


@pytest.fixture
def board(make_sshd: Callable[..., Sshd], tmp_path: Path) -> Board:
    return Board(make_sshd(), tmp_path)


def test_a_device_waits_until_it_has_cooled_down_and_its_stage_says_so(
    board: Board, tmp_path: Path
) -> None:
    board.heat(71)
    cooling = threading.Timer(4.0, board.heat, (48,))
    cooling.start()
    (found,) = board.visit(tmp_path, cool_below_c=60.0, wait_limit_s=60.0)
    cooling.join()
    assert "cooling 71 °C" in board.stages
    assert found.ok
    assert 1.0 < found.conditions["waited"]["s"] < 30
    assert found.conditions["during"].get("fetched") is None, "nobody looks while it times"


def test_a_device_that_stays_hot_is_skipped_or_measured_and_marked(
    board: Board, tmp_path: Path
) -> None:
    board.heat(81)
    (skipped,) = board.visit(tmp_path, cool_below_c=60.0, wait_limit_s=0.5, at_limit="skip")
    assert skipped.error == "skipped"
    assert "still 81 °C, not below 60 °C" in skipped.detail
    (marked,) = board.visit(tmp_path, cool_below_c=60.0, wait_limit_s=0.5)
    assert marked.ok
    assert any("still 81 °C" in remark for remark in marked.remarks)


COUNTER = """
import builtins, io, runpy, sys, time
usual = open
def counting(path, *given, **options):
    if str(path).endswith("energy_uj"):
        return io.StringIO(str(int(8e6 * time.monotonic())))
    return usual(path, *given, **options)
builtins.open = counting
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""What runs a Python program on a machine that takes eight watts; no file could be as punctual."""


def test_a_sensor_on_the_device_gives_the_energy_of_an_inference(
    board: Board, tmp_path: Path
) -> None:
    board.heat(40)
    zone = board.root / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("1000000000000")
    (tmp_path / "counter.py").write_text(COUNTER)
    python = Path(board.target.python)
    python.write_text(python.read_text().replace(' "$@"', f' {tmp_path}/counter.py "$@"'))
    (found,) = board.visit(tmp_path, energy_s=1.0)
    told = found.conditions["energy"]
    assert told["load_w"] == pytest.approx(8.0, rel=0.1)
    assert found.energy_mj == told["total_mj"] > 0
    assert "energy" in board.stages
