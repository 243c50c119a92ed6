"""Precision layer by layer, learnt by policy gradient from what was measured.

    >>> chosen = search_precision(source, target, calibration, images, labels, time_it)

A controller (:mod:`engine.compress.bits_policy`) draws mixtures of precisions; each is written,
read back as it is executed (:mod:`engine.compress.mixtures`), and measured: accuracy here, latency
by whoever knows the devices, bytes from the file. The controller learns from the reward; what is
returned is the best of all that was measured, the float network and the uniform ones among them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.compress.bits_search import Cancelled, Effort, Search
from engine.compress.bits_trial import Record, Reward, Trial
from engine.compress.calibrate import PERCENTILE, Method
from engine.compress.export import Exported, write_file
from engine.compress.mixtures import Layer, Mixtures, Policy, Precision, check_precisions
from engine.compress.presets import Isa, Preset
from engine.events import Reporter, silent

__all__ = ["Choice", "Chosen", "Effort", "Reward", "Trial", "search_precision"]


@dataclass(frozen=True)
class Choice:
    """One layer's row of the table."""

    layer: Layer
    precision: Precision
    errors: Mapping[Precision, float]
    """How much it disturbs the logits when it alone has a precision, by precision: the power of
    the error relative to that of the logits. Only of those that it can have alone."""
    why: str
    """Its size and sensitivity in words. The choice itself is the whole mixture's, by reward."""


@dataclass(frozen=True)
class Chosen:
    """The best network that was measured."""

    file: Exported
    trial: Trial
    """What was measured of it."""
    reward: float
    layers: tuple[Choice, ...]
    uniform: Mapping[Precision, Trial]
    """What was measured with one precision in all layers that can have it."""
    rewards: Mapping[Precision, float]
    """What those were worth; that of "fp32" is 0."""
    tried: int
    """Different networks that were looked at, these among them."""


def search_precision(
    source: str | Path,
    target: str | Path,
    calibration: NDArray[np.uint8],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    latency: Callable[[Path], float],
    *,
    actions: Sequence[Precision] = ("fp32", "int8"),
    reward: Reward | None = None,
    effort: Effort | None = None,
    preset: Isa | Preset = "x86-vnni",
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    batch: int | None = None,
    record: Path | None = None,
    reporter: Reporter | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    step: str = "precision",
    weight: float = 1.0,
) -> Chosen | None:
    """Find a precision for each layer, and write the network that was best when measured.

    Every measurement is saved before it is used. Started again with the same record, the search
    takes the same way, measures only what is not there, and ends in the same network.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        target: the file to write, replaced only when all went well.
        calibration: images (N, C, H, W) uint8 for the ranges of int8.
        images: other images, by which accuracy is judged.
        labels: their classes (N,).
        latency: times an ONNX file; returns milliseconds. The file is gone when it has returned.
            Each mixture is timed once, and what comes back is believed: where clocks drift between
            two calls, time a reference in turns with the file, and give the file's in its units.
        actions: the precisions to choose from, "fp32" among them.
        reward: what is wanted.
        effort: how long to search, and the seed.
        preset: for which instruction set.
        method: how the ranges follow from the calibration images.
        percentile: with the method "percentile".
        batch: calibration images a pass; None as the method needs.
        record: the file of measurements, of one network, one set of images and one `latency`;
            other actions, rewards and efforts may share it.
        reporter: hears of each round, with the curves "reward" (the round's mean), "best reward"
            and "uncertainty" (of the policy, 1 to 0).
        cancelled: asked before each measurement.
        step: the step's name in the events.
        weight: its expected seconds, for the events.

    Returns:
        The best network; None where the search was cancelled, and no file is written then.

    Raises:
        ValueError: the source or the images are such as cannot be quantized or judged, an argument
            makes no sense, the record is of something else, or a latency is no positive number.
    """
    reward, effort = reward or Reward(), effort or Effort()
    reward.check()
    effort.check()
    check_precisions(actions)
    if "fp32" not in actions or len(set(actions)) < max(2, len(actions)):
        raise ValueError(
            "the precisions to choose from are fp32 and at least one other, each once, not "
            f"{', '.join(actions) or 'none'}"
        )
    if not len(images):
        raise ValueError("accuracy needs images, and there are none")
    reporter = reporter or silent()
    reporter.started(step, total=effort.rounds, weight=weight)
    mixtures = Mixtures(source, calibration, preset, method, percentile, batch)
    digest = hashlib.sha256(mixtures.fingerprint.encode())
    for array in (images, labels):
        digest.update(array.tobytes())
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            mixtures, tuple(actions), images, labels, latency, reward,
            Record(record, digest.hexdigest()), Path(folder), reporter, cancelled, step,
        )  # fmt: skip
        try:
            search.run(effort)
        except Cancelled:
            return None
        return _chosen(search, Path(target))


def _chosen(search: Search, target: Path) -> Chosen:
    """Write the best, and say what it is."""
    trial, reward = search.best
    written, _ = search.mixtures.write(search.folder / "best.onnx", trial.policy)
    if written.digest != trial.digest:
        raise ValueError(
            "the best network cannot be written as it was measured: remove the record to begin anew"
        )
    file = write_file(written.path.read_bytes(), target)
    found = {p: search.trials.get(search.mixtures.uniform(p)) for p in search.actions}
    uniform = {p: trial for p, trial in found.items() if trial is not None}
    search.reporter.finished(
        search.step,
        reward=reward,
        accuracy=trial.accuracy,
        latency_ms=trial.latency_ms,
        bytes=trial.bytes,
        tried=len(search.trials),
    )
    return Chosen(
        file=file,
        trial=trial,
        reward=reward,
        layers=_choices(search, trial.policy),
        uniform=uniform,
        rewards={p: search.reward.of(trial, search.whole) for p, trial in uniform.items()},
        tried=len(search.trials),
    )


def _choices(search: Search, policy: Policy) -> tuple[Choice, ...]:
    """Return the table of a mixture."""
    layers = search.mixtures.layers
    weights, macs = (
        max(1, sum(getattr(layer, name) for layer in layers)) for name in ("weights", "macs")
    )
    choices = []
    for layer, precision, row in zip(layers, policy, search.errors(), strict=True):
        errors = {name: error for name, error in zip(search.actions, row, strict=True) if error}
        why = [f"{layer.weights / weights:.1%} of the weights",
               f"{layer.macs / macs:.1%} of the multiply-accumulates",
               *(f"alone in {p} an error of {e:.2g}" for p, e in errors.items())]  # fmt: skip
        choices.append(Choice(layer, precision, errors, ", ".join(why)))
    return tuple(choices)
