"""The runner looks at the machine, waits for it, and weighs its energy: on a made-up /sys."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from engine import runner
from engine.results import parse

RUNNER = Path(runner.__file__)
BLOCKS = {"runs": 3, "warmup_runs": 1, "warmup_s": 0.0, "block_s": 0.05, "blocks_min": 2}
HZ = os.sysconf("SC_CLK_TCK")


class Machine:
    """A folder that stands for a machine's / with its sensors."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(file.name + ".new")  # never half a number
        aside.write_text(f"{text}\n")
        aside.replace(file)
        return file

    def zone(self, celsius: float, kind: str = "cpu-thermal") -> None:
        self.write("sys/class/thermal/thermal_zone0/type", kind)
        self.write("sys/class/thermal/thermal_zone0/temp", int(1000 * celsius))

    def cooling(self, state: int, kind: str = "cpufreq-cpu0") -> None:
        self.write("sys/class/thermal/cooling_device0/type", kind)
        self.write("sys/class/thermal/cooling_device0/cur_state", state)

    def clocks(self, khz: int) -> None:
        for core in range(os.cpu_count() or 1):
            self.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)

    def throttled(self, count: int) -> None:
        self.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", count)

    def busy(self, used_s: float, idle_s: float) -> None:
        self.write("proc/stat", f"cpu {int(used_s * HZ)} 0 0 {int(idle_s * HZ)} 0 0 0 0 0 0")

    def ina3221(self, **milliamperes: int) -> None:
        chip = "sys/class/hwmon/hwmon0"
        self.write(f"{chip}/name", "ina3221")
        for number, (rail, current) in enumerate(milliamperes.items(), start=1):
            self.write(f"{chip}/in{number}_label", rail)
            self.write(f"{chip}/in{number}_input", 5000)
            self.write(f"{chip}/curr{number}_input", current)

    def rapl(self, microjoules: float, zone: int = 0, range_uj: int = 1_000_000) -> None:
        folder = f"sys/class/powercap/intel-rapl:{zone}"
        self.write(f"{folder}/name", f"package-{zone}")
        self.write(f"{folder}/max_energy_range_uj", range_uj)
        self.write(f"{folder}/energy_uj", int(microjoules) % range_uj)

    def vcgencmd(self, **answers: str) -> None:
        cases = " ".join(f"{name}) printf '{text}\\n';;" for name, text in answers.items())
        program = self.write("usr/bin/vcgencmd", f"#!/bin/sh\ncase $1 in {cases} esac")
        program.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(runner, "SYSTEM", str(tmp_path / "root"))
    yield Machine(tmp_path / "root")
    runner.all_cores()  # a look leaves this process where its child was not


@pytest.fixture
def moving() -> Iterator[Callable[[Callable[[float], None]], None]]:
    """Start what moves a sensor: it is called with the seconds that have passed."""
    stop, threads = threading.Event(), []

    def start(move: Callable[[float], None]) -> None:
        began = time.monotonic()

        def run() -> None:
            with contextlib.suppress(OSError, AttributeError):  # a sensor never has to wait
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
            while not stop.wait(0.01):
                move(time.monotonic() - began)

        move(0.0)
        thread = threading.Thread(target=run, daemon=True)
        threads.append(thread)
        thread.start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def run(folder: Path, machine: Machine, **request: Any) -> list[dict[str, Any]]:
    """Run the runner over one small model; return its lines."""
    import hashlib

    folder.mkdir(exist_ok=True)
    text = '<ir_version: 8, opset_import: ["": 17]> g (float["n",8] x) => (float["n",8] y) {'
    data = onnx.parser.parse_model(text + "y = Relu(x) }").SerializeToString()
    (folder / "m.onnx").write_bytes(data)
    models = [{"digest": hashlib.sha256(data).hexdigest(), "path": "m.onnx"}]
    asked = {"version": 1, "models": models, **BLOCKS, "blocks_max": 2, **request}
    (folder / "request.json").write_text(json.dumps(asked))
    environ = {**os.environ, "HDAP_SYSROOT": str(machine.root)}
    command = [sys.executable, str(RUNNER), str(folder)]
    subprocess.run(command, env=environ, timeout=60, start_new_session=True, check=False)
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def latency_of(lines: list[dict[str, Any]]) -> Any:
    (digest,) = lines[-1]["models"]
    return parse([json.dumps(v).encode() + b"\n" for v in lines], "d", [digest]).latencies[digest]


# ---- watching


def test_what_is_seen_while_a_block_runs_is_summed_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.clocks(1_800_000)
    machine.zone(61.0)
    machine.cooling(0)
    machine.throttled(4)
    machine.busy(10.0, 10.0)
    watch = runner.Watch()
    watch.look(os.getpid())
    machine.clocks(1_200_000)
    machine.zone(84.5)
    machine.cooling(2)
    machine.throttled(7)
    machine.busy(11.0, 11.0)
    watch.look(os.getpid())
    monkeypatch.setattr(runner.os, "times", lambda: (0.0,) * 5)
    seen = watch.summary()
    assert seen["clock_khz"] == [1_200_000, 1_500_000, 1_800_000]
    assert seen["temperature_c"] == [61.0, 84.5]
    assert (seen["cooling"], seen["throttle_count"], seen["looks"]) == (2, 3, 2)
    assert 0 <= seen["look_ms"] < 1000


def test_a_machine_without_sensors_has_no_readings(machine: Machine) -> None:
    machine.root.mkdir()
    watch = runner.Watch()
    watch.look(os.getpid())
    seen = watch.summary()
    assert set(seen) == {"span_s", "looks", "look_ms"}
    assert runner.hottest(runner.temperatures()) is None


def test_others_are_told_from_what_the_run_itself_uses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = 5.0
    monkeypatch.setattr(runner.os, "times", lambda: (own, 0.0, 0.0, 0.0, 0.0))
    machine.busy(100.0, 100.0)
    busy = runner.Busy()
    assert busy.share() is None, "nothing has happened yet"
    own = 6.0  # one second is ours, and one somebody else's, of four
    machine.busy(102.0, 102.0)
    assert busy.share() == pytest.approx(0.25)


def test_the_hottest_zone_of_the_processor_counts_and_a_fan_slows_nothing_down(
    machine: Machine,
) -> None:
    machine.zone(50.0, "cpu-thermal")
    machine.write("sys/class/thermal/thermal_zone1/type", "wifi")
    machine.write("sys/class/thermal/thermal_zone1/temp", 90000)
    assert runner.hottest(runner.temperatures()) == 50.0
    machine.cooling(3, "pwm-fan")
    assert runner.cooling_states() == {}
    machine.cooling(3, "cpufreq-cpu0")
    assert runner.cooling_states() == {"cpufreq-cpu0 0": 3}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has no other core")
def test_the_look_is_taken_from_another_core_than_the_childs() -> None:
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    code = f"import os, sys, time; os.sched_setaffinity(0, {{{core}}}); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code + "; sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        try:
            assert runner.step_aside(child.pid) == core
            assert core not in os.sched_getaffinity(0)
        finally:
            runner.all_cores()
            child.kill()
    assert os.sched_getaffinity(0) == allowed


def test_a_run_says_that_it_was_throttled(
    tmp_path: Path, machine: Machine, moving: Callable[..., None]
) -> None:
    machine.zone(70.0)
    machine.clocks(1_500_000)
    moving(lambda passed: machine.throttled(int(10 * passed)))
    found = latency_of(run(tmp_path / "job", machine, block_s=0.4, runs=10**6))
    assert found.conditions["throttled"] is True
    assert found.remarks[0] == "throttled during the run"
    meanwhile = found.conditions["during"]
    assert meanwhile["looks"] >= 1
    assert meanwhile["temperature_c"] == [70.0, 70.0]
    assert meanwhile["clock_khz"] == [1_500_000] * 3


# ---- waiting


def test_a_hot_machine_is_waited_for_until_it_has_cooled_down(
    tmp_path: Path, machine: Machine, moving: Callable[..., None]
) -> None:
    moving(lambda passed: machine.zone(75.0 if passed < 1.2 else 50.0))
    lines = run(tmp_path / "job", machine, cool_below_c=60.0, wait_limit_s=30.0)
    events = [line["event"] for line in lines]
    assert events[:4] == ["hello", "phase", "waited", "timed"]
    assert (lines[1]["phase"], lines[1]["value"]) == ("cooling", 75.0)
    assert 0.5 < lines[2]["s"] < 10
    found = latency_of(lines)
    assert found.ok
    assert found.conditions["waited"]["s"] == lines[2]["s"]
    assert not any("waiting" in remark for remark in found.remarks)


@pytest.mark.parametrize("at_limit", ["measure", "skip"])
def test_at_the_limit_it_is_measured_and_marked_or_skipped(
    tmp_path: Path, machine: Machine, at_limit: str
) -> None:
    machine.zone(75.0)
    asked = {"cool_below_c": 60.0, "wait_limit_s": 0.3, "at_limit": at_limit}
    lines = run(tmp_path / "job", machine, **asked)
    if at_limit == "skip":
        last = lines[-1]
        assert (last["event"], last["model"], last["error"]) == ("failed", None, "skipped")
        assert "still 75 °C, not below 60 °C" in last["detail"]
        assert not any(line["event"] == "block" for line in lines)
    else:
        assert any("still 75 °C" in remark for remark in latency_of(lines).remarks)


def test_a_busy_machine_is_waited_for(
    tmp_path: Path, machine: Machine, moving: Callable[..., None]
) -> None:
    # Others use half of a machine of twenty processors, until two and a half seconds have passed.
    moving(lambda t: machine.busy(10 * min(t, 2.5), 10 * t + 10 * max(t - 2.5, 0.0)))
    lines = run(tmp_path / "job", machine, idle_below=0.2, wait_limit_s=30.0)
    phase = next(line for line in lines if line["event"] == "phase")
    assert phase["phase"] == "busy"
    assert 0.2 < phase["value"] <= 0.6
    waited = next(line for line in lines if line["event"] == "waited")
    assert "in_vain" not in waited
    assert 1.0 < waited["s"] < 10


def test_without_a_sensor_there_is_nothing_to_wait_for(tmp_path: Path, machine: Machine) -> None:
    machine.root.mkdir()
    lines = run(tmp_path / "job", machine, cool_below_c=60.0)
    waited = next(line for line in lines if line["event"] == "waited")
    assert waited["no_sensor"] == "temperature"
    assert latency_of(lines).ok


# ---- the gap for a fetch


def test_a_later_section_waits_for_the_fetch_that_is_due(tmp_path: Path, machine: Machine) -> None:
    machine.root.mkdir()
    folder = tmp_path / "job"
    folder.mkdir()
    lease, results = folder / "lease", folder / "results.jsonl"
    lease.touch()
    stop = threading.Event()

    def fetch_when_a_section_is_announced() -> None:
        while not stop.wait(0.01):
            text = results.read_text() if results.exists() else ""
            if text.count('"timed"') == 3:
                os.utime(lease)
                return

    thread = threading.Thread(target=fetch_when_a_section_is_announced)
    thread.start()
    asked = {"blocks_min": 2, "blocks_max": 3, "interval_percent": 1e-9, "gap_s": 20.0}
    began = time.monotonic()
    lines = run(folder, machine, **asked)
    stop.set()
    thread.join()
    assert time.monotonic() - began < 15, "it went on as soon as it had been fetched from"
    blocks = [line for line in lines if line["event"] == "block"]
    assert len(blocks) == 3
    assert not any(block["during"].get("fetched") for block in blocks)


def test_a_block_says_that_somebody_connected_in_the_middle_of_it(
    tmp_path: Path, machine: Machine, moving: Callable[..., None]
) -> None:
    machine.root.mkdir()
    (tmp_path / "job").mkdir()
    moving(lambda passed: (tmp_path / "job" / "lease").write_text(str(passed)))
    lines = run(tmp_path / "job", machine)
    assert any("results were fetched" in remark for remark in latency_of(lines).remarks)


# ---- energy


def energy(machine: Machine, tmp_path: Path, **request: Any) -> Any:
    return latency_of(run(tmp_path / "job", machine, **{"energy_s": 1.0, **request}))


def test_jetson_rails_are_read_as_the_one_that_feeds_all_or_as_their_sum(machine: Machine) -> None:
    machine.ina3221(VDD_IN=2000, VDD_CPU_GPU_CV=800, VDD_SOC=300)
    meter = runner.find_meter()
    assert meter is not None
    assert (meter.source, meter.rail) == ("ina3221", "VDD_IN")
    assert meter._take() == pytest.approx(10.0)
    machine.write("sys/class/hwmon/hwmon0/in1_label", "GPU")
    meter = runner.find_meter()
    assert meter is not None
    assert meter.rail == "GPU + VDD_CPU_GPU_CV + VDD_SOC"
    assert meter._take() == pytest.approx(15.5)


def test_an_agx_orins_5_volts_are_not_taken_for_all_of_it(machine: Machine) -> None:
    """Labels as in the kernel's tegra234-p3701.dtsi."""
    machine.ina3221(VDD_GPU_SOC=2000, VDD_CPU_CV=800, VIN_SYS_5V0=300)
    meter = runner.find_meter()
    assert meter is not None
    assert meter.rail == "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert meter._take() == pytest.approx(15.5)


def test_a_raspberry_pis_power_chip_is_the_sum_of_its_rails(machine: Machine) -> None:
    answer = (
        "     3V3_SYS_A current(1)=0.50000000A\\n    VDD_CORE_A current(7)=2.00000000A\\n"
        "     3V3_SYS_V volt(9)=3.30000000V\\n    VDD_CORE_V volt(15)=0.80000000V\\n"
        "     EXT5V_V volt(24)=5.10000000V"
    )
    machine.vcgencmd(pmic_read_adc=answer)
    meter = runner.find_meter()
    assert meter is not None
    assert meter.source == "pmic"
    assert meter._take() == pytest.approx(3.25)


def test_a_battery_counts_only_while_it_feeds_the_machine(machine: Machine) -> None:
    supply = "sys/class/power_supply/BAT0"
    for name, value in (("type", "Battery"), ("power_now", 7_500_000), ("status", "Charging")):
        machine.write(f"{supply}/{name}", value)
    assert runner.find_meter() is None
    machine.write(f"{supply}/status", "Discharging")
    meter = runner.find_meter()
    assert meter is not None
    assert meter._take() == 7.5


def test_counters_that_wrap_go_on(machine: Machine) -> None:
    machine.rapl(900_000)
    machine.rapl(100_000, zone=1)
    meter = runner.find_meter()
    assert meter is not None
    assert (meter.source, meter.rail) == ("rapl", "package-0 + package-1")
    meter._take()
    machine.rapl(1_100_000)  # beyond the range of a million: it starts anew
    machine.rapl(150_000, zone=1)
    assert meter._take() == pytest.approx(0.25)


def test_a_counter_that_may_not_be_read_is_none(machine: Machine) -> None:
    machine.write("sys/class/powercap/intel-rapl:0/name", "package-0")
    assert runner.find_meter() is None


def test_an_emulated_device_has_no_power_of_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.ina3221(VDD_IN=2000)
    monkeypatch.setattr(runner, "emulated", lambda: True)
    assert runner.find_meter() is None


def test_energy_is_power_times_time_above_idle_and_in_all() -> None:
    meter = runner.Meter("test", "all", lambda: None, 0.01, False)
    meter.every_s = meter.period_s = 0.01
    meter.readings = [(k / 100, 2.0 if k < 200 else 5.0) for k in range(400)]
    found = runner.weigh(meter, (0.0, 1.99), {"begin": 2.0, "end": 3.9, "n": 100})
    assert (found["idle_w"], found["load_w"]) == (2.0, 5.0)
    assert found["total_mj"] == pytest.approx(95.0)
    assert found["dynamic_mj"] == pytest.approx(57.0)
    ramp = runner.Meter("test", "all", lambda: None, 0.01, False)
    ramp.readings = [(0.0, 0.0), (1.0, 1.0), (3.0, 5.0)]
    watts = ramp.watts(0.0, 3.0)
    assert watts is not None
    assert watts[0] == pytest.approx((0.5 + 6.0) / 3), "the trapezoid"


def test_too_few_readings_are_no_energy() -> None:
    meter = runner.Meter("battery", "BAT0", lambda: None, 1.0, False)
    meter.readings = [(k / 20, 5.0) for k in range(400)]
    found = runner.weigh(meter, (0.0, 9.0), {"begin": 10.0, "end": 19.0, "n": 100})
    assert "total_mj" not in found
    assert found["why"] == "too short: 100 readings of it take 105 s"


@pytest.mark.flaky(reruns=2)  # the thread that moves the counter may have to wait for its turn
def test_a_whole_run_weighs_its_model_on_a_moving_counter(
    tmp_path: Path, machine: Machine, moving: Callable[..., None]
) -> None:
    # Ten watts, all the time; the counter starts anew every two seconds.
    moving(lambda passed: machine.rapl(10e6 * passed, range_uj=20_000_000))
    found = energy(machine, tmp_path)
    told = found.conditions["energy"]
    assert (told["source"], told["rail"]) == ("rapl", "package-0")
    assert told["idle_w"] == pytest.approx(10.0, rel=0.2)
    assert told["load_w"] == pytest.approx(10.0, rel=0.2)
    each_s = told["load_s"] / told["n"]
    assert told["total_mj"] == pytest.approx(1e3 * told["load_w"] * each_s, rel=1e-2)
    assert abs(told["dynamic_mj"]) < 0.3 * told["total_mj"]
    assert 1 < told["rate_hz"] < 25  # a busy machine reads it less often
    assert found.energy_mj == told["total_mj"]


def test_a_run_too_short_for_its_sensor_leaves_the_energy_empty(
    tmp_path: Path, machine: Machine
) -> None:
    machine.ina3221(VDD_IN=2000)
    found = energy(machine, tmp_path, energy_s=0.3)
    assert found.ok
    assert found.energy_mj is None
    assert "too short" in found.conditions["energy"]["why"]
    assert found.conditions["energy"]["rail"] == "VDD_IN"


def test_no_sensor_is_no_energy_and_no_word(tmp_path: Path, machine: Machine) -> None:
    machine.root.mkdir()
    found = energy(machine, tmp_path)
    assert found.energy_mj is None
    assert "energy" not in found.conditions
