"""Latencies of pruned networks on this machine, kept in a file so that a benchmark can go on.

Each design is timed beside the unpruned network, turn by turn, with ONNX Runtime on one thread by
the processor time of that thread: what slows the machine for a while slows both, and their ratio
stays. Each block loads all files anew, for where they lie in memory matters as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import models
from engine.compress.export import Template
from engine.compress.groups import importance, trace
from engine.compress.prune import prune
from engine.fleet.geometry import measure_geometry
from engine.runner import make_session
from engine.search.scoring import at_widths
from engine.search.space import Widths

CACHE = Path.home() / ".cache" / "hdap-benchmarks"
BATCH, BLOCKS, ROUNDS, RUNS = 10, 3, 6, 3
"""Designs timed in turn, how often they are loaded, turns of each, inferences a turn."""


class OutOfTimeError(Exception):
    """What is measured is kept; another run goes on from there."""


def command_line(text: str, network: str) -> argparse.ArgumentParser:
    """Return a parser with what all of these benchmarks take."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--network", default=network)
    parser.add_argument("--folder", type=Path, default=CACHE)
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to measure")
    return parser


@contextmanager
def in_pieces() -> Iterator[None]:
    """End with status 75 where the time has run out: another run goes on."""
    try:
        yield
    except OutOfTimeError as error:
        print(f"{error}: run it again", file=sys.stderr)
        sys.exit(75)


class Designs:
    """A network, its pruned variants, and how long they take.

    Args:
        name: a built-in network; its weights are random, which latency does not see.
        folder: where the table is kept.
        seconds: how long to measure in all.
        classes: how many it tells apart.
    """

    def __init__(self, name: str, folder: Path, seconds: float, classes: int = 10) -> None:
        torch.manual_seed(0)
        self.name, self._end = name, time.monotonic() + seconds
        self.network = models.build(name, classes).eval()
        side = models.NETWORKS[name].size
        example = torch.rand(1, 3, side, side)
        self.groups = trace(self.network, example)
        self.geometry = measure_geometry(self.network, self.groups, example)
        self.whole: Widths = tuple(group.channels for group in self.groups)
        self.example = example
        self._scores = importance(self.network, self.groups)
        self._template: Template | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / (f"{name}.jsonl" if classes == 10 else f"{name}-{classes}.jsonl")
        self._known: dict[Widths, list[float]] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                row = json.loads(line)
                self._known.setdefault(tuple(row["widths"]), []).append(row["ratio"])

    def ratios(self, designs: Iterable[Widths], repeat: int = 0) -> np.ndarray:
        """Return latencies relative to the unpruned network's, measured where they are missing.

        Raises:
            OutOfTimeError: there was no time left to measure them.
        """
        wanted = list(designs)
        missing = [w for w in dict.fromkeys(wanted) if len(self._known.get(w, ())) <= repeat]
        for start in range(0, len(missing), BATCH):
            if time.monotonic() > self._end:
                raise OutOfTimeError(f"{self.name}: {len(missing) - start} designs to measure")
            part = missing[start : start + BATCH]
            found = self._measure(part)
            with self._path.open("a") as file:
                for widths, ratio in zip(part, found, strict=True):
                    self._known.setdefault(widths, []).append(float(ratio))
                    file.write(json.dumps({"widths": widths, "ratio": float(ratio)}) + "\n")
        return np.array([self._known[w][repeat] for w in wanted])

    def file(self, widths: Widths) -> bytes:
        """Return a design's ONNX file."""
        if self._template is None:
            self._template = Template(self.network, self.example, self.groups)
        design = at_widths(self._scores, widths)
        return self._template.build(prune(self.network, self.groups, design))

    def _measure(self, designs: Sequence[Widths]) -> np.ndarray:
        files = [self.file(w) for w in (*designs, self.whole)]
        blocks = []
        for _ in range(BLOCKS):
            *timed, base = [_runner(file, self.example.numpy()) for file in files]
            turns = np.zeros((ROUNDS, len(timed)))
            for turn in range(ROUNDS):
                order = list(range(len(timed)))
                before = _take(base)
                for i in order if turn % 2 == 0 else reversed(order):
                    mine, after = _take(timed[i]), _take(base)
                    turns[turn, i] = 2 * mine / (before + after)
                    before = after
            blocks.append(np.median(turns, axis=0))
        return np.median(blocks, axis=0)


def compare_files(paths: Sequence[Path], images: Any, blocks: int = 5) -> list[float]:
    """Return by how much each model is faster than the first, interleaved, processor time."""
    found = []
    for _ in range(blocks):
        base, *others = [_runner(path.read_bytes(), images) for path in paths]
        turns = np.zeros((ROUNDS, len(others)))
        for turn in range(ROUNDS):
            for i, other in enumerate(others):
                turns[turn, i] = _take(base) / _take(other)
        found.append(np.median(turns, axis=0))
    return [float(ratio) for ratio in np.median(found, axis=0)]


def _runner(file: bytes, images: Any) -> Callable[[], Any]:
    session = make_session(file, 1, "CPUExecutionProvider", flush=True)  # type: ignore[arg-type]
    feed = {session.get_inputs()[0].name: images}
    infer: Callable[[], Any] = lambda: session.run(None, feed)  # noqa: E731
    for _ in range(4):
        infer()
    return infer


def _take(infer: Callable[[], Any]) -> float:
    infer()  # fills the caches again
    times = []
    for _ in range(RUNS):
        begun = time.thread_time_ns()
        infer()
        times.append(time.thread_time_ns() - begun)
    return float(np.median(times))
