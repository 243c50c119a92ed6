"""The search of one outer iteration: candidates are scored, the best ones measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.events import Reporter
from engine.fleet.surrogates import teaching
from engine.search import sampling
from engine.search.candidates import Accuracies
from engine.search.learning import Fleet
from engine.search.measurements import Cancelled, Measurements
from engine.search.objective import Fitness
from engine.search.optimisers import make
from engine.search.settings import Settings
from engine.search.space import Space, Widths

Array = NDArray[np.float64]
_EQUAL = 1 + 1e-9
"""Factor below which two predictions are the same."""
GAIN = 0.005
"""A design that is faster by less, relative to the unpruned network, is no gain."""


@dataclass(frozen=True)
class Found:
    """The best candidate, and what it was chosen by."""

    widths: Widths
    accuracy: float
    """Relative to the start of the outer iteration, before fine-tuning."""
    fleet: Fleet
    """What was known of the fleet in the end."""


class Search:
    """Searches one outer iteration's box; deterministic, given measurements and accuracies.

    Args:
        space: the box.
        accuracies: estimates candidates.
        measurements: measures the best ones.
        learn: fits the surrogates to all that has been measured, given those of before.
        settings: how to search.
        reporter: hears of it.
        cancelled: asked before each population.
        number: which outer iteration it is, from 1.
        name: makes a step's name from its kind.
        known: candidates to begin with: their genes, and the share of accuracy that they keep.
    """

    def __init__(
        self,
        space: Space,
        accuracies: Accuracies,
        measurements: Measurements,
        learn: Callable[[Fleet | None], Fleet],
        settings: Settings,
        reporter: Reporter,
        cancelled: Callable[[], bool],
        number: int,
        name: Callable[[str], str],
        known: Mapping[Widths, tuple[Array, float]] | None = None,
    ) -> None:
        self.space, self.accuracies, self._measurements = space, accuracies, measurements
        self._learn, self._settings, self._number = learn, settings, number
        self._reporter, self._cancelled, self._name = reporter, cancelled, name
        self._genes = {widths: genes for widths, (genes, _) in (known or {}).items()}
        self._kept = {widths: kept for widths, (_, kept) in (known or {}).items()}
        self._scored = 0
        self._fitness = Fitness(settings.alpha, settings.penalty)
        self._reference = 0.0
        self.seconds = 0.0
        """What all its evaluations are expected to take."""
        self.fleet: Fleet | None = None
        """What is known of the fleet in the end."""

    def run(self) -> Found | None:
        """Search; return None where nothing is faster than the network already is.

        Raises:
            Cancelled: somebody asked to stop.
            ValueError: the network has no accuracy to lose, or no device can be measured.
        """
        settings, now = self._settings, self.space.now
        self._reference = float(self.accuracies([now])[0])
        if not self._reference:
            raise ValueError("the network classifies none of the training images rightly")
        fleet = self._learn(None)
        step = self._name("search")
        rounds = settings.refinements + 1
        self.seconds = self.accuracies.seconds(now) * settings.evaluations / settings.workers
        self._reporter.started(step, settings.evaluations, self.seconds)
        self._genes[now], self._kept[now] = np.zeros(len(now)), 1.0
        self._fitness = self._aim(fleet)
        for round_ in range(rounds):
            share = settings.evaluations // rounds
            self._round(fleet, round_, share, step)
            fleet = self._measure_best(fleet, round_)
        self.fleet = fleet
        best = min(self._kept, key=lambda w: (self._value(fleet, w), w))
        self._reporter.finished(step, widths=best, value=self._value(fleet, best))
        if self._latency(fleet, best) > self._latency(fleet, now) - GAIN or not self._good(best):
            return None
        return Found(best, self._kept[best], fleet)

    @property
    def known(self) -> dict[Widths, tuple[Array, float]]:
        """The candidates so far: their genes, and the share of accuracy that they keep."""
        return {widths: (self._genes[widths], kept) for widths, kept in self._kept.items()}

    def _aim(self, fleet: Fleet) -> Fitness:
        """Return what this outer iteration goes for.

        A latency is approached by equal factors over the outer iterations that are left, as far
        as the box lets it.
        """
        settings = self._settings
        goal = target(settings, fleet, self.space.channels)
        if settings.constraint == "accuracy" or goal is None:
            return Fitness(settings.alpha, settings.penalty)
        now, least = (
            float(fleet.value([w])[0] / fleet.value([self.space.channels])[0])
            for w in (self.space.now, self.space.smallest)
        )
        left = settings.outer_iterations - self._number + 1
        step = now * (min(goal, now) / now) ** (1 / left)
        return Fitness(settings.alpha, settings.penalty, max(step, least))

    def _good(self, widths: Widths) -> bool:
        """Whether a candidate keeps enough accuracy for this outer iteration."""
        return self._fitness.latency is not None or (
            self._settings.penalty == "add" or self._kept[widths] >= self._settings.alpha
        )

    def _round(self, fleet: Fleet, round_: int, evaluations: int, step: str) -> None:
        """Score that many candidates, beginning at the best ones known."""
        settings, space = self._settings, self.space
        size = len(space.now)
        whole = fleet.value([space.channels])[0]
        seed = np.random.SeedSequence([settings.seed, self._number, round_, 1])
        search = make(
            settings.optimiser,
            np.zeros(size),
            space.upper,
            evaluations,
            settings.at_once,
            start=self._start(fleet),
            sigma=settings.sigma,
            r=settings.r,
            epoch=settings.epoch,
            seed=int(seed.generate_state(1)[0]),
        )
        while not search.done:
            if self._cancelled():
                raise Cancelled
            genes = search.ask()
            designs = self._moved(fleet, space.widths(genes))
            kept = self.accuracies(designs) / self._reference
            latency = fleet.value(designs) / whole
            both = search.objectives == 2
            search.tell(
                np.column_stack([latency, 1 - kept]) if both else self._fitness(latency, kept)
            )
            for widths, row, share in zip(designs, genes, kept, strict=True):
                self._genes.setdefault(widths, row)
                self._kept[widths] = float(share)
            self._scored += len(designs)
            self._tell(step, fleet, self._moved(fleet, space.widths(search.best))[0])

    def _start(self, fleet: Fleet) -> Array:
        """Individual 0 starts at zero; after the first round others start at the best known."""
        half = max(1, self._settings.at_once // 2)
        best = self._ranked(fleet)[: half if self._scored else 1]
        return np.stack([self._genes[w] for w in best])

    def _ranked(self, fleet: Fleet) -> list[Widths]:
        """All candidates so far by predicted value, the best first."""
        designs = list(self._kept)
        kept = np.array([self._kept[w] for w in designs])
        whole = fleet.value([self.space.channels])[0]
        values = self._fitness(fleet.value(designs) / whole, kept)
        return [designs[i] for i in np.argsort(values, kind="stable")]

    def _measure_best(self, fleet: Fleet, round_: int) -> Fleet:
        """Measure the best candidates that have not been measured, and learn from them.

        Where another round follows, so are designs near them that would teach it most.
        """
        settings, step = self._settings, self._name("refine")
        ranked = [w for w in self._ranked(fleet) if self._good(w)]
        best = [w for w in ranked if fleet.settled_value(w) is None][: settings.finalists]
        best += self._beside(fleet, best)
        new = list(best)
        if round_ < settings.refinements and settings.sampling == "guided" and ranked:
            taken = {w for call in self._measurements.asked for w in call} | set(new)
            random = np.random.default_rng([settings.seed, self._number, round_, 2])
            new += sampling.more(
                self.space,
                settings.explored,
                random,
                taken,
                ranked[: settings.at_once],
                partial(teaching, fleet.surrogates),
                partial(self._moved, fleet),
            )
        if not new:
            return fleet
        total = len(new) * len(self._measurements.clusters)
        self._reporter.started(step, total, len(new) * settings.measurement_seconds)
        self._measurements.ensure(step, new)
        learned = self._learn(fleet)
        self._reporter.noted(step, _verdict(fleet, learned, best))
        self._reporter.finished(step)
        return learned

    def _moved(self, fleet: Fleet, designs: Sequence[Widths]) -> list[Widths]:
        """Return each design, or a twin of it on the devices' multiples, predicted to be faster.

        A twin keeps no channel less, so wherever it is faster it is the better one.
        """
        steps = self.space.steps
        if not steps:
            return list(designs)
        choices = [*designs, *(w for step in steps for w in self.space.aligned(designs, step))]
        values = fleet.value(choices).reshape(1 + len(steps), len(designs))
        # Trees often predict the same of a design and its twin, up to a last digit that depends on
        # what is asked together; the first of equals is chosen, whatever company it is in.
        first = (values <= _EQUAL * values.min(axis=0)).argmax(axis=0)
        return [choices[k * len(designs) + i] for i, k in enumerate(first)]

    def _beside(self, fleet: Fleet, designs: Sequence[Widths]) -> list[Widths]:
        """Return the counterparts of designs, as candidates: what they were before they were
        rounded up, else their fastest twins by prediction. The measurement decides."""
        found: dict[Widths, None] = {}
        for widths in designs:
            origin = self.space.widths(self._genes[widths])[0]
            twins = [origin] if origin != widths else self.space.twins(widths)
            if twins:
                found[twins[int(fleet.value(twins).argmin())]] = None
        new = [w for w in found if w not in designs and fleet.settled_value(w) is None]
        kept = self.accuracies(new) / self._reference
        for widths, share in zip(new, kept, strict=True):
            self._genes.setdefault(widths, self.space.genes(widths))
            self._kept[widths] = float(share)
        return new

    def _value(self, fleet: Fleet, widths: Widths) -> float:
        """What a candidate is worth, by its measured latency where there is one."""
        latency = self._latency(fleet, widths)
        if not np.isfinite(latency):
            return np.inf
        return float(self._fitness(np.array([latency]), np.array([self._kept[widths]]))[0])

    def _latency(self, fleet: Fleet, widths: Widths) -> float:
        """Relative to the unpruned network, as measured, else as predicted.

        Where candidates have been measured, those that have not are not to be chosen. Clusters
        that are lost count by prediction.
        """
        measured, whole = fleet.settled_value(widths), fleet.settled_value(self.space.channels)
        if measured is not None and whole is not None:
            return measured / whole
        if self._settings.finalists and whole is not None and widths != self.space.now:
            return np.inf
        return float(fleet.value([widths])[0] / fleet.value([self.space.channels])[0])

    def _tell(self, step: str, fleet: Fleet, best: Widths) -> None:
        self._reporter.advanced(step, self._scored)
        latency = float(fleet.value([best])[0])
        self._reporter.scored(step, "best predicted latency (ms)", self._scored, latency)
        kept = self._kept[best] * self._reference
        self._reporter.scored(step, "accuracy before fine-tuning", self._scored, kept)


def target(settings: Settings, fleet: Fleet, whole: Widths) -> float | None:
    """Return the latency to reach, relative to the unpruned network; None where there is none."""
    if settings.target_latency_ms is None:
        return None if settings.target_speedup is None else 1 / settings.target_speedup
    before = fleet.measured_value(whole)
    if before is None:
        before = float(fleet.value([whole])[0])
    return settings.target_latency_ms / before


def _verdict(before: Fleet, after: Fleet, designs: Sequence[Widths]) -> str:
    """Say how well the best designs had been predicted."""
    looked = Fleet(
        before.geometry, before.clusters, before.surrogates, before.latency, after.tables
    )
    if before.clusters != after.clusters:
        return "a cluster was lost while the best designs were measured"
    measured = [w for w in designs if after.settled_value(w) is not None]
    if not measured:
        return "none of the best designs could be measured"
    return (
        f"measured the {len(measured)} best designs: predictions were off by "
        f"{looked.miss(measured).mape:.1f} %"
    )
