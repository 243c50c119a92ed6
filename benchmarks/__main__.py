"""Start-up and first paint, the fleet's filter, a sweep of the lab, the search's evaluations.

    python -m benchmarks [startup] [filter] [sweep] [search]

Prints one line a figure. Machines are noisy: compare ratios within one run.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*ALL, []], default=[])
    for name in parser.parse_args().which or list(ALL):
        print(f"\n{name}")
        ALL[name]()


def startup() -> None:
    """Whole processes, best and median of ten, beside an interpreter that does nothing."""
    for name, command in (
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("hdap --help", [sys.executable, "-m", "hdap_tui", "--help"]),
        ("hdap config show --json", [sys.executable, "-m", "hdap_tui", "config", "show", "--json"]),
        ("hdap devices list --json", [sys.executable, "-m", "hdap_tui", "devices", "--json"]),
    ):
        times = [_wall(command) for _ in range(10)]
        print(f"  {name:<28} best {min(times):6.0f} ms, median {statistics.median(times):6.0f} ms")
    times = [_first_paint() for _ in range(5)]
    print(
        f"  {'hdap: first paint':<28} best {min(times):6.0f} ms, "
        f"median {statistics.median(times):6.0f} ms"
    )


def filter_fleet() -> None:
    """One key press in the filter of ten thousand devices: processor time, the best of five."""
    from hdap_tui.dashboard.filters import Selector
    from hdap_tui.dashboard.screens.fleet import searched
    from hdap_tui.store.records import DeviceRow

    rows = [
        DeviceRow(id=i, name=f"edge-{i:05d}", tags=(("kitchen", "roof")[i % 2],), state="ok",
                  model="resnet20-digits", latency_ms=4 + i % 7, cluster=i % 3)
        for i in range(10_000)
    ]  # fmt: skip
    look = Selector(searched, dict)
    for text in ("kitch", "edge-[00001:05000] !*7", "tag=roof and not state=off and latency>5"):
        times = []
        for _ in range(5):
            start = time.process_time()
            found = look(text, rows, typing=True)
            times.append(time.process_time() - start)
        print(f"  {text:<42} {1e3 * min(times):6.1f} ms, {len(found)} devices")


def sweep() -> None:
    """Twelve emulated devices: the first sweep, a second one, and a canary round."""
    from hdap_tui.config import load
    from hdap_tui.context import Context
    from hdap_tui.lab import control
    from hdap_tui.lab.profiles import Plan
    from hdap_tui.watching.watcher import Watcher

    with tempfile.TemporaryDirectory() as folder:
        settings = load(ROOT / "fleet.toml").in_state(Path(folder))
        control.up(settings.state_dir, 12, plan=Plan(step_at_s=None), end_with=os.getpid())
        context = Context(settings=settings)
        watcher = Watcher(context)
        try:
            with watcher.measuring:
                for name, action in (
                    ("first sweep (connects, uploads)", watcher.sweep),
                    ("second sweep", watcher.sweep),
                    ("canary round", watcher.canary),
                    ("canary round", watcher.canary),
                ):
                    begin = time.perf_counter()
                    action()
                    print(f"  {name:<34} {time.perf_counter() - begin:6.1f} s")
        finally:
            context.close()
            control.down(settings.state_dir)


def search() -> None:
    """ResNet-20: the optimiser with its surrogates alone, and with candidates' accuracy."""
    import numpy as np
    import torch

    from engine.compress.groups import importance, trace
    from engine.compress.prune import prune
    from engine.data import load
    from engine.models import SHIPPED, build, load_weights
    from engine.search.ncs import NCS
    from engine.search.scoring import at_widths

    torch.set_num_threads(1)
    network = load_weights(build("resnet20"), SHIPPED["resnet20-digits"]).eval()
    images = torch.from_numpy(load("digits").train_images[:128]).float() / 255
    groups = trace(network, images[:2])
    scores = importance(network, groups)
    full = np.array([g.channels for g in groups])

    ncs = NCS(np.zeros(len(full)), np.full(len(full), 0.75), 20_000, seed=1)
    begin = time.perf_counter()
    while not ncs.done:
        ncs.tell(ncs.ask().sum(axis=1))
    print(f"  NCS alone: {20_000 / (time.perf_counter() - begin):,.0f} evaluations a second")

    random = np.random.default_rng(1)
    drawn = [tuple(int(w) for w in np.ceil(full * random.uniform(0.3, 1, len(full))))
             for _ in range(40)]  # fmt: skip
    begin = time.perf_counter()
    candidates = [prune(network, groups, at_widths(scores, widths)) for widths in drawn]
    print(f"  building a candidate: {(time.perf_counter() - begin) / len(drawn) * 1e3:.1f} ms")
    with torch.inference_mode():
        begin = time.perf_counter()
        for candidate in candidates:
            candidate(images)
        seconds = (time.perf_counter() - begin) / len(candidates)
    print(f"  accuracy of a candidate on 128 images, one thread: {seconds * 1e3:.0f} ms")


ALL: dict[str, Callable[[], None]] = {
    "startup": startup,
    "filter": filter_fleet,
    "sweep": sweep,
    "search": search,
}


def _wall(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return (time.perf_counter() - begin) * 1e3


def _first_paint() -> float:
    """Milliseconds from starting `hdap` in a terminal to the fleet's name on the screen."""
    begin = time.perf_counter()
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "hdap_tui"])
    seen, painted = b"", 0.0
    while time.perf_counter() - begin < 10:
        ready, _, _ = select.select([terminal], [], [], 0.05)
        if ready:
            seen += os.read(terminal, 65536)
            if b"HDAP" in seen or b"lab" in seen:
                painted = (time.perf_counter() - begin) * 1e3
                break
    os.kill(child, 15)
    os.waitpid(child, 0)
    os.close(terminal)
    return painted


if __name__ == "__main__":
    main()
