"""Stretches every inference of this process by what the device's profile asks for.

An inference really runs, at the host's own speed, of which `host` takes out what else the host
is busy with. What a slower device would have needed on top is then added to the process's clocks:
nothing sleeps, no core is burnt, and wall time and CPU time keep their ratio, so that an emulated
device does not look like a contended one. The device's clocks thus run ahead of true time;
`time.time` stays true.

A program that took a clock out of `time` before it imported onnxruntime reads the true one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from _random import Random  # the class behind `random.Random`, without that module's imports
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import host, mix, schedule

Reading = tuple[int, int, int]
"""Wall time, CPU time of the thread, CPU time of the process; ns."""

_UNDISTURBED = (1.0, 1.0, 1.0)

_wall = time.perf_counter_ns
_thread = time.thread_time_ns
_process = time.process_time_ns


class Clocks:
    """The process's clocks, each ahead of the true one."""

    def __init__(self) -> None:
        self._ahead = [0, 0, 0]

    def settle(self, since: Reading, took: Reading = (0, 0, 0), stretch: float = 1.0) -> None:
        """Make the time since a reading look as if only `took`, stretched, had passed.

        The emulation's own time thus disappears; the clocks never run backwards. Wall time comes
        last, as what follows that reading is the only part that stays.
        """
        ahead = self._ahead
        ahead[2] += int(took[2] * stretch) - _process() + since[2]
        ahead[1] += int(took[1] * stretch) - _thread() + since[1]
        ahead[0] += int(took[0] * stretch) - _wall() + since[0]

    def install(self) -> None:
        """Put the virtual clocks in the place of those of `time`."""
        names = {"perf_counter": 0, "monotonic": 0, "thread_time": 1, "process_time": 2}
        for name, which in names.items():
            virtual = self._clock(getattr(time, f"{name}_ns"), which)
            setattr(time, f"{name}_ns", virtual)
            setattr(time, name, self._seconds(virtual))

    def _clock(self, true: Callable[[], int], which: int) -> Callable[[], int]:
        ahead = self._ahead
        return lambda: true() + ahead[which]

    @staticmethod
    def _seconds(clock: Callable[[], int]) -> Callable[[], float]:
        return lambda: clock() * 1e-9


class Device:
    """The profile of one lab device, as its sessions need it."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        self.compute = float(profile.get("compute", 1.0))
        self.memory = float(profile.get("memory", 1.0))
        self.overhead = float(profile.get("overhead", 1.0))
        self.noise = float(profile.get("noise", 0.0))
        # Whether to take out what else the host is busy with; tests of exact factors do not.
        self.steady_host = bool(profile.get("steady_host", True))
        self.schedule = list(profile.get("schedule", ()))
        self.started_at = float(profile.get("started_at", time.time()))
        self._random = Random(hash((profile.get("seed", 0), os.getpid(), time.time_ns())))

    def now(self) -> float:
        """Return the schedule's factor at this moment."""
        return schedule.factor(self.schedule, time.time() - self.started_at)

    def lognormal(self, sigma: float) -> float:
        """Return a random factor around 1 (Box and Muller 1958)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self._random.random()))
        return math.exp(sigma * radius * math.cos(2.0 * math.pi * self._random.random()))


def install(session_class: Any) -> None:
    """Hook onnxruntime's `InferenceSession`, once a process."""
    clocks = Clocks()
    state: host.Host | None = None
    profile = Path(os.environ["HDAP_LAB_PROFILE"])
    cache = Path(os.environ.get("HDAP_LAB_CACHE") or profile.parent / "cache")
    native = session_class.__init__
    busy = False

    def create(self: Any, path_or_bytes: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal busy, state
        native(self, path_or_bytes, *args, **kwargs)
        if busy:  # a session of the profiling pass itself
            return
        before = _wall(), _thread(), _process()
        busy = True
        try:
            device = Device(json.loads(profile.read_text(encoding="utf-8")))
            if device.steady_host and state is None:
                with contextlib.suppress(OSError):  # a full disk is the device's own business
                    state = host.Host(session_class, cache)
            self._lab = _Stretch(device, _mix_of(session_class, path_or_bytes, cache, state), state)
        finally:
            busy = False
            clocks.settle(before)

    session_class.__init__ = create
    for name in ("run", "run_with_iobinding", "run_with_ort_values"):
        setattr(session_class, name, _stretched(getattr(session_class, name), clocks))
    clocks.install()


def _mix_of(session_class: Any, model: Any, cache: Path, state: host.Host | None) -> mix.Mix:
    disturbed = (state.read,) if state else ()
    try:
        return mix.from_cache(
            model, cache, lambda folder: mix.profiled(session_class, model, folder, *disturbed)
        )
    except Exception:  # it does not run on zeros, or the disk is full
        return mix.Mix(1 / 3, 1 / 3, 1 / 3)


class _Stretch:
    """How much slower one session is; each session's luck is its own, as with processes."""

    def __init__(self, device: Device, shares: mix.Mix, state: host.Host | None) -> None:
        self._device = device
        self._shares = shares
        self._state = state
        self._luck = device.lognormal(0.5 * device.noise)

    def __call__(self) -> float:
        device = self._device
        shares = self._shares
        compute, memory, overhead = self._state.read(shares.shares) if self._state else _UNDISTURBED
        factor = shares.stretch(
            device.compute / compute, device.memory / memory, device.overhead / overhead
        )
        return factor * device.now() * self._luck * device.lognormal(device.noise)


def _stretched(native: Callable[..., Any], clocks: Clocks) -> Callable[..., Any]:
    """Return a `run` that advances the clocks by what a slower device would have needed."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        stretch: _Stretch | None = getattr(self, "_lab", None)
        if stretch is None:
            return native(self, *args, **kwargs)
        entered = _wall(), _thread(), _process()
        factor = stretch()
        process = _process()
        thread = _thread()
        wall = _wall()
        try:
            return native(self, *args, **kwargs)
        finally:
            took = _wall() - wall, _thread() - thread, _process() - process
            clocks.settle(entered, took, factor)

    return run
