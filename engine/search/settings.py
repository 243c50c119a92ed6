"""The settings of a search."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from engine.compress.recipe import Recipe
from engine.fleet.surrogates import Kind as Regression
from engine.search.executors import Kind as Executor
from engine.search.objective import Constraint, Objective, Penalty, Weighting
from engine.search.optimisers import LEAST, Kind, suited
from engine.search.sampling import Sampling

PerCluster = Literal["auto", "never", "always"]
EXPORT_SECONDS = 6.0
"""What exporting a network for the first time takes."""


@dataclass(frozen=True)
class Settings:
    """How to search. The defaults are the paper's where it has one."""

    outer_iterations: int = 10
    """Rounds of search, prune and fine-tune, at most."""
    evaluations: int = 1000
    """Candidates scored in one outer iteration."""
    population: int = 0
    """Candidates proposed at once; 0: what suits the optimiser (HDAP: 10)."""
    sigma: float = 0.3
    """First step size, as a share of the genes' range (HDAP: 0.25)."""
    r: float = 0.9
    """Factor of the step size (HDAP: 0.95)."""
    epoch: int = 5
    optimiser: Kind = "de"
    """What proposes candidates: see `optimisers.make`."""
    objective: Objective = "mean"
    """What of the fleet's latency counts: the mean over its devices, what 95 % of them stay
    within, or the slowest."""
    weighting: Weighting = "size"
    """Whether a cluster counts by its devices, or all alike as in the authors' code."""
    constraint: Constraint = "accuracy"
    """What must be kept to: the accuracy (`alpha`, `maximum_drop`), and the network is as fast as
    that allows; the latency (`target_speedup` or `target_latency_ms`), and it is as accurate as
    that allows; or both."""
    alpha: float = 0.9
    """Share of the accuracy that a candidate must keep, before fine-tuning."""
    penalty: Penalty = "replace"
    """What becomes of a candidate that does not keep to it: see `objective.Fitness`."""
    max_extra_pruning: float = 0.2
    """Largest share of a group's original channels that one outer iteration removes."""
    channel_multiple: int = 1
    """Kept channels are rounded up to it."""
    minimum_channels: int = 1
    norm: int = 2
    """Of the group magnitude by which channels are chosen."""
    maximum_drop: float = 1.0
    """Points of accuracy (selection split) that the result may lose against the original."""
    target_speedup: float | None = None
    """Speed-up of the objective at which to stop; None: as fast as it gets."""
    target_latency_ms: float | None = None
    """The same as a latency."""
    accuracy_images: int = 512
    """Training images on which candidates are compared."""
    reestimate: bool = True
    """Normalise candidates by the images that they are compared on; False, as the authors' code,
    keeps the unpruned network's statistics, which ranks pruned networks far worse."""
    samples: int = 60
    """Designs measured on every representative before the first search."""
    resamples: int = 9
    """The same before each later one."""
    explored: int = 6
    """Designs near the best ones, those that teach the surrogates most, measured where a search
    stops to go on."""
    sampling: Sampling = "guided"
    """How designs to learn from are chosen; "uniform": the paper's, without those near the best."""
    refinements: int = 1
    """How often a search stops to measure its best designs, and goes on with what that taught."""
    finalists: int = 3
    """Designs measured at each of these stops and at the end, where the fastest one wins."""
    batch: int = 12
    """Designs handed over for measuring at once."""
    measurement_seconds: float = 1.0
    """Expected time to measure a design on all representatives, for the progress."""
    epoch_seconds: float = 5.0
    """Expected time of an epoch of fine-tuning, for the progress."""
    surrogate: Regression = "auto"
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=60, schedule="step"))
    """Fine-tuning after each outer iteration."""
    per_cluster: PerCluster = "auto"
    """Whether each cluster gets a network of its own: see `fleetwide`."""
    per_cluster_gain: float = 10.0
    """By how many per cent the fleet must be predicted to be faster for "auto" to do so."""
    workers: int = 1
    """Candidates scored at once, each on one thread."""
    executor: Executor = "processes"
    """Where candidates are scored, if more than one at once: see `executors.opened`."""
    scheduler: str = ""
    """Address of the dask scheduler, for the executor "dask"."""
    seed: int = 0

    def __post_init__(self) -> None:
        least, few = self.at_once * (1 + self.refinements), LEAST.get(self.optimiser, 1)
        for name, good, bound in (
            ("outer_iterations", self.outer_iterations >= 1, "at least 1"),
            (
                "population",
                self.population == 0 or self.population >= few,
                f'at least {few} with the optimiser "{self.optimiser}", or 0',
            ),
            ("evaluations", self.evaluations >= least, f"at least {least}"),
            ("sigma", self.sigma > 0, "more than 0"),
            ("alpha", 0 < self.alpha <= 1, "more than 0, at most 1"),
            ("max_extra_pruning", 0 < self.max_extra_pruning <= 1, "more than 0, at most 1"),
            ("channel_multiple", self.channel_multiple >= 1, "at least 1"),
            ("maximum_drop", self.maximum_drop >= 0, "at least 0"),
            ("accuracy_images", self.accuracy_images >= 2, "at least 2"),
            ("samples", self.samples >= 10, "at least 10"),
            ("resamples", self.resamples >= 0, "at least 0"),
            ("explored", self.explored >= 0, "at least 0"),
            ("refinements", self.refinements >= 0, "at least 0"),
            ("finalists", self.finalists >= 0, "at least 0"),
            ("batch", self.batch >= 1, "at least 1"),
            ("workers", self.workers >= 1, "at least 1"),
            (
                "target_speedup",
                self.target_speedup is None or self.target_speedup > 1,
                "more than 1",
            ),
            (
                "target_latency_ms",
                self.target_latency_ms is None or self.target_latency_ms > 0,
                "more than 0",
            ),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {bound}")
        if self.constraint != "accuracy" and not (self.target_speedup or self.target_latency_ms):
            raise ValueError(
                f'the constraint "{self.constraint}" needs a target_speedup or a target_latency_ms'
            )

    @property
    def at_once(self) -> int:
        """Candidates proposed at once."""
        return self.population or suited(
            self.optimiser, self.evaluations // max(1, 1 + self.refinements)
        )

    def expected_seconds(self, clusters: int, evaluation_seconds: float = 0.15) -> float:
        """Return about how long a search over that many clusters takes, were none to end early.

        `evaluation_seconds` is what a candidate's accuracy takes on one thread.
        """
        first, later = self.samples + 1, self.resamples * (self.outer_iterations - 1)
        stops = self.finalists * (self.refinements + 1) * self.outer_iterations
        each = self.evaluations * evaluation_seconds / self.workers + 1.5 * clusters
        each += self.recipe.epochs * self.epoch_seconds
        explored = self.explored * self.refinements * self.outer_iterations
        measured = (first + later + stops + explored) * self.measurement_seconds
        return measured + EXPORT_SECONDS + each * self.outer_iterations

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings that `to_json` wrote.

        Raises:
            ValueError: the text is no such settings.
        """
        try:
            data = json.loads(text)
            return cls(**{**data, "recipe": Recipe(**data["recipe"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a search's settings: {error}") from error
