"""Measured designs: asked of the clusters' representatives, saved before they are used.

A measurement is a line of `measurements.jsonl`, keyed by the kept channels and the device; what
is there is never measured again, failures included. So a search that was stopped anywhere takes
the same way again, and a copy of the file is all that another run needs to take it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import files
from engine.events import Reporter, silent
from engine.fleet.surrogates import LEAST
from engine.latency import Latency, Measure
from engine.search.space import Widths

Array = NDArray[np.float64]
_VOID = "failures before this line are void"
_MODEL_S = ("model", "memory", "failed")
"""Classes of error that can be the design's own fault."""


class Cancelled(Exception):
    """Somebody asked to stop; what was measured and trained is kept."""


class NoDeviceError(ValueError):
    """No device is left that can be measured."""


@dataclass(frozen=True)
class Cluster:
    """Devices that behave alike, of which one is measured."""

    id: int
    size: int
    """How many devices of the fleet it stands for, noise devices counted with their nearest."""
    devices: tuple[str, ...]
    """Whom to measure: the representative, then those to ask should it fail, best first."""
    levels: tuple[float, ...] = ()
    """Latency of its devices relative to the representative's; empty: all are alike."""
    multiple: int = 1
    """Channels at whose multiples its devices' convolutions run fastest; 1: not known, or none."""


@dataclass(frozen=True)
class Learned:
    """What a cluster has taught: n designs, as if all were measured on one device."""

    widths: NDArray[np.int64]
    """(n, G)"""
    latencies: Array
    """(n,) milliseconds."""
    repeatability: Array | None
    """(n,) relative standard error, where the intervals tell."""


class Log:
    """The file of measurements.

    Raises:
        ValueError: a line, other than a last one that was cut off, is no measurement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[Widths, str], Latency] = {}
        self._read()

    def get(self, widths: Widths, device: str) -> Latency | None:
        """Return what was measured, or None."""
        return self._known.get((widths, device))

    def add(self, widths: Widths, latency: Latency) -> None:
        """Save a measurement; it is on the disk when this returns."""
        self._known[widths, latency.device] = latency
        files.append(self._path, [{"widths": widths, "latency": _plain(asdict(latency))}])

    def void_failures(self) -> None:
        """Forget what failed, so that it is asked again."""
        self._known = {key: found for key, found in self._known.items() if found.ok}
        files.append(self._path, [{"note": _VOID}])

    def _read(self) -> None:
        for number, line in enumerate(files.lines(self._path), 1):
            try:
                data = json.loads(line)
                if data.get("note") == _VOID:
                    self._known = {k: found for k, found in self._known.items() if found.ok}
                    continue
                latency = _latency(data["latency"])
                widths = tuple(int(width) for width in data["widths"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{self._path}, line {number}: not a measurement: remove the line, or the file"
                ) from error
            self._known[widths, latency.device] = latency


class Measurements:
    """Asks representatives for latencies and changes to another device where one fails.

    Args:
        log: where measurements are kept.
        clusters: whom to ask.
        measure: asks them.
        write: writes the ONNX file of a design to a path and returns its digest.
        folder: where those files are put, and removed once they have been measured.
        whole: the unpruned design; every device measures it first, so that what two devices of
            a cluster measured can be put on one scale.
        reporter: hears of it.
        cancelled: asked between devices.
        batch: designs handed over at once.
    """

    def __init__(
        self,
        log: Log,
        clusters: Sequence[Cluster],
        measure: Measure,
        write: Callable[[Widths, Path], str],
        folder: Path,
        whole: Widths,
        reporter: Reporter,
        cancelled: Callable[[], bool],
        batch: int = 12,
    ) -> None:
        self._log, self._measure, self._write = log, measure, write
        self._folder, self._whole, self._batch = folder, whole, batch
        self._reporter, self._cancelled = reporter, cancelled
        self.clusters = tuple(clusters)
        self._next = {cluster.id: 0 for cluster in clusters}
        self._asked: list[Widths] = []
        self._calls: list[tuple[Widths, ...]] = []
        self._spoiled: set[Widths] = set()

    def representative(self, cluster: Cluster) -> str | None:
        """The device that is measured for the cluster now; None where all have failed."""
        place = self._next[cluster.id]
        return cluster.devices[place] if place < len(cluster.devices) else None

    @property
    def asked(self) -> tuple[tuple[Widths, ...], ...]:
        """All designs asked for, call by call; `replay` takes another object to the same state."""
        return tuple(self._calls)

    def replay(self, calls: Iterable[Iterable[Widths]]) -> None:
        """Repeat calls of `ensure` whose measurements are recorded, in silence."""
        reporter, self._reporter = self._reporter, silent()
        try:
            for call in calls:
                self.ensure("", call)
        finally:
            self._reporter = reporter

    def ensure(self, step: str, designs: Iterable[Widths]) -> None:
        """Have these designs measured on every cluster that still has a device.

        Reports the designs that are done, one a cluster, as the step's progress.

        Raises:
            Cancelled: somebody asked to stop.
            NoDeviceError: none is left; what failed is asked again by the next run.
        """
        todo = [self._whole] if not self._asked else []
        todo += [widths for widths in dict.fromkeys(designs) if widths not in (*self._asked, *todo)]
        self._calls.append(tuple(todo))
        done = 0
        for start in range(0, len(todo), self._batch):
            part = todo[start : start + self._batch]
            self._asked += part
            self._finish(step, part, done)
            done += len(part) * len(self.clusters)
            self._reporter.advanced(step, done)

    def learned(self, cluster: Cluster) -> Learned | None:
        """Return what is known of a cluster; None where it is too little to predict from."""
        used = cluster.devices[: self._next[cluster.id] + 1]
        base = {
            device: found.median_ms
            for device in used
            if (found := self._log.get(self._whole, device)) is not None and found.ok
        }
        rows: dict[Widths, tuple[float, float]] = {}
        for device, level in base.items():
            scale = base[list(base)[-1]] / level
            for widths in self._asked:
                found = self._log.get(widths, device)
                if found is not None and found.ok:
                    rows[widths] = (found.median_ms * scale, _spread(found))
        if len(rows) < LEAST:
            return None
        order = [widths for widths in self._asked if widths in rows]
        spread = np.array([rows[widths][1] for widths in order])
        return Learned(
            np.array(order),
            np.array([rows[widths][0] for widths in order]),
            spread if np.isfinite(spread).all() else None,
        )

    def _finish(self, step: str, part: Sequence[Widths], before: int) -> None:
        """Measure a batch, on other devices where some fail, until nothing is missing."""
        while True:
            requests = self._missing(part)
            if requests:
                self._run(step, requests, part, before)
            if not self._replace(step, part):
                return

    def _missing(self, part: Sequence[Widths]) -> list[tuple[Widths, str]]:
        requests = []
        for widths in dict.fromkeys((self._whole, *part)):
            for cluster in self.clusters:
                device = self.representative(cluster)
                if (
                    device is not None
                    and widths not in self._spoiled
                    and self._log.get(widths, device) is None
                ):
                    requests.append((widths, device))
        return requests

    def _run(
        self,
        step: str,
        requests: Sequence[tuple[Widths, str]],
        part: Sequence[Widths],
        before: int,
    ) -> None:
        if self._cancelled():
            raise Cancelled
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = {w: self._folder / f"{'-'.join(map(str, w))}.onnx" for w, _ in requests}
        by_digest = {self._write(widths, path): widths for widths, path in paths.items()}
        waiting = dict.fromkeys(requests)
        total = before + len(part) * len(self.clusters)
        try:
            asked = [(paths[widths], device) for widths, device in requests]
            for latency in self._measure(asked, self._cancelled):
                widths = by_digest.get(latency.model)
                if widths is None or (widths, latency.device) not in waiting:
                    continue
                if not latency.ok and self._cancelled():
                    break  # stopping is no fault of the device
                del waiting[widths, latency.device]
                self._log.add(widths, latency)
                self._reporter.advanced(step, max(before, total - len(waiting)))
        finally:
            for path in paths.values():
                path.unlink(missing_ok=True)
        if self._cancelled():
            raise Cancelled
        for widths, device in waiting:
            model = next(digest for digest, w in by_digest.items() if w == widths)
            lost = Latency(device=device, model=model, error="lost", detail="no answer came")
            self._log.add(widths, lost)

    def _replace(self, step: str, part: Sequence[Widths]) -> bool:
        """Draw the consequences of failures; True where something must be asked again."""
        self._blame_designs(step, part)
        changed = False
        for cluster in self.clusters:
            device = self.representative(cluster)
            failure = self._failure(device, part) if device is not None else None
            if failure is None:
                continue
            self._next[cluster.id] += 1
            changed = True
            after = self.representative(cluster)
            self._reporter.noted(
                step,
                f"{device} cannot be measured ({failure.error}: {failure.detail}); "
                + (
                    f"{after} stands in for cluster {cluster.id}"
                    if after
                    else f"cluster {cluster.id} has no other device: what it has measured so far "
                    "has to do"
                ),
            )
        if all(self.representative(cluster) is None for cluster in self.clusters):
            self._log.void_failures()
            raise NoDeviceError(
                "no device is left that can be measured; the log says what failed on each: "
                "mend one and resume the job"
            )
        return changed

    def _failure(self, device: str, part: Sequence[Widths]) -> Latency | None:
        for widths in dict.fromkeys((self._whole, *part)):
            found = self._log.get(widths, device)
            if widths not in self._spoiled and found is not None and not found.ok:
                return found
        return None

    def _blame_designs(self, step: str, part: Sequence[Widths]) -> None:
        """Give up a design that several devices cannot run which run the unpruned network."""
        # Whoever has stood in by now: the record may tell already what happens later.
        devices = [d for c in self.clusters for d in c.devices[: self._next[c.id] + 1]]
        sound = {d for d in devices if (base := self._log.get(self._whole, d)) and base.ok}
        for widths in part:
            answers = [(d, a) for d in devices if (a := self._log.get(widths, d)) is not None]
            refused = [d for d, a in answers if d in sound and a.error in _MODEL_S]
            alone = not any(answer.ok for _, answer in answers)
            if alone and len(refused) > 1 and widths not in (self._whole, *self._spoiled):
                self._spoiled.add(widths)
                self._reporter.noted(
                    step,
                    f"{', '.join(refused)} cannot run a design ({answers[0][1].detail}): left out",
                )


def _spread(latency: Latency) -> float:
    """Relative standard error of the median over block medians; NaN where unknown."""
    blocks = np.asarray(latency.block_medians_ms, dtype=np.float64)
    if len(blocks) < 2:
        return math.nan
    # A median of n normal values scatters sqrt(pi / 2) times as much as their mean.
    error = float(blocks.std(ddof=1)) * math.sqrt(math.pi / 2 / len(blocks))
    return error / latency.median_ms


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_MAY_BE_NONE = ("energy_mj", "clock_offset_s")


def _latency(data: Mapping[str, Any]) -> Latency:
    known = {field.name for field in fields(Latency)}
    values = {k: v for k, v in data.items() if k in known}
    for name, value in values.items():
        if value is None and name not in _MAY_BE_NONE:
            values[name] = math.nan
    values["block_medians_ms"] = tuple(values.get("block_medians_ms", ()))
    latency = Latency(**values)
    if latency.ok and not latency.median_ms > 0:
        raise ValueError("a latency is a positive number")
    return latency
