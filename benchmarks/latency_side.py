"""How much faster networks become here at a given number of multiply-accumulates.

    python -m benchmarks.latency_side [--network resnet50] [--share 0.5] [--folder DIR]
                                      [--seconds 110]

ResNet-50 at 1.0 G multiply-accumulates (MACs) is to be at least 3.5 times as fast as unpruned,
MobileNetV1 at 50 % of its MACs twice (both for pictures of 224 x 224 and 1000 classes). This is the
latency side alone: weights are random, which latency does not see, and nothing is known of
accuracy. So that no stage is simply cut out, each group keeps a tenth of its channels at least
(`--least`); the column "kept" has the smallest and the largest share.

The fastest design is searched among those of 97 to 100 % of the budget, with the search's own
parts: guided designs are measured, a surrogate learns from them, NCS-C searches, its best designs
are measured and learned from, and so on; of the fastest four, measured twice, one is chosen. Genes
give the groups' shares; all of them are scaled until the budget is met, for widths as they are and
on multiples of 4, 8 and 16, and the one predicted fastest is taken. A penalty would spend most
candidates outside so narrow a window, and rounding up alone would leave it. Beside it stands
uniform pruning: the same share of all groups, in whole channels, and in multiples of 16, or of 8 or
4 where 16 does not meet the budget.

Last, all are compared, fp32 with fp32, through ONNX Runtime in turn, with new measurements: those
that the best design was chosen by flatter it. Measures and keeps as `benchmarks.surrogates` does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.alignment import rounded
from benchmarks.designs import Designs, command_line, compare_files, in_pieces
from engine.fleet.surrogates import Surrogate, teaching
from engine.search import sampling
from engine.search.optimisers import make
from engine.search.space import Space, Widths

BUDGETS = {"resnet50": 1e9}
"""MACs; other networks keep half of theirs."""
CLOSE = 0.97
"""Share of the budget that a design uses at least."""
STEPS = (4, 8, 16)
BEST, EXPLORED = 4, 4
"""Searches in each round, whose best designs are measured; other designs near these that teach
most."""
POPULATION = 10

Rounding = Callable[[np.ndarray], np.ndarray]


class Budget:
    """The designs of a network that cost that many MACs, or a little less.

    Args:
        designs: the network.
        macs: how many.
        least: share of its channels that each group keeps.
    """

    def __init__(self, designs: Designs, macs: float, least: float) -> None:
        self.designs, self.macs, self.least = designs, macs, least
        self.space = Space(designs.whole, designs.whole, 1 - least, steps=STEPS)

    def costs(self, widths: Sequence[Widths] | np.ndarray) -> np.ndarray:
        return self.designs.geometry.macs(widths).sum(axis=1)

    def scaled(self, shares: np.ndarray, whole: Rounding) -> np.ndarray:
        """Return shares (n, G) of channels, each row scaled to the most that the budget allows."""
        channels = np.array(self.designs.whole)
        low, high = np.zeros((len(shares), 1)), np.full((len(shares), 1), 1 / self.least)
        for _ in range(20):
            middle = (low + high) / 2
            over = self.costs(whole(middle * shares * channels))[:, None] > self.macs
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        return whole(low * shares * channels)

    def up(self, multiple: int) -> Rounding:
        """Return what makes whole channels, on that multiple and not below the least share."""
        channels, least = np.array(self.designs.whole), np.array(self.space.smallest)
        return lambda widths: np.minimum(
            np.ceil(np.maximum(widths, least) / multiple) * multiple, channels
        ).astype(int)

    def uniform(self, multiple: int) -> Widths | None:
        """Return the same share of all groups; None where the budget is not met."""
        shares = np.ones((1, len(self.designs.whole)))
        widths = self.scaled(shares, rounded(multiple, self.designs.whole))
        return tuple(widths[0].tolist()) if self.met(widths)[0] else None

    def met(self, widths: np.ndarray) -> np.ndarray:
        costs = self.costs(widths)
        return (CLOSE * self.macs <= costs) & (costs <= self.macs)

    def moved(self, surrogate: Surrogate, genes: np.ndarray) -> tuple[list[Widths], np.ndarray]:
        """Return the designs that genes (n, G) stand for, and the logarithms of their latencies.

        One that does not meet the budget has an infinite one.
        """
        ways = np.concatenate([self.scaled(1 - genes, self.up(step)) for step in (1, *STEPS)])
        values = np.where(self.met(ways), np.log(surrogate.predict(ways)), np.inf)
        rows = values.reshape(-1, len(genes)).argmin(axis=0) * len(genes) + np.arange(len(genes))
        return [tuple(row) for row in ways[rows].tolist()], values[rows]

    def genes(self, widths: Sequence[Widths]) -> np.ndarray:
        return np.stack([self.space.genes(w) for w in widths])


def begin(budget: Budget, count: int) -> list[Widths]:
    """Return the designs to begin with: the uniform ones, and guided ones scaled to the budget."""
    even = [budget.uniform(step) for step in (1, *STEPS)]
    found = dict.fromkeys(widths for widths in even if widths is not None)
    drawn = sampling.first(budget.space, count, np.random.default_rng(0), set(), budget.space.reach)
    for number, genes in enumerate(budget.genes(drawn)):
        widths = budget.scaled(1 - genes[None], budget.up((1, *STEPS)[number % 4]))
        if budget.met(widths)[0]:
            found[tuple(widths[0].tolist())] = None
    return list(found)


def search(
    budget: Budget, surrogate: Surrogate, start: np.ndarray, evaluations: int, seed: int
) -> Widths:
    """Return the design that is predicted to be the fastest."""
    optimiser = make(
        "ncs", np.zeros(start.shape[1]), budget.space.upper, evaluations, POPULATION,
        start=start, sigma=0.2, r=0.95, epoch=5, seed=seed,
    )  # fmt: skip
    while not optimiser.done:
        optimiser.tell(budget.moved(surrogate, optimiser.ask())[1])
    return budget.moved(surrogate, optimiser.best[None])[0][0]


def further(
    budget: Budget, known: list[Widths], ratios: np.ndarray, evaluations: int, number: int
) -> list[Widths]:
    """Return what to measure next: the best of some searches, and what teaches near the best."""
    surrogate = Surrogate(budget.designs.geometry, multiple=STEPS[-1]).fit(known, ratios)
    ranked = [known[i] for i in np.argsort(ratios)[: POPULATION // 2]]
    start = budget.genes(ranked)
    seeds = range(number * BEST, (number + 1) * BEST)
    best = [search(budget, surrogate, start, evaluations, seed) for seed in seeds]
    new = [widths for widths in dict.fromkeys(best) if widths not in known]

    def inside(designs: Sequence[Widths]) -> list[Widths]:
        found, values = budget.moved(surrogate, budget.genes(designs))
        return [w for w, value in zip(found, values, strict=True) if np.isfinite(value)]

    random, taken = np.random.default_rng(number), {*known, *new}
    learns = partial(teaching, [surrogate])
    near = new or ranked
    new += sampling.more(budget.space, EXPLORED, random, taken, near, learns, inside)
    report = surrogate.report
    print(
        f"{len(known)} designs, fastest {1 / ratios.min():.2f} times; {report.kind}, "
        f"{report.error.mape:.1f} %, predicts {1 / surrogate.predict(best).min():.2f} times",
        file=sys.stderr,
    )
    return new


def fastest(budget: Budget, counts: tuple[int, int, int], path: Path) -> Widths:
    """Search, or go on with a search, and return the fastest design.

    Args:
        budget: where to search.
        counts: designs measured before the search, candidates of each search, rounds.
        path: what each round asks for is kept there.
    """
    first, evaluations, rounds = counts
    asked = [begin(budget, first)]
    if path.exists():
        asked = [[tuple(widths) for widths in one] for one in json.loads(path.read_text())]
    while True:
        known = [widths for one in asked for widths in one]
        ratios = budget.designs.ratios(known)
        if len(asked) > rounds:
            break
        asked.append(further(budget, known, ratios, evaluations, len(asked)))
        path.write_text(json.dumps(asked))
    # One that only seemed fast is found out by a second measurement.
    best = ratios.argsort()[:BEST]
    again = budget.designs.ratios([known[i] for i in best], repeat=1)
    return known[int(best[(ratios[best] * again).argmin()])]


def rows(budget: Budget, found: Widths) -> list[str]:
    """Return the table's lines."""
    designs = budget.designs
    chosen = {"unpruned": designs.whole, "found": found}
    even = {step: budget.uniform(step) for step in (1, *STEPS)}
    met = {step: widths for step, widths in even.items() if widths is not None}
    for step in sorted({min(met), max(met)} if met else ()):
        chosen["uniform" if step == 1 else f"uniform, multiples of {step}"] = met[step]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(chosen))]
        for path, widths in zip(paths, chosen.values(), strict=True):
            path.write_bytes(designs.file(widths))
        times = [1.0, *compare_files(paths, designs.example.numpy())]
    whole, lines = budget.costs([designs.whole])[0], []
    for (name, widths), faster in zip(chosen.items(), times, strict=True):
        macs, kept = budget.costs([widths])[0], 100 * np.array(widths) / np.array(designs.whole)
        weights = designs.geometry.macs(widths) / designs.geometry.positions
        lines.append(
            f"| {designs.name} | {name} | {macs / 1e9:.3f} G | {100 * macs / whole:.1f} % | "
            f"{weights.sum() / 1e6:.2f} M | {kept.min():.0f} to {kept.max():.0f} % | "
            f"{faster:.2f} |"
        )
    return lines


def main() -> None:
    parser = command_line(__doc__, "resnet50")
    parser.add_argument("--share", type=float, help="of the unpruned network's MACs")
    parser.add_argument("--least", type=float, default=0.1, help="share of channels to keep")
    parser.add_argument("--designs", type=int, default=40, help="measured before the search")
    parser.add_argument("--evaluations", type=int, default=4000, help="candidates of each search")
    parser.add_argument("--rounds", type=int, default=6, help="searches with learning after each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    designs = Designs(options.network, options.folder, options.seconds, classes=1000)
    macs = float(designs.geometry.macs(designs.whole).sum())
    macs = options.share * macs if options.share else BUDGETS.get(options.network, macs / 2)
    budget = Budget(designs, macs, options.least)
    counts = (options.designs, options.evaluations, options.rounds)
    kept = f"{options.network}-{macs / 1e6:.0f}M-{options.least}-{counts[0]}-{counts[1]}.json"
    with in_pieces():
        found = fastest(budget, counts, options.folder / kept)
    print(
        "| network | design | MACs | of the unpruned | weights | kept | times faster |\n"
        "|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows(budget, found)))


if __name__ == "__main__":
    main()
