"""The search for a precision a layer: what is tried, measured, and learnt from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.compress.bits_policy import Controller
from engine.compress.bits_trial import Record, Reward, Trial
from engine.compress.mixtures import Mixtures, Policy, Precision
from engine.compress.quantize import onnx_accuracy
from engine.events import Reporter


@dataclass(frozen=True)
class Effort:
    """How long to search."""

    rounds: int = 30
    policies: int = 8
    """Mixtures a round; those that are known already cost nothing."""
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: there is nothing to do.
        """
        for name in ("rounds", "policies"):
            if getattr(self, name) < 1:
                raise ValueError(f"the search's {name} are 1 or more, not {getattr(self, name)}")


class Cancelled(Exception):
    """Somebody asked to stop; what was measured is in the record."""


class Search:
    """One search between its measurements; arguments as with `search_precision`.

    Args:
        folder: where mixtures lie while they are measured.
    """

    def __init__(
        self,
        mixtures: Mixtures,
        actions: tuple[Precision, ...],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        latency: Callable[[Path], float],
        reward: Reward,
        record: Record,
        folder: Path,
        reporter: Reporter,
        cancelled: Callable[[], bool],
        step: str,
    ) -> None:
        self.mixtures, self.actions, self.reward = mixtures, actions, reward
        self.images, self.labels, self.latency = images, labels, latency
        self.record, self.folder = record, folder
        self.reporter, self.cancelled, self.step = reporter, cancelled, step
        self.allowed = mixtures.allowed(actions)
        self.trials: dict[Policy, Trial] = {}
        """What this search has looked at, in its order."""

    def run(self, effort: Effort) -> None:
        """Look at the uniform mixtures, then at what the controller asks for.

        Raises:
            Cancelled: somebody asked to stop.
            ValueError: a latency is no positive number.
        """
        known = len(self.record)
        if known:
            self.reporter.noted(self.step, f"what comes of {known} mixtures is known already")
        for precision in self.actions:
            trial = self.look(self.mixtures.uniform(precision))
            if trial is not None:
                self.reporter.noted(
                    self.step,
                    f"all in {precision}: {trial.accuracy:.2%} right, {trial.latency_ms:.3g} ms, "
                    f"{trial.bytes / 1000:.0f} kB",
                )
        controller = Controller(
            self.mixtures.features(self.errors()),
            len(self.actions),
            self.allowed,
            seed=effort.seed,
        )
        for number in range(1, effort.rounds + 1):
            self.round(number, controller, effort.policies)
        self.look(self.policy(controller.likeliest))

    def round(self, number: int, controller: Controller, count: int) -> None:
        """Have the controller learn from a few mixtures."""
        rows, rewards = controller.ask(count), np.full(count, -math.inf)
        for i, row in enumerate(rows):
            trial = self.look(self.policy(row))
            if trial is not None:
                # What is rewarded is what was executed.
                rows[i] = [self.actions.index(precision) for precision in trial.policy]
                rewards[i] = self.reward.of(trial, self.whole)
        controller.tell(rows, rewards)
        self.reporter.advanced(self.step, number)
        if np.isfinite(rewards).any():
            mean = float(rewards[np.isfinite(rewards)].mean())
            self.reporter.scored(self.step, "reward", number, mean)
        self.reporter.scored(self.step, "best reward", number, self.best[1])
        self.reporter.scored(self.step, "uncertainty", number, controller.uncertainty)

    def look(self, policy: Policy) -> Trial | None:
        """Return what is measured of a mixture, by now or already; None where it cannot be had."""
        if not self.record.has(policy):
            self.measure(policy)
        trial = self.record.trial(policy)
        if trial is None or not self.fits(trial.policy):
            return None
        return self.trials.setdefault(trial.policy, trial)

    def measure(self, policy: Policy) -> None:
        """Write a mixture, see what runs, measure that where it is new, and save it all."""
        if self.cancelled():
            raise Cancelled
        path = self.folder / "mixture.onnx"
        try:
            file, runs = self.mixtures.write(path, policy)
        except ValueError as error:
            self.reporter.noted(self.step, f"a mixture cannot be had: {error}")
            self.record.add(policy, None)
            return
        if runs != policy:
            self.reporter.noted(self.step, self.otherwise(policy, runs))
        trial = self.record.trial(runs) if self.record.has(runs) else None
        if trial is None:
            accuracy = onnx_accuracy(path, self.images, self.labels)
            trial = Trial(runs, accuracy, self.time(path), file.bytes, file.digest)
        self.record.add(policy, trial)

    def time(self, path: Path) -> float:
        """Return a file's latency in milliseconds."""
        if self.cancelled():
            raise Cancelled
        found = float(self.latency(path))
        if not 0 < found < math.inf:
            if self.cancelled():
                raise Cancelled
            raise ValueError(f"a latency is a positive number of milliseconds, not {found}")
        return found

    def errors(self) -> list[list[float]]:
        """Return what each layer's precisions do alone, (layers, actions)."""
        known = self.record.errors(self.actions)
        if known is None:
            if self.cancelled():
                raise Cancelled
            known = self.mixtures.errors(self.images, self.actions)
            self.record.add_errors(self.actions, known)
        return known

    def policy(self, row: NDArray[np.int64]) -> Policy:
        """Return the policy of the controller's actions."""
        return tuple(self.actions[action] for action in row)

    def fits(self, policy: Policy) -> bool:
        """Tell whether the controller knows all of a policy's actions as allowed."""
        return all(
            precision in self.actions and self.allowed[layer, self.actions.index(precision)]
            for layer, precision in enumerate(policy)
        )

    def otherwise(self, asked: Policy, runs: Policy) -> str:
        """Say in what a mixture is executed otherwise than asked for."""
        layers = zip(self.mixtures.layers, asked, runs, strict=True)
        changed = [f"{layer.name} in {ran} for {was}" for layer, was, ran in layers if was != ran]
        return f"ONNX Runtime runs otherwise than asked, and is believed: {', '.join(changed)}"

    @property
    def whole(self) -> Trial:
        """The float network."""
        return self.trials[self.mixtures.uniform("fp32")]

    @property
    def best(self) -> tuple[Trial, float]:
        """The best that was measured, and its reward; the first of equals."""
        rewards = {t: self.reward.of(t, self.whole) for t in self.trials.values()}
        trial = max(rewards, key=lambda t: rewards[t])
        return trial, rewards[trial]
