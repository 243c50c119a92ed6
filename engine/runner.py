"""Times ONNX models on the machine it runs on: one file, here and, copied, on a device.

    python3 runner.py JOBDIR            follow JOBDIR/request.json, append to JOBDIR/results.jsonl
    python3 runner.py --facts           print what this machine is, as one line of JSON
    python3 runner.py --check M.onnx SEED…   load a model, run it once on zeros, and on the input of
                                        each seed; print what came out, in short

Needs Python 3.8, numpy and onnxruntime, nothing else. Each block is a fresh process in which
the models are timed in short turns, there and back again (A B B A), the next block beginning
with the last model: medians of separate processes differ about five times as much as the spread
inside one process says, so the interval is told from the medians of the blocks.

While a block runs, this process looks at clock, temperature and load about once a second, from
another core than the block's where there is one. Where the machine has a power sensor, each model
may run some seconds more for its energy, after the timed blocks.

A request may name a file of test images. The blocks then show each model their part of them in
place of made-up input, each image once, and tell which class it was given.

The job's folder holds, besides request and results: `lease` (its modification time must change
at least every `lease_s` seconds or the run ends; to which time does not matter), `cancel` (ends
the run once it exists), `pid` (the process group, while it runs) and `runner.log` (what the
runtime wrote to standard error).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import sys
import time
from typing import Any, Sequence  # noqa: UP035 (Python 3.8)

# It would keep a database in ~/.cache and report to its maker, 50 ms at every start.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# What numpy does here is little, and starting its threads takes longer than that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

VERSION = 1
SAMPLES = 500  # samples a model and block that a result line holds at most
LINE_SAMPLES = 60_000  # and all models of a block together
ROUND = 3  # inferences of one model before it is the next one's turn
DETAIL = 400  # characters of an error's text
CHECKED, PICKED, SUMS = 8, 32, 4  # outputs, values and sums of each that a check tells
WATCH_S = 1.0  # between two looks at the machine while a block runs
METER_S = 0.05  # between two readings of a power sensor
PERIODS = 100  # readings below which an energy is not told
SYSTEM = os.environ.get("HDAP_SYSROOT", "")  # what stands in for / where sensors are looked for

# 95 % factors for a median of n normal values whose spread is estimated from the same n values
# (|median| / (s / sqrt(n)), simulated with 1.2 million draws each), from n = 2; for n = 2 it is
# Student's t, in the end 1.96 * sqrt(pi / 2) = 2.46. Odd n fare worse: their median is one value.
_T_MEDIAN = (
    12.71, 4.40, 3.27, 3.03, 2.76, 2.77, 2.62, 2.67, 2.55, 2.62,
    2.52, 2.58, 2.51, 2.56, 2.49, 2.54, 2.48, 2.54, 2.48,
)  # fmt: skip


# ---- statistics ---------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of at least one value, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def interval(medians: Sequence[float]) -> tuple[float, float, float]:
    """Return the median over block medians and its 95 % interval.

    The blocks are taken as log-normal around the true latency; the half-width in logarithms is
    k(n) * s / sqrt(n), Student's t adapted to the median (see `_T_MEDIAN`). One block tells
    nothing about the spread: its interval is (0, inf).
    """
    middle = quantile(medians, 0.5)
    n = len(medians)
    if n < 2:
        return middle, 0.0, math.inf
    logs = [math.log(v) for v in medians]
    mean = sum(logs) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in logs) / (n - 1))
    half = min(_factor(n) * spread / math.sqrt(n), 50.0)
    return middle, middle * math.exp(-half), middle * math.exp(half)


def _factor(n: int) -> float:
    return _T_MEDIAN[min(n - 2, len(_T_MEDIAN) - 1)]


def half_width_percent(medians: Sequence[float]) -> float:
    """Return half the width of the interval of `interval`, in per cent of the median."""
    middle, _, high = interval(medians)
    return 100.0 * (high / middle - 1.0)


def blocks_needed(medians: Sequence[float], percent: float, most: int) -> int:
    """Return how many blocks should make the interval narrow enough, if the spread stays."""
    have = half_width_percent(medians) * math.sqrt(len(medians)) / _factor(len(medians))
    n = len(medians)
    while n < most and _factor(n) * have / math.sqrt(n) > percent:
        n += 1
    return n


def summarise(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up one model's entries of at least one block, as the "done" line has them."""
    medians = [b["median_ms"] for b in blocks]
    pooled = [v for b in blocks for v in b["wall_ms"]]
    total = sum(b["n"] for b in blocks)
    middle, low, high = interval(medians)
    return {
        "median_ms": _ms(middle),
        "low_ms": _ms(low),
        "high_ms": _ms(high) if math.isfinite(high) else None,
        "mean_ms": _ms(sum(b["mean_ms"] * b["n"] for b in blocks) / total),
        "p90_ms": _ms(quantile(pooled, 0.9)),
        "p95_ms": _ms(quantile(pooled, 0.95)),
        "cpu_ms": _ms(quantile([b["cpu_ms"] for b in blocks], 0.5)),
        "n": total,
        "blocks": len(blocks),
        "block_medians_ms": [_ms(v) for v in medians],
        "contended": round(sum(b["contended"] * b["n"] for b in blocks) / total, 4),
    }


def _ms(value: float) -> float:
    return round(value, 5)


# ---- the machine --------------------------------------------------------------------------------


def _read(path: str) -> str | None:
    if path.startswith(("/sys/", "/proc/")):
        path = SYSTEM + path
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return None


def _number(path: str) -> float | None:
    try:
        return float(_read(path) or "")
    except ValueError:
        return None


def _names(folder: str, prefix: str) -> list[str]:
    try:
        names = sorted(n for n in os.listdir(SYSTEM + folder) if n.startswith(prefix))
    except OSError:
        return []
    return [folder + "/" + n for n in names[:64]]


def _present(**values: Any) -> dict[str, Any]:
    """Drop what is not there: a missing sensor is a missing key, never a zero."""
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}


def _cpuinfo(*keys: str) -> str | None:
    text = _read("/proc/cpuinfo") or ""
    for key in keys:
        found = re.search(r"^" + re.escape(key) + r"\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return None


def _installed(module: str) -> str | None:
    """Return the version of an importable package from its source, without importing it."""
    import importlib.util

    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("version.py", "__init__.py"):
            text = _read(os.path.join(folder, name)) or ""
            found = re.search(r"""^(?:__version__|version)\s*=\s*["']([^"']+)["']""", text, re.M)
            if found:
                return found.group(1)
    return "unknown" if spec else None


def emulated() -> bool:
    """Tell whether this interpreter belongs to the lab, which stretches what it times."""
    site = sys.modules.get("sitecustomize")
    return bool(os.environ.get("HDAP_LAB_PROFILE")) and bool(getattr(site, "EMULATED", False))


def conditions(light: bool = False) -> dict[str, Any]:
    """Return under which conditions the machine works now; what has no sensor has no key.

    Frequencies in kHz, temperatures in °C, memory in kB, times in s. The throttle and pressure
    counters grow from boot: compare before with after.
    """
    policies = _names("/sys/devices/system/cpu/cpufreq", "policy")
    load = (_read("/proc/loadavg") or "").split()
    free = re.search(r"^MemAvailable:\s*(\d+)", _read("/proc/meminfo") or "", re.M)
    now = _present(
        cur_freq_khz=[v for v in (_number(p + "/scaling_cur_freq") for p in policies) if v],
        temperature_c=temperatures(),
        load=[float(v) for v in load[:3]],
        mem_available_kb=int(free.group(1)) if free else None,
        pressure_cpu_us=_pressure(),
        throttle_count=_throttle_count(),
        cooling_states=cooling_states(),
        undervoltage_alarm=_undervoltage(),
        vcgencmd_throttled=_throttled_bits(),
        emulated=emulated() or None,
    )
    return now if light else dict(now, **_standing(policies))


def temperatures() -> dict[str, float]:
    """Return the temperature of every thermal zone, in °C."""
    zones = _names("/sys/class/thermal", "thermal_zone")
    values = ((z, _number(z + "/temp")) for z in zones)
    return {_label(z): round(v / 1000.0, 1) for z, v in values if v is not None}


def hottest(found: dict[str, float]) -> float | None:
    """Return the processor's temperature: its hottest zone, or of all where none says "cpu"."""
    named = [v for k, v in found.items() if re.search(r"cpu|soc|pkg|package|core", k, re.I)]
    return max(named or found.values(), default=None)


def cooling_states() -> dict[str, int]:
    """Return how far each device that slows the processor down to cool it is in use, 0: not.

    Fans are left out, as they slow nothing down, and so is what only dims a screen.
    """
    found = {}
    for device in _names("/sys/class/thermal", "cooling"):
        state, label = _number(device + "/cur_state"), _label(device)
        if state is not None and not re.search(r"fan|lcd|backlight|led|battery", label, re.I):
            found[label] = int(state)
    return found


def _label(path: str) -> str:
    return (_read(path + "/type") or "?")[:32] + " " + re.sub(r"^.*\D", "", path)


def _pressure() -> int | None:
    found = re.search(r"^some .*total=(\d+)", _read("/proc/pressure/cpu") or "", re.M)
    return int(found.group(1)) if found else None


def _throttle_count() -> int | None:
    cores = _names("/sys/devices/system/cpu", "cpu")
    counts = [_number(c + "/thermal_throttle/core_throttle_count") for c in cores]
    known = [int(c) for c in counts if c is not None]
    return sum(known) if known else None


def _undervoltage() -> int | None:
    for sensor in _names("/sys/class/hwmon", "hwmon"):
        if _read(sensor + "/name") == "rpi_volt":
            value = _number(sensor + "/in0_lcrit_alarm")
            return None if value is None else int(value)
    return None


def _standing(policies: list[str]) -> dict[str, Any]:
    """Return the conditions that hardly change during a run."""
    uptime = (_read("/proc/uptime") or "").split()
    return _present(
        governor=_read(policies[0] + "/scaling_governor") if policies else None,
        min_freq_khz=[v for v in (_number(p + "/scaling_min_freq") for p in policies) if v],
        max_freq_khz=[v for v in (_number(p + "/scaling_max_freq") for p in policies) if v],
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        uptime_s=float(uptime[0]) if uptime else None,
        cpu_model=cpu_model(),
        kernel=os.uname().release,
    )


def _throttled_bits() -> str | None:
    """Return a Raspberry Pi's flags; bits 0 to 3 are now, 16 to 19 since the start."""
    return _vcgencmd("get_throttled").partition("=")[2].strip()[:32] or None


def _vcgencmd(question: str) -> str:
    for folder in ("/usr/bin/", "/opt/vc/bin/"):
        program = SYSTEM + folder + "vcgencmd"
        if os.path.exists(program):
            import subprocess

            try:
                command = [program, question]
                out = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=5)
            except (OSError, subprocess.SubprocessError):
                return ""
            return out.decode("ascii", "replace")[:8192]
    return ""


def cpu_model() -> str | None:
    """Return the processor's name, or the board's where the processor has none."""
    board = (_read("/sys/firmware/devicetree/base/model") or "").rstrip("\0")
    return _cpuinfo("model name", "Model", "Hardware") or board or None


def facts() -> dict[str, Any]:
    """Return what this machine is; imports onnxruntime to learn whether it works."""
    answer: dict[str, Any] = {"event": "facts", "version": VERSION, "onnxruntime": None}
    answer["python"] = ".".join(map(str, sys.version_info[:3]))
    answer["numpy"] = _installed("numpy")
    try:
        import onnxruntime

        answer["onnxruntime"] = onnxruntime.__version__
        answer["providers"] = onnxruntime.get_available_providers()
    except Exception as error:  # a broken installation raises anything
        answer["onnxruntime_error"] = _detail(error)
    flags = (_cpuinfo("flags", "Features") or "").split()
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release") or "", re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo") or "", re.M)
    answer.update(
        _present(
            machine=os.uname().machine,
            system=os.uname().sysname,
            kernel=os.uname().release,
            hostname=os.uname().nodename,
            os=pretty.group(1) if pretty else None,
            libc=_libc(),
            cpu_model=cpu_model(),
            cores=os.cpu_count(),
            cores_usable=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            memory_kb=int(memory.group(1)) if memory else None,
            isa=[flag for flag in flags if flag in _ISA],
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            clock=time.time(),
            emulated=emulated() or None,
        )
    )
    return answer


# What decides which quantized kernels pay.
_ISA = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f",
    "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError, AttributeError):
        return None


def _detail(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:DETAIL]


# ---- watching the machine while it works --------------------------------------------------------


class Busy:
    """How much of the machine's CPU time others than this run use, from now on."""

    def __init__(self) -> None:
        self._start = self._read()

    def share(self) -> float | None:
        """Return the others' share since the start; None where it is too short or unknown."""
        start, now = self._start, self._read()
        if start is None or now is None or now[1] - start[1] < 0.2:
            return None
        others = (now[0] - start[0]) - (now[2] - start[2])
        return round(min(max(others / (now[1] - start[1]), 0.0), 1.0), 4)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Return busy, all, and our own CPU time in s: ours with the children that have ended."""
        line = (_read("/proc/stat") or "").partition("\n")[0].split()
        try:
            times = [int(v) / os.sysconf("SC_CLK_TCK") for v in line[1:9]]
        except ValueError:
            return None
        if len(times) < 5:
            return None
        return sum(times) - times[3] - times[4], sum(times), sum(os.times()[:4])


class Watch:
    """Looks at the machine now and then while one block runs, and sums up what it saw."""

    every_s = WATCH_S

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy, self._pressure, self._throttled = Busy(), _pressure(), _throttle_count()
        self._clocks: list[float] = []
        self._hot: list[float] = []
        self._cooling = self._looks = 0
        self._cost_s = 0.0
        self.next = self._began + min(0.3, self.every_s)

    def look(self, child: int) -> None:
        """Look once, from another core than the one that the child was on last."""
        start = time.thread_time()
        core = step_aside(child)
        clock = _number(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        hot = hottest(temperatures())
        self._clocks += [clock] if clock else []
        self._hot += [hot] if hot is not None else []
        self._cooling = max([self._cooling, *cooling_states().values()])
        self._looks += 1
        self._cost_s += time.thread_time() - start
        self.next = time.monotonic() + self.every_s

    def summary(self) -> dict[str, Any]:
        """Return what was seen; to be asked when the block has ended."""
        span = time.monotonic() - self._began
        pressure, throttled = _pressure(), _throttle_count()
        clocks, hot = self._clocks, self._hot
        waited = None
        if pressure is not None and self._pressure is not None:
            waited = round(min(max((pressure - self._pressure) / 1e6 / span, 0.0), 1.0), 4)
        slowed = None
        if throttled is not None and self._throttled is not None:
            slowed = max(throttled - self._throttled, 0)
        return _present(
            span_s=round(span, 3),
            looks=self._looks,
            look_ms=_ms(1e3 * self._cost_s / self._looks) if self._looks else None,
            clock_khz=[min(clocks), quantile(clocks, 0.5), max(clocks)] if clocks else None,
            temperature_c=[hot[0], max(hot)] if hot else None,
            cooling=self._cooling or None,
            throttle_count=slowed,
            others_share=self._busy.share(),
            pressure_share=waited,
        )


def step_aside(child: int) -> int:
    """Move off the core that a child's first thread was on last; return that core, 0 if unknown."""
    try:
        with open(f"/proc/{child}/stat", encoding="ascii", errors="replace") as file:
            core = int(file.read().rpartition(")")[2].split()[36])
        if hasattr(os, "sched_setaffinity"):
            others = _CORES - {core}
            os.sched_setaffinity(0, others or _CORES)
    except (OSError, ValueError, IndexError):
        return 0
    return core


def all_cores() -> None:
    """Take back what `step_aside` did: children are to run where this process was let run."""
    if _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _CORES)


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


# ---- energy -------------------------------------------------------------------------------------


class Meter:
    """A power sensor: what it is, what it covers, and how often it has something new to say."""

    every_s = METER_S

    def __init__(self, source: str, rail: str, read: Any, period_s: float, counts: bool) -> None:
        self.source, self.rail, self.counts = source, rail[:200], counts
        self.period_s = period_s if counts else max(period_s, self.every_s)
        self._take = read
        self._cost_s = 0.0
        self.readings: list[tuple[float, float]] = []
        self.next = 0.0

    def look(self, _child: int = 0) -> None:
        """Read once: watts, or joules so far where it counts; what it does not say is left out."""
        now = time.monotonic()
        value = self._take()
        if value is not None:
            self.readings.append((now, value))
        self._cost_s += time.monotonic() - now
        self.next = max(self.next + self.every_s, now)

    def watts(self, begin: float, end: float) -> tuple[float, int] | None:
        """Return the mean power between two moments, and over how many sensor periods.

        The trapezoid of the readings in between; the difference of the counter where it counts.
        """
        inside = [(t, v) for t, v in self.readings if begin <= t <= end]
        if len(inside) < 2:
            return None
        span = inside[-1][0] - inside[0][0]
        if self.counts:
            joules = inside[-1][1] - inside[0][1]
        else:
            pairs = zip(inside, inside[1:])  # noqa: B905, RUF007 (Python 3.8)
            joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2.0 for a, b in pairs)
        periods = round(span / self.period_s) + 1
        return joules / span, periods if self.counts else min(periods, len(inside))

    def told(self) -> dict[str, Any]:
        """Return what the readings were taken with."""
        n = len(self.readings)
        span = self.readings[-1][0] - self.readings[0][0] if n > 1 else 0.0
        return _present(
            source=self.source,
            rail=self.rail,
            rate_hz=round((n - 1) / span, 2) if span else None,
            period_ms=round(1e3 * self.period_s, 1),
            reading_ms=_ms(1e3 * self._cost_s / n) if n else None,
        )


def find_meter() -> Meter | None:
    """Return the sensor that covers most of the machine, None where there is none to read."""
    if emulated():
        return None  # what the host takes says nothing about the device
    for find in (_ina3221, _ina2xx, _pmic, _rapl, _battery):
        meter = find()
        if meter is not None and meter._take() is not None:
            return meter
    return None


def _sensors(*names: str) -> list[str]:
    return [h for h in _names("/sys/class/hwmon", "hwmon") if _read(h + "/name") in names]


def _period(sensor: str) -> float:
    return (_number(sensor + "/update_interval") or 0.0) / 1e3


def _product(pairs: list[tuple[str, str]], unit: float) -> float | None:
    """Return the sum of voltage times current; None unless every file gives a number."""
    total = 0.0
    for volts, amperes in pairs:
        v, a = _number(volts), _number(amperes)
        if v is None or a is None:
            return None
        total += v * a * unit
    return total


def _ina3221() -> Meter | None:
    """Return a Jetson's monitor: the rail that feeds everything, else the sum of all rails."""
    rails: dict[str, tuple[str, str]] = {}
    sensors = _sensors("ina3221")
    for sensor in sensors:
        for channel in "123":
            volts, amperes = (sensor + "/" + kind + channel + "_input" for kind in ("in", "curr"))
            if _number(volts) is not None and _number(amperes) is not None:
                label = _read(sensor + "/in" + channel + "_label") or "channel " + channel
                rails.setdefault(label[:40], (volts, amperes))
    if not rails:
        return None
    # Not VIN_SYS_5V0: on the AGX Orin, GPU and CPU have rails of their own beside it.
    whole = [r for r in rails if r.upper() in ("VDD_IN", "POM_5V_IN", "VIN")]
    used = whole[:1] or sorted(rails)
    pairs = [rails[r] for r in used]
    period = max(_period(s) for s in sensors)
    return Meter("ina3221", " + ".join(used), lambda: _product(pairs, 1e-6), period, False)


def _ina2xx() -> Meter | None:
    for sensor in _sensors("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260"):
        file, name = sensor + "/power1_input", _read(sensor + "/name") or ""

        def watts(file: str = file) -> float | None:
            value = _number(file)
            return None if value is None else value / 1e6

        label = _read(sensor + "/in1_label") or name
        return Meter(name, label, watts, _period(sensor), False)
    return None


def _pmic() -> Meter | None:
    """Return a Raspberry Pi 5's power chip: the sum of the rails that it measures."""

    def watts() -> float | None:
        rails: dict[str, dict[str, float]] = {}
        lines = _vcgencmd("pmic_read_adc")
        for name, kind, value in re.findall(r"(\w+)_([AV]) \w+\(\d+\)=([\d.]+)", lines):
            rails.setdefault(name, {})[kind] = float(value)
        powers = [r["A"] * r["V"] for r in rails.values() if len(r) == 2]
        return sum(powers) if powers else None

    if watts() is None:
        return None
    meter = Meter("pmic", "sum of the rails behind the power chip", watts, 0.2, False)
    meter.every_s = 0.2  # each reading starts a program
    return meter


def _rapl() -> Meter | None:
    """Return Intel's and AMD's counters: the sum of the packages; root alone may read them."""
    zones: dict[str, str] = {}
    for zone in _names("/sys/class/powercap", ""):
        name = _read(zone + "/name") or ""
        if name.startswith("package") and _number(zone + "/energy_uj") is not None:
            zones.setdefault(name[:40], zone)
    if not zones:
        return None
    ends = {z: _number(z + "/max_energy_range_uj") or 0.0 for z in zones.values()}
    last: dict[str, float] = {}
    joules = dict.fromkeys(ends, 0.0)

    def count() -> float | None:
        for zone, wrap in ends.items():
            now = _number(zone + "/energy_uj")
            if now is None:
                return None
            grown = now - last.get(zone, now)
            joules[zone] += (grown + wrap if grown < 0 else grown) / 1e6
            last[zone] = now
        return sum(joules.values())

    return Meter("rapl", " + ".join(sorted(zones)), count, 0.001, True)


def _battery() -> Meter | None:
    """Return a battery that feeds the machine; gauges renew their values about once a second."""
    for supply in _names("/sys/class/power_supply", ""):
        if _read(supply + "/type") != "Battery" or _read(supply + "/scope") == "Device":
            continue
        name = supply.rpartition("/")[2]
        pair = [(supply + "/voltage_now", supply + "/current_now")]

        def watts(supply: str = supply, pair: list[tuple[str, str]] = pair) -> float | None:
            if _read(supply + "/status") != "Discharging":
                return None
            now = _number(supply + "/power_now")
            found = _product(pair, 1e-12) if now is None else now / 1e6
            return None if found is None else abs(found)

        if watts() is not None:
            return Meter("battery", name, watts, 1.0, False)
    return None


def weigh(meter: Meter, idle: tuple[float, float], load: dict[str, Any]) -> dict[str, Any]:
    """Return a model's energy of one inference, total and above idle, or why there is none.

    Args:
        meter: The sensor, with its readings of both phases.
        idle: When the idle phase began and ended, monotonic clock.
        load: When the model's began and ended ("begin", "end"), and its inferences ("n").
    """
    told = meter.told()
    quiet, working = meter.watts(*idle), meter.watts(load["begin"], load["end"])
    seconds = load["end"] - load["begin"]
    if quiet is None or working is None or min(quiet[1], working[1]) < PERIODS:
        wanted = (PERIODS + 5) * meter.period_s
        return dict(told, why=f"too short: {PERIODS} readings of it take {wanted:.0f} s")
    each = 1e3 * seconds / load["n"]
    return dict(
        told,
        idle_w=_ms(quiet[0]),
        load_w=_ms(working[0]),
        load_s=round(seconds, 3),
        n=load["n"],
        total_mj=_ms(working[0] * each),
        dynamic_mj=_ms((working[0] - quiet[0]) * each),
    )


# ---- one block: a process of its own ------------------------------------------------------------


class ModelError(Exception):
    """This model cannot be timed here; `kind` is the class that the result line names."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


def make_session(
    model: str, threads: int, provider: str, flush: bool = False, exact: bool = False
) -> Any:
    """Load a model: sequential, no spinning threads.

    `flush` takes denormal numbers as zero, which changes the calling thread for good. `exact` sums
    integers of 8 bits exactly where a processor without VNNI would rather be fast.

    Raises:
        ModelError: the provider is missing or the model does not load.
    """
    import onnxruntime

    known = onnxruntime.get_available_providers()
    if provider not in known:
        has = "; it has " + ", ".join(known)
        raise ModelError("runtime", "the ONNX Runtime here has no " + provider + has)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush)))
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    try:
        session = onnxruntime.InferenceSession(model, sess_options=options, providers=[provider])
    except Exception as error:
        raise _model_error(error, model) from error
    used = session.get_providers()
    if provider not in used:  # it may say no more than a line in its log, and fall back
        raise ModelError("runtime", provider + " does not start here; left is " + ", ".join(used))
    return session


def make_feed(session: Any, batch: int, seed: int | None) -> dict[str, Any]:
    """Return one input for a session: uniform in [-1, 1) from the seed, zeros where it is None.

    A dynamic first dimension becomes `batch`, dynamic height and width of an image 224, any
    other 1. Integers of 8 bits use their whole range, wider ones are 0 or 1 (they index).

    Raises:
        ModelError: an input's type cannot be made up, or its batch is another and fixed.
    """
    import numpy

    images(session, batch)
    feed = {}
    for place, item in enumerate(session.get_inputs()):
        dtype = _DTYPES.get(item.type[len("tensor(") : -1])
        if dtype is None:
            raise ModelError("model", "input " + item.name + " has type " + item.type)
        shape = input_shape(item.shape or [], batch)
        if seed is None:
            feed[item.name] = numpy.zeros(shape, dtype)
            continue
        values = _uniform(math.prod(shape), seed + place)
        if dtype in ("int8", "uint8"):
            values = values * 256.0 - (128.0 if dtype == "int8" else 0.0)
        else:
            values = values * 2.0 - (1.0 if "float" in dtype else 0.0)
        if dtype == "bool":
            values = values >= 1.0
        feed[item.name] = values.astype(dtype).reshape(shape)
    return feed


def images(session: Any, batch: int) -> int:
    """Return how many images one inference takes: the batch, or the one that a model is fixed to.

    Raises:
        ModelError: a batch was asked for that the model cannot take.
    """
    firsts = [item.shape[0] for item in session.get_inputs() if item.shape]
    fixed = [v for v in firsts if isinstance(v, int) and v > 0]
    if len(fixed) < len(firsts) or not firsts or batch in fixed:
        return batch
    if batch == 1:
        return int(fixed[0])
    text = f"the model's batch is fixed at {fixed[0]}"
    raise ModelError("model", f"{text}: export it with a free first dimension to time {batch}")


def input_shape(shape: Sequence[Any], batch: int) -> tuple[int, ...]:
    """Return a shape with its dynamic dimensions filled in."""
    image = len(shape) == 4
    dynamic = [batch if i == 0 else 224 if image and i >= 2 else 1 for i in range(len(shape))]
    return tuple(v if isinstance(v, int) and v > 0 else dynamic[i] for i, v in enumerate(shape))


def _uniform(count: int, seed: int) -> Any:
    """Return `count` numbers in [0, 1) by SplitMix64; importing numpy.random costs 10 ms."""
    import numpy

    def word(value: int) -> Any:
        return numpy.uint64(value & 0xFFFFFFFFFFFFFFFF)

    state = numpy.arange(1, count + 1, dtype=numpy.uint64) * word(0x9E3779B97F4A7C15)
    state += word(seed * 0x5851F42D4C957F2D + 1)
    state = (state ^ (state >> word(30))) * word(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> word(27))) * word(0x94D049BB133111EB)
    return ((state ^ (state >> word(31))) >> word(11)) * 2.0**-53


def warm_up(infer: Any, runs: int, limit_s: float) -> int:
    """Run until it gets no faster; return how many runs that took.

    At least `runs`, then in windows of `runs` until a window's median is no longer more than
    1 % below that of the window before, or `limit_s` has passed.
    """
    end = time.perf_counter() + limit_s
    done, before = 0, math.inf
    while True:
        window = []
        for _ in range(runs):
            start = time.perf_counter()
            infer()
            window.append(time.perf_counter() - start)
        done += runs
        now = quantile(window, 0.5)
        if now > 0.99 * before or time.perf_counter() > end:
            return done
        before = now


def time_runs(infer: Any, runs: int, threads: int) -> tuple[list[int], list[int]]:
    """Return wall and CPU time of each of so many inferences, in ns."""
    wall_clock = time.perf_counter_ns
    cpu_clock = time.thread_time_ns if threads == 1 else time.process_time_ns
    wall: list[int] = []
    cpu: list[int] = []
    for _ in range(runs):
        cpu_start = cpu_clock()
        start = wall_clock()
        infer()
        stop = wall_clock()
        cpu_stop = cpu_clock()
        wall.append(stop - start)
        cpu.append(cpu_stop - cpu_start)
    return wall, cpu


class Timed:
    """One loaded and warm model, with the times taken of it so far."""

    def __init__(self, case: dict[str, Any], spec: dict[str, Any]) -> None:
        self.key = case["key"]
        self.case, self._spec = case, spec
        start = time.perf_counter()
        session = make_session(case["path"], case["threads"], case["provider"], flush=True)
        self._load_s = time.perf_counter() - start
        self._session, self._providers = session, session.get_providers()
        self._images = images(session, case["batch"])
        feed = self._first()
        run = session.run
        self._infer: Any = lambda: run(None, feed)
        self._wall: list[int] = []
        self._cpu: list[int] = []
        self._warm = warm_up(self._infer, spec["warmup_runs"], spec["warmup_s"])

    def _first(self) -> dict[str, Any]:
        """Return the input that it is warmed up with and timed on."""
        return make_feed(self._session, self.case["batch"], self._spec["seed"])

    def enough(self) -> bool:
        """Tell whether all runs are done, or three of them and the time is up."""
        n = len(self._wall)
        late = sum(self._wall) > 1e9 * self._spec["block_s"]
        return bool(n >= self._spec["runs"] or (n >= 3 and late))

    def take(self, settle: bool) -> None:
        """Time the next few inferences, after one that only fills the caches again."""
        runs = min(ROUND, self._spec["runs"] - len(self._wall))
        if settle:
            self._infer()
        wall, cpu = time_runs(self._infer, runs, self.case["threads"])
        self._wall += wall
        self._cpu += cpu

    def entry(self) -> dict[str, Any]:
        """Return the model's entry of the block line."""
        found = entry(
            self._wall, self._cpu, self.case["threads"], self._warm, self._load_s,
            self._providers, self._spec["samples"],
        )  # fmt: skip
        return dict(found, batch=self.case["batch"], images=self._images)

    def load(self, seconds: float) -> dict[str, Any]:
        """Run without a pause for so long; return when that began and ended, and how often."""
        begin, n = time.monotonic(), 0
        end = begin
        while end < begin + seconds:
            self._infer()
            n += 1
            end = time.monotonic()
        return {"begin": begin, "end": end, "n": n}


class Shown(Timed):
    """A loaded and warm model that is shown its block's test images, each once."""

    def _first(self) -> dict[str, Any]:
        """Return the first images as input, which it is warmed up with."""
        made_up = make_feed(self._session, self.case["batch"], None)
        if len(made_up) > 1:
            raise ModelError("model", f"it has {len(made_up)} inputs, and images go into one")
        ((self._name, zeros),) = made_up.items()
        self._dtype, self._part = str(zeros.dtype), self._spec["images"]
        self._file = open(self._part["path"], "rb")  # noqa: SIM115 (until the process ends)
        self.answers: list[int] = []
        return self._next()

    def _next(self) -> dict[str, Any]:
        """Return the next images as input; a last batch is filled up with images of its own."""
        import numpy

        shape, size = self._part["shape"], math.prod(self._part["shape"])
        count = min(self._images, self._part["count"] - len(self.answers))
        self._file.seek((self._part["first"] + len(self.answers)) * size)
        raw = self._file.read(count * size)
        if len(raw) < count * size:
            raise ModelError("runtime", "the file of test images ends too early")
        batch = numpy.resize(numpy.frombuffer(raw, "uint8"), (self._images, *shape))
        return {self._name: as_read(batch, self._dtype)}

    def enough(self) -> bool:
        """Tell whether all images of the block have been shown."""
        return len(self.answers) >= int(self._part["count"])

    def take(self, settle: bool) -> None:
        """Show the next few batches, after an inference that only fills the caches again."""
        if settle:
            self._infer()
        for _ in range(ROUND):
            if not self.enough():
                self._show(self._next())

    def _show(self, feed: dict[str, Any]) -> None:
        import numpy

        outputs: list[Any] = []
        run = self._session.run
        wall, cpu = time_runs(lambda: outputs.extend(run(None, feed)), 1, self.case["threads"])
        self._wall += wall
        self._cpu += cpu
        scores = numpy.reshape(outputs[0], (self._images, -1))
        count = min(self._images, self._part["count"] - len(self.answers))
        self.answers += scores.argmax(1)[:count].tolist()

    def entry(self) -> dict[str, Any]:
        """Return the model's entry of the block line, with the class of each image."""
        return dict(super().entry(), answers=self.answers)


def as_read(shown: Any, dtype: str) -> Any:
    """Return uint8 images as a model reads them: floats between 0 and 1, or as they are.

    Raises:
        ModelError: it reads something else.
    """
    import numpy

    if dtype == "uint8":
        return shown
    if not dtype.startswith("float"):
        raise ModelError("model", "it reads " + dtype + ", and images are floats or uint8")
    return (shown.astype("float32") / numpy.float32(255)).astype(dtype, copy=False)


def entry(
    wall: Sequence[int], cpu: Sequence[int], threads: int, warm: int, load_s: float,
    providers: Sequence[str], samples: int = SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Return a model's entry of a block line from its samples in ns.

    A sample is contended where its wall time is well above its CPU time; with several threads
    CPU time says nothing about that.
    """
    wall_ms = [v / 1e6 for v in wall]
    cpu_ms = [v / 1e6 for v in cpu]
    late = [w > 1.25 * c + 0.05 for w, c in zip(wall_ms, cpu_ms)]  # noqa: B905 (Python 3.8)
    step = -(-len(wall_ms) // samples)
    return {
        "wall_ms": [_ms(v) for v in wall_ms[::step]],
        "cpu_ms": _ms(quantile(cpu_ms, 0.5)),
        "median_ms": _ms(quantile(wall_ms, 0.5)),
        "mean_ms": _ms(sum(wall_ms) / len(wall_ms)),
        "p90_ms": _ms(quantile(wall_ms, 0.9)),
        "n": len(wall_ms),
        "contended": round(sum(late) / len(late), 4) if threads == 1 else 0.0,
        "threads": threads,
        "warmup": warm,
        "load_ms": _ms(1e3 * load_s),
        "providers": list(providers),
    }


def _model_error(error: Exception, model: Any = "") -> ModelError:
    if isinstance(error, ModelError):
        return error
    text = " ".join(str(error).split())
    starved = isinstance(error, MemoryError) or re.search(
        r"bad_?alloc|failed to allocate|out of memory", text, re.IGNORECASE
    )
    if starved:
        return ModelError("memory", _too_large(model) + ": " + _detail(error))
    return ModelError("model", _too_new(text, model) or _detail(error))


def _too_large(model: Any) -> str:
    """Return a sentence about a model that does not fit in memory, without its end."""
    text = "it does not fit in this device's memory"
    free = conditions(light=True).get("mem_available_kb")
    with contextlib.suppress(OSError, TypeError, ValueError):
        text += f" (its file has {os.path.getsize(model) / 1e6:.0f} MB"
        text += f", {free / 1e3:.0f} MB are free)" if free else ")"
    return text


def _too_new(text: str, model: Any) -> str:
    """Return in one sentence what this runtime lacks for a model; empty where it is not that."""
    import onnxruntime

    ir, opset = model_versions(model)
    runtime = "the ONNX Runtime here (" + onnxruntime.__version__[:20] + ")"
    has = f"the model has opset {opset or '?'} and IR version {ir or '?'}"
    mend = "export it for an older opset, or update ONNX Runtime on the device"
    mend += " (hdap devices provision)"
    most = re.search(r"max supported IR version: (\d+)", text)
    if most:
        return f"{has}; {runtime} takes IR version {most.group(1)} at most: {mend}"
    if re.search(r"Opset \d+ is under development", text):
        most = re.search(r"support for domain \S+ is till opset (\d+)", text)
        takes = f"opset {most.group(1)} at most" if most else "less"
        return f"{has}; {runtime} takes {takes}: {mend}"
    lacks = re.search(
        r"No Op registered for (?P<a>[\w.]+)|(?P<b>[\w.]+:\w+)\(-?\d+\) is not a registered"
        r"|Could not find an implementation for (?:the node \S*?:)?(?P<c>[\w.]+)", text
    )  # fmt: skip
    if lacks:
        name = next(v for v in lacks.groups() if v)
        domain = name.partition(":")[0]
        if ":" in name and domain not in ("ai.onnx", "ai.onnx.ml", "com.microsoft"):
            mend = "it is none of ONNX's own; replace it in the model"
        return f"{runtime} has no operator {name:.80}; {has}: {mend}"
    return ""


def model_versions(model: Any) -> tuple[int, int]:
    """Return a model's IR version and the opset of ONNX's own operators; 0 where unknown.

    Reads the outermost fields of the file alone (ModelProto of onnx.proto3: 1 and 8).
    """
    import io

    ir = opset = 0
    try:
        with io.BytesIO(model) if isinstance(model, bytes) else open(model, "rb") as file:
            for field, value in _fields(file):
                if field == 1 and isinstance(value, int):
                    ir = value
                elif field == 8 and isinstance(value, bytes):
                    entry = dict(_fields(io.BytesIO(value)))
                    if entry.get(1, b"") in (b"", b"ai.onnx"):
                        opset = int(entry.get(2, 0))
    except (OSError, TypeError, ValueError, IndexError):
        return ir, opset
    return ir, opset


def _fields(file: Any) -> Any:
    """Yield number and value of a protocol buffer's fields; of long ones nothing but the number."""

    def varint() -> int:
        value = shift = 0
        while shift < 70:
            byte: int = file.read(1)[0]  # IndexError at the end
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("no number")

    while True:
        try:
            tag = varint()
        except IndexError:
            return
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
        elif kind == 2:
            size = varint()
            if size <= 4096:
                yield tag >> 3, file.read(size)
            else:
                file.seek(size, 1)
        elif kind in (1, 5):
            file.seek(8 if kind == 1 else 4, 1)
        else:
            raise ValueError("no message")


def block_main() -> None:
    """Time the models that standard input names; tell each step on standard output."""
    import gc

    parent = os.getppid()
    spec = json.loads(sys.stdin.buffer.readline())
    # Libraries may print; only this stream is the answer.
    answer = os.dup(1)
    os.dup2(2, 1)

    def tell(**line: Any) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody is left to read the answer
        os.write(answer, json.dumps(line).encode() + b"\n")

    try:
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
    except Exception as error:
        tell(broken=_detail(error))
        os._exit(1)
    gc.disable()
    cases = spec["cases"]
    for group in [cases] if spec["together"] else [[c] for c in cases]:
        ready = _prepare(group, spec, tell)
        if spec["load_s"]:
            for timed in ready:
                tell(key=timed.key, load=timed.load(spec["load_s"]))
            continue
        if spec["together"]:
            tell(start=None)
        _take_turns(ready, tell)
        for timed in ready:
            tell(key=timed.key, entry=timed.entry())
    os._exit(0)  # spares the runtime's teardown


def _prepare(cases: Sequence[dict[str, Any]], spec: dict[str, Any], tell: Any) -> list[Timed]:
    """Load and warm the models; tell which could not be."""
    ready = []
    for case in cases:
        tell(start=case["key"])
        try:
            ready.append((Shown if spec["images"] else Timed)(case, spec))
        except Exception as error:
            _tell_error(tell, case, error)
    return ready


def _tell_error(tell: Any, case: dict[str, Any], error: Exception) -> None:
    known = _model_error(error, case["path"])
    tell(key=case["key"], error=known.kind, detail=_detail(known))


def _take_turns(ready: list[Timed], tell: Any) -> None:
    """Time the models in short turns, there and back again; drop those that fail.

    What slows the machine for some tenths of a second thus meets all models alike.
    """
    turn, settle = list(ready), len(ready) > 1
    while turn:
        for timed in list(turn):
            try:
                timed.take(settle)
            except Exception as error:
                _tell_error(tell, timed.case, error)
                ready.remove(timed)
                turn.remove(timed)
        turn = [t for t in reversed(turn) if not t.enough()]


# ---- the whole run ------------------------------------------------------------------------------


class Stop(Exception):
    """The run ends here; `kind` is the class that the "failed" line names."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


_DEFAULTS: dict[str, Any] = {
    "threads": 1, "provider": "CPUExecutionProvider", "runs": 30, "warmup_runs": 5,
    "warmup_s": 0.05, "block_s": 2.0, "blocks_min": 3, "blocks_max": 8, "interval_percent": 2.0,
    "time_limit_s": 120.0, "lease_s": 600.0, "seed": 0, "batch": 1, "expected_block_s": 0.0,
    "look_after": 0, "gap_s": 0.0, "cool_below_c": 0.0, "idle_below": 0.0, "wait_limit_s": 120.0,
    "at_limit": "measure", "energy_s": 0.0,
}  # fmt: skip


def read_request(folder: str) -> dict[str, Any]:
    """Return the request of a job's folder with every default filled in.

    Raises:
        ValueError: it is no request that this version understands.
    """
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        raw = json.load(file)
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        raise ValueError("request.json: its version is not " + str(VERSION))
    request = dict(_DEFAULTS)
    for key, standard in _DEFAULTS.items():
        value = raw.get(key, standard)
        wanted = str if isinstance(standard, str) else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError("request.json: " + key + " has the wrong type")
        request[key] = type(standard)(value)
    for key, least in (("threads", 1), ("runs", 3), ("warmup_runs", 1), ("blocks_min", 1)):
        request[key] = max(request[key], least)
    request["batch"] = max(request["batch"], 1)
    request["blocks_max"] = max(request["blocks_max"], request["blocks_min"])
    request["images"] = _images(raw.get("images"))
    if request["images"]:  # each block is shown its part, so there are as many as parts
        count, each = request["images"]["count"], request["images"]["each"]
        request["blocks_min"] = request["blocks_max"] = -(-count // each)
    models = raw.get("models")
    if not isinstance(models, list) or not models:
        raise ValueError("request.json: models is empty")
    request["cases"] = [_case(model, request) for model in models]
    if len({case["key"] for case in request["cases"]}) < len(models):
        raise ValueError("request.json: models has one of them twice")
    request["block_timeout_s"] = float(
        raw.get("block_timeout_s", 30.0 + len(models) * (10.0 + 3.0 * request["block_s"]))
    )
    return request


def _case(model: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return one model with how it is to be run: its own words first, then the request's."""
    digest = str(model["digest"])
    return {
        "digest": digest,
        "key": str(model.get("key", digest)),
        "path": str(model["path"]),
        "batch": max(int(model.get("batch", request["batch"])), 1),
        "threads": max(int(model.get("threads", request["threads"])), 1),
        "provider": str(model.get("provider", request["provider"])),
    }


def _images(images: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return which test images models are shown, None where they are timed on made-up input.

    Their number is `count`, of which each block is shown `each`; the file has them one after the
    other, as bytes of the shape (channels, height, width).
    """
    if images is None:
        return None
    return {
        "digest": str(images["digest"]),
        "path": str(images["path"]),
        "shape": [max(int(v), 1) for v in images["shape"]],
        "count": max(int(images["count"]), 1),
        "each": max(int(images["each"]), 1),
    }


class Run:
    """One run over a job's folder: blocks, stop rule, lease, results."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.request: dict[str, Any] = {}
        self.blocks: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        self.terminated = False
        self._results = -1
        self._child: Any = None
        self._together = True
        self._met = False  # whether a fetch is due that ought to come before the next section
        self._started = self._renewed = time.monotonic()
        self._lease = self._lease_time()

    def __call__(self) -> int:
        """Do the whole run; return the exit status (0 done, 1 failed)."""
        clock = time.time()
        self._results = os.open(self._file("results.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._own_group()
            self.emit(_hello(clock))
            self.request = read_request(self.folder)
            self._check_models()
            self._check_images()
            self._wait()
            stopped = self._all_blocks()
            after = conditions()
            self._weigh_all()
        except Stop as stop:
            return self._end(stop.kind, str(stop))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return self._end("runtime", _detail(error))
        done = {
            "event": "done",
            "models": {key: summarise(self._of(key)) for key in self._alive()},
            "conditions": after,
            "stopped": stopped,
            "took_s": round(time.monotonic() - self._started, 3),
        }
        self.emit(done)
        self._no_group()
        return 0

    def emit(self, line: dict[str, Any]) -> None:
        """Append one line and have it on the disk."""
        os.write(self._results, json.dumps(line).encode() + b"\n")
        os.fsync(self._results)

    def fail(self, case: str | None, kind: str, detail: str) -> None:
        """Tell that a model, or with None the whole run, came to nothing."""
        if case is not None:
            self.failed[case] = kind
        self.emit({"event": "failed", "model": case, "error": kind, "detail": detail[:DETAIL]})

    # -- waiting for the machine

    def _wait(self) -> None:
        """Wait until the machine is cool and idle enough, where that was asked for.

        Raises:
            Stop: it was not within the limit, and nothing is to be measured then.
        """
        request = self.request
        if not (request["cool_below_c"] or request["idle_below"]):
            return
        began = now = time.monotonic()
        told, busy, why = -math.inf, Busy(), self._why_wait(None)
        if request["idle_below"]:
            why = why or ("idle", 0.0, "")  # that takes a while to see
        while why and now - began < request["wait_limit_s"]:
            self._check()
            if now - told >= 2.0 and why[0] != "idle":
                told = now
                self.emit({"event": "phase", "phase": why[0], "value": why[1], "expected_s": 2.0})
            time.sleep(min(1.0, max(began + request["wait_limit_s"] - now, 0.05)))
            now, why, busy = time.monotonic(), self._why_wait(busy), Busy()
        waited: dict[str, Any] = {"s": round(now - began, 1)}
        if why:
            waited["in_vain"] = why[2]
        if request["cool_below_c"] and hottest(temperatures()) is None:
            waited["no_sensor"] = "temperature"
        self.emit({"event": "waited", **waited})
        if why and request["at_limit"] == "skip":
            raise Stop("skipped", f"{why[2]} after {now - began:.0f} s of waiting")
        self._met = True  # whoever fetches has come to see how the wait goes
        self._started += now - began

    def _why_wait(self, busy: Busy | None) -> tuple[str, float, str] | None:
        """Return what to wait for, its value, and a sentence; None where there is nothing."""
        request, hot = self.request, hottest(temperatures())
        if request["cool_below_c"] and hot is not None and hot >= request["cool_below_c"]:
            text = f"still {hot:.0f} °C, not below {request['cool_below_c']:.0f} °C"
            return "cooling", hot, text
        share = busy.share() if busy and request["idle_below"] else None
        if share is not None and share >= request["idle_below"]:
            text = f"others still use {100 * share:.0f} % of the CPU, not less than"
            return "busy", share, f"{text} {100 * request['idle_below']:.0f} %"
        return None

    # -- blocks

    def _all_blocks(self) -> str:
        """Time block after block; return why it stopped.

        The intervals are looked at only at the end of a quiet section: after `blocks_min`
        blocks, then after as many more as their spread asks for. Who fetches knows of a section
        only once it has read of it, so each later one begins when it has, or after a short gap.
        """
        request = self.request
        look, longest, told = request["blocks_min"], 0.0, -1.0
        while True:
            k = len(self.blocks)
            guess = longest or request["expected_block_s"] or 0.3 + 0.1 * len(self._alive())
            if guess != told:  # at the start, and once the length of a block is known
                self._announce(k, look, guess)
                told = guess
            start = time.monotonic()
            try:
                self._one_block(k)
            except _OutOfTimeError:
                if not self.blocks:
                    raise Stop("timeout", "the time limit ran out in the first block") from None
                return "time"
            longest = longest or time.monotonic() - start
            if len(self.blocks) < look:
                self._met = len(self.blocks) == request["look_after"]
                continue
            look, told = self._next_look(), -1.0
            if look == len(self.blocks):
                return "interval" if self._widest() <= request["interval_percent"] else "blocks"
            if self._left() < longest:
                return "time"
            self._met = True

    def _announce(self, first: int, look: int, each_s: float) -> None:
        lease = self._lease_time()
        self.emit(
            {
                "event": "timed",
                "blocks": [first, look - 1],
                "expected_s": round(each_s * (look - first), 2),
            }
        )
        if self._met and self.request["gap_s"]:
            # After a wait somebody looks every two seconds.
            self._meet(lease, self.request["gap_s"] if self.blocks else 2.5)
        self._met = False

    def _next_look(self) -> int:
        """Return after how many blocks to look again; the present count where it is enough."""
        have, most = len(self.blocks), self.request["blocks_max"]
        if have >= most or self._widest() <= self.request["interval_percent"]:
            return have
        medians = [[e["median_ms"] for e in self._of(key)] for key in self._alive()]
        wanted = [blocks_needed(m, self.request["interval_percent"], most) for m in medians]
        return max(have + 1, *wanted)

    def _widest(self) -> float:
        medians = [[e["median_ms"] for e in self._of(key)] for key in self._alive()]
        return max(half_width_percent(m) for m in medians)

    def _alive(self) -> list[str]:
        return [c["key"] for c in self.request["cases"] if c["key"] not in self.failed]

    def _of(self, key: str) -> list[dict[str, Any]]:
        return [b["models"][key] for b in self.blocks if key in b["models"]]

    def _check_models(self) -> None:
        """Leave out models whose file is not there or is not what its name says.

        Models are loaded together only where that takes little of the memory.
        """
        bytes_ = 0
        seen: dict[str, tuple[str, int]] = {}
        for case in self.request["cases"]:
            case["path"] = path = self._resolve(case["path"])
            try:
                if path not in seen:
                    seen[path] = _sha256(path), os.path.getsize(path)
            except OSError as error:
                self.fail(case["key"], "model", _detail(error))
                continue
            found, size = seen[path]
            bytes_ += size
            if found != case["digest"]:
                self.fail(case["key"], "model", "the file's content is another: " + found)
        self._any_left()
        free_kb = conditions(light=True).get("mem_available_kb", 0)
        self._together = 10 * bytes_ < 1024 * free_kb

    def _check_images(self) -> None:
        """Raise Stop where the file of test images is not what its name says."""
        part = self.request["images"]
        if part:
            part["path"] = self._resolve(part["path"])
            if _sha256(part["path"]) != part["digest"]:
                raise Stop("runtime", "the file of test images has another content")

    def _resolve(self, path: str) -> str:
        """Return a path of the request as absolute; what is relative is relative to the folder."""
        return os.path.normpath(os.path.join(self.folder, os.path.expanduser(path)))

    def _any_left(self) -> None:
        if not self._alive():
            kinds = sorted(set(self.failed.values()))
            raise Stop(kinds[0], "no model is left to time")

    def _one_block(self, k: int) -> None:
        """Time all models in a fresh process; again without the one that ends the process."""
        watch, lease = Watch(), self._lease_time()
        while True:
            order = self._alive()[:: -1 if k % 2 else 1]
            done, again = self._attempt(order, watch)
            self._any_left()
            if not again:
                break
        order = [key for key in order if key in done]
        line: dict[str, Any] = {"event": "block", "block": k, "order": order, "models": done}
        line["during"] = watch.summary()
        if self._lease_time() != lease:
            line["during"]["fetched"] = True  # somebody connected in the middle of it
        line["conditions"] = conditions(light=True)
        self.blocks.append(line)
        self.emit(line)

    def _attempt(self, order: list[str], watch: Watch | None = None) -> tuple[dict[str, Any], bool]:
        """Run one block process; return the entries, and whether to do it again.

        A model that brings the process down is left out from then on. Where nobody can tell
        which one it was, they are no longer loaded together.
        """
        together = self._together and len(order) > 1
        answers, status = self._process(self._spec(order, together), watch)
        done: dict[str, Any] = {}
        current = None
        for answer in answers:
            if "broken" in answer:
                raise Stop("runtime", "onnxruntime does not start: " + answer["broken"])
            current = answer.get("start")
            if "entry" in answer:
                done[answer["key"]] = answer["entry"]
            elif "error" in answer:
                self.fail(answer["key"], answer["error"], answer["detail"])
        if status == 0:
            return done, False
        if current is None and together:
            self._together = False
            return {}, True
        kind, detail = {
            None: ("timeout", "a block took longer than its limit"),
            -signal.SIGKILL: ("memory", "the process was killed, as the system does out of memory"),
        }.get(status, ("runtime", "the process ended with status " + str(status)))
        if current is None:
            raise Stop(kind, detail)
        if kind == "memory":
            path = next(c["path"] for c in self.request["cases"] if c["key"] == current)
            detail = _too_large(path) + ": " + detail
        self.fail(current, kind, detail)
        return {}, True

    def _spec(self, order: Sequence[str], together: bool, load_s: float = 0.0) -> dict[str, Any]:
        """Return what a block's process is told."""
        request = self.request
        cases = {c["key"]: c for c in request["cases"]}
        spec = {k: request[k] for k in ("seed", "warmup_runs", "warmup_s", "runs", "block_s")}
        spec["cases"] = [cases[key] for key in order]
        spec["together"], spec["load_s"] = together, load_s
        spec["images"] = None if load_s else self._part(len(self.blocks))
        spec["samples"] = max(min(SAMPLES, LINE_SAMPLES // max(len(order), 1)), 1)
        return spec

    def _part(self, block: int) -> dict[str, Any] | None:
        """Return which test images a block shows, None where it shows none."""
        whole = self.request.get("images")
        if not whole:
            return None
        first = block * whole["each"]
        return dict(whole, first=first, count=min(whole["each"], whole["count"] - first))

    # -- energy

    def _weigh_all(self) -> None:
        """Tell each model's energy where the machine can tell it: first idle, then one by one."""
        seconds, alive = self.request["energy_s"], self._alive()
        meter = find_meter() if seconds else None
        if meter is None:
            return
        needed = 2.0 + seconds + len(alive) * (2.0 + self.request["warmup_s"] + seconds)
        if needed > self._left():
            why = f"the time limit leaves no room for it: it takes {needed:.0f} s"
            for key in alive:
                self.emit({"event": "energy", "model": key, **meter.told(), "why": why})
            return
        lease = self._lease_time()
        self.emit({"event": "phase", "phase": "energy", "expected_s": round(needed, 1)})
        if self.request["gap_s"]:
            self._meet(lease, self.request["gap_s"])
        busy, idle = Busy(), self._rest(meter, seconds)
        try:
            answers, _ = self._process(self._spec(alive, False, seconds), meter)
        except _OutOfTimeError:
            answers = []
        others = busy.share()
        loads = {a["key"]: a["load"] for a in answers if "load" in a}
        for key in alive:
            found = weigh(meter, idle, loads[key]) if key in loads else {"why": "it did not run"}
            self.emit({"event": "energy", "model": key, **found, **_present(others_share=others)})

    def _rest(self, meter: Meter, seconds: float) -> tuple[float, float]:
        """Do nothing but read the sensor for so long; return when that began and ended."""
        time.sleep(0.5)
        begin = now = meter.next = time.monotonic()
        while now < begin + seconds:
            if now >= meter.next:
                meter.look()
                self._check()
            time.sleep(min(max(meter.next - time.monotonic(), 0.0), 0.5))
            now = time.monotonic()
        return begin, now

    # -- the block's process

    def _process(
        self, spec: dict[str, Any], watch: Watch | Meter | None = None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Run a block; return its answers and exit status, None where its time ran out.

        Raises:
            _OutOfTimeError: the whole run's time limit was reached.
            Stop: the run was cancelled or nobody renewed the lease.
        """
        import subprocess

        self._check()
        threads = max((case["threads"] for case in spec["cases"]), default=1)
        environ = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS="1")
        limit = self.request["block_timeout_s"] + len(spec["cases"]) * spec["load_s"]
        limit = min(limit, self._left())
        all_cores()
        with open(self._file("runner.log"), "ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "--block"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environ,
            )  # fmt: skip
        try:
            with contextlib.suppress(BrokenPipeError):  # it is gone already; its status says why
                self._child.stdin.write(json.dumps(spec).encode() + b"\n")
                self._child.stdin.close()
            text, late = self._listen(time.monotonic() + limit, watch)
        finally:
            status = self._end_child()
        if status == -signal.SIGTERM and not late:
            raise Stop("cancelled", "a block's process was terminated")
        if late and self._left() <= 0:
            raise _OutOfTimeError
        return [json.loads(v) for v in text.split(b"\n")[:-1]], None if late else status

    def _listen(self, deadline: float, watch: Watch | Meter | None) -> tuple[bytes, bool]:
        """Return what the block says until it ends, and whether the deadline came first."""
        import select

        text = b""
        pipe = self._child.stdout.fileno()
        while time.monotonic() < deadline:
            # Asleep while models are timed, but for a look at the machine and the lease now and
            # then.
            until = min(deadline, watch.next if watch else math.inf)
            rest = min(0.5, max(until - time.monotonic(), 0.0))
            if select.select([pipe], [], [], rest)[0]:
                piece = os.read(pipe, 65536)
                if not piece:
                    return text, False
                text += piece
            if watch is not None and time.monotonic() >= watch.next:
                watch.look(self._child.pid)
            self._check()
        return text, True

    def _end_child(self) -> int | None:
        """Have the block's process gone; return its exit status."""
        import subprocess

        child, self._child = self._child, None
        child.stdout.close()
        for stop in (None, child.terminate, child.kill):
            if stop is not None:
                stop()
            try:
                return int(child.wait(timeout=0.2 if stop is None else 2.0))
            except subprocess.TimeoutExpired:
                continue
        return None

    # -- lease, cancellation, end

    def _check(self) -> None:
        """Raise Stop where the run is cancelled or its lease has run out."""
        if self.terminated or os.path.exists(self._file("cancel")):
            raise Stop("cancelled", "the run was cancelled")
        now, lease = time.monotonic(), self._lease_time()
        if lease != self._lease:
            self._lease, self._renewed = lease, now
        if now - self._renewed > self.request["lease_s"]:
            raise Stop("lease", "nobody renewed the lease")

    def _meet(self, before: int, limit_s: float) -> None:
        """Let the fetch that is due come before what was just announced, or the limit pass.

        Fetching renews the lease, which was at `before` when it was announced.
        """
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self._lease_time() == before:
            self._check()
            time.sleep(0.02)
        if self._lease_time() != before:
            time.sleep(0.03)  # it still reads

    def _lease_time(self) -> int:
        try:
            return os.stat(self._file("lease")).st_mtime_ns
        except OSError:
            return 0

    def _left(self) -> float:
        return float(self.request["time_limit_s"]) - (time.monotonic() - self._started)

    def _file(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _own_group(self) -> None:
        """Lead a process group of our own, so that one signal ends all of it."""
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._terminate)
        with open(self._file("pid"), "w", encoding="ascii") as file:
            file.write(str(os.getpid()) + "\n")

    def _no_group(self) -> None:
        """Leave no number behind that another process may get."""
        with contextlib.suppress(OSError):
            os.unlink(self._file("pid"))

    def _terminate(self, _number: int, _frame: Any) -> None:
        self.terminated = True

    def _end(self, kind: str, detail: str) -> int:
        """Say why the run failed, then end what is left of the process group."""
        try:
            self.fail(None, kind, detail)
        except OSError as error:  # the disk is full: the log's reader is the last to be told
            print(detail, _detail(error), sep="\n", file=sys.stderr)
        self._no_group()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGTERM)
        return 1


class _OutOfTimeError(Exception):
    """The time limit of the whole run was reached."""


def _sha256(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _hello(clock: float) -> dict[str, Any]:
    return {
        "event": "hello",
        "runner": _sha256(os.path.abspath(__file__)),
        "version": VERSION,
        "pid": os.getpid(),
        "clock": clock,
        "python": ".".join(map(str, sys.version_info[:3])),
        "onnxruntime": _installed("onnxruntime"),
        "numpy": _installed("numpy"),
        "machine": os.uname().machine,
        "system": os.uname().sysname,
        "conditions": conditions(),
        "emulated": emulated(),
    }


def check(path: str, seeds: Sequence[int] = (), exact: bool = False) -> dict[str, Any]:
    """Load a model, run it on zeros and on each seed's input; return whether that worked.

    `known` tells of every seed what came out, short enough to be compared elsewhere; `exact` is
    that of `make_session`.
    """
    try:
        session = make_session(os.path.expanduser(path), 1, "CPUExecutionProvider", exact=exact)
        outputs = session.run(None, make_feed(session, 1, None))
        known = [
            [fingerprint(v) for v in session.run(None, make_feed(session, 1, seed))[:CHECKED]]
            for seed in seeds
        ]
    except Exception as error:
        return {"ok": False, "error": _model_error(error).kind, "detail": _detail(error)}
    shapes = [list(getattr(v, "shape", ())) for v in outputs]
    digest = _sha256(os.path.expanduser(path))
    return {"ok": True, "outputs": shapes, "digest": digest, "known": known}


def fingerprint(value: Any) -> dict[str, Any]:
    """Return an output in a few numbers: any value that is another moves some of them.

    `values` are picked evenly; each of `sums` adds up all values with signs of its own and is
    divided by the root of their number; `top` has, of the first rows of a table, where its
    largest value is and by how much it leads.
    """
    import numpy

    whole = numpy.asarray(value)
    found: dict[str, Any] = {"shape": list(whole.shape)}
    if whole.dtype.kind not in "biuf" or not whole.size:
        return found
    whole = whole.astype("float64")
    fit = numpy.isfinite(whole)
    whole = numpy.where(fit, whole, 0.0)
    flat = whole.ravel()
    picked = numpy.linspace(0, flat.size - 1, min(flat.size, PICKED)).astype("int64")
    found["not_finite"] = int(fit.size - fit.sum())
    found["scale"] = _short(numpy.sqrt(numpy.mean(flat * flat)))
    found["values"] = [_short(v) for v in flat[picked]]
    found["sums"] = []
    for seed in range(SUMS):
        signs = numpy.resize(numpy.sign(_uniform(min(flat.size, 65521), seed) - 0.5), flat.size)
        found["sums"].append(_short(flat @ signs / math.sqrt(flat.size)))
    if whole.ndim == 2 and whole.shape[1] > 1:
        rows = numpy.sort(whole[:PICKED], axis=1)
        leads = rows[:, -1] - rows[:, -2]
        places = numpy.argmax(whole[:PICKED], axis=1)
        found["top"] = [[int(p), _short(v)] for p, v in zip(places, leads)]  # noqa: B905
    return found


def _short(value: Any) -> float:
    return float(f"{value:.7g}")


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    if list(arguments) == ["--block"]:
        block_main()
    elif list(arguments) == ["--facts"]:
        print(json.dumps(facts()))
    elif len(arguments) >= 2 and arguments[0] == "--check":
        answer = check(arguments[1], [int(seed) for seed in arguments[2:]])
        print(json.dumps(answer))
        print(answer.get("detail", ""), end="", file=sys.stderr)
        return 0 if answer["ok"] else 1
    elif len(arguments) == 1 and os.path.isdir(arguments[0]):
        return Run(arguments[0])()
    else:
        print("usage: runner.py JOBDIR | --facts | --check MODEL.onnx [SEED ...]", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
