"""How well latency is predicted from 25 to 150 measured designs, where the search asks for it.

    python -m benchmarks.surrogates [--network resnet20] [--folder DIR] [--seconds 110]

Measures this machine (see `benchmarks.designs`) and keeps what it measured: where `--seconds` have
passed it ends with status 75, and the next run goes on. The test designs are those that five outer
iterations of the search visit, with an accuracy that is a formula (each group has a price a
channel); none of them is learned from, each is measured twice. The floor is the error of a perfect
prediction against the mean of the two; "repeat" is that of one measurement as a prediction of the
other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.designs import Designs, command_line, in_pieces
from engine.fleet.surrogates import KINDS, Kind, Surrogate, compare_predictions, teaching
from engine.search import sampling
from engine.search.ncs import NCS
from engine.search.space import Space, Widths

COUNTS = (25, 50, 100, 150)
OUTER, REACH, EVALUATIONS, TESTS = 5, 0.2, 400, 20
"""Outer iterations, what each may remove, candidates in each, test designs from each."""

STEPS = (4, 8, 16)
"""What designs may be rounded up to: this machine's convolutions work in blocks of 16."""


@dataclass(frozen=True)
class Visited:
    """Where a search went."""

    incumbents: list[list[Widths]]
    """Of each outer iteration, the best first; the box begins at the best of the one before."""
    tests: list[Widths]


def visited(designs: Designs, path: Path) -> Visited:
    """Search, or read where a search went before."""
    if path.exists():
        data = json.loads(path.read_text())
        return Visited(
            [[tuple(w) for w in one] for one in data["incumbents"]],
            [tuple(w) for w in data["tests"]],
        )
    random = np.random.default_rng(0)
    price = random.gamma(1.0, 1.0, len(designs.whole))
    channels = np.array(designs.whole)
    known: set[Widths] = {designs.whole}
    learned: list[Widths] = []
    incumbents, tests, now = [], [], designs.whole
    for outer in range(OUTER):
        space = Space(designs.whole, now, REACH, steps=STEPS)
        learned += sampling.first(space, 15 if outer else 60, random, known, 0.9)
        surrogate = Surrogate(designs.geometry, "gp", multiple=STEPS[-1]).fit(
            learned, designs.ratios(learned)
        )
        search = NCS(
            np.zeros(len(channels)), space.upper, EVALUATIONS, sigma=0.25, r=0.95, epoch=5,
            start=np.zeros((1, len(channels))), seed=outer,
        )  # fmt: skip
        seen: dict[Widths, float] = {}
        while not search.done:
            widths = moved(space, surrogate, space.widths(search.ask()))
            lost = ((np.array(now) - np.array(widths)) / channels) @ price / price.sum()
            short = np.maximum(0.0, lost - REACH / 3)
            values = np.log(surrogate.predict(widths)) + 20 * short
            search.tell(values)
            seen |= dict(zip(widths, values.tolist(), strict=True))
        best = sorted(seen, key=seen.__getitem__)
        incumbents.append(best[:10])
        late = [w for w in list(seen)[len(seen) // 2 :] if w not in best[:10]]
        picked = random.permutation(len(late))[:TESTS]
        tests += [late[i] for i in picked if late[i] not in known]
        known.update(tests)
        now = best[0]
    path.write_text(json.dumps({"incumbents": incumbents, "tests": tests}))
    return Visited(incumbents, tests)


def moved(space: Space, surrogate: Surrogate, designs: Sequence[Widths]) -> list[Widths]:
    """Return what the search makes of designs: each rounded up where that is predicted faster."""
    ways = zip(*(space.aligned(designs, step) for step in (1, *STEPS)), strict=True)
    return [way[int(surrogate.predict(way).argmin())] for way in ways]


def uniform(designs: Designs, where: Visited) -> list[Widths]:
    """Return HDAP's designs, in the order in which they are measured."""
    space = Space(designs.whole, designs.whole, REACH)
    taken = {designs.whole, *where.tests}
    return sampling.first(space, COUNTS[-1], np.random.default_rng(1), taken, 1.0, "uniform")


def guided(designs: Designs, where: Visited) -> list[Widths]:
    """Return the designs of a search: some before it, then some near each of its incumbents."""
    random, taken = np.random.default_rng(2), {designs.whole, *where.tests}
    whole = Space(designs.whole, designs.whole, REACH, steps=STEPS)
    chosen = sampling.first(whole, COUNTS[0], random, taken, 0.9)
    for before, after in pairwise(COUNTS):
        starts = [designs.whole, *(one[0] for one in where.incumbents)]
        for start, best in zip(starts, where.incumbents, strict=False):
            surrogate = Surrogate(designs.geometry, multiple=STEPS[-1]).fit(
                chosen, designs.ratios(chosen)
            )
            space = Space(designs.whole, start, REACH, steps=STEPS)
            chosen += sampling.more(
                space,
                (after - before) // OUTER,
                random,
                taken,
                best,
                partial(teaching, [surrogate]),
                partial(moved, space, surrogate),
            )
    return chosen


def table(designs: Designs, tests: Sequence[Widths], ways: dict[str, list[Widths]]) -> str:
    """Return the errors on the test designs, as lines of Markdown."""
    one, two = designs.ratios(tests), designs.ratios(tests, repeat=1)
    truth = np.sqrt(one * two)
    floor = float(100 * np.mean(np.abs(one - two) / 2 / truth))
    repeat = compare_predictions(one, two)
    lines = [
        f"{designs.name}: {len(tests)} test designs, {truth.min():.2f} to {truth.max():.2f} of the "
        f"unpruned latency; floor {floor:.2f} %, "
        f"repeat {repeat.mape:.2f} % / {repeat.spearman:.3f}",
        "",
        "| sampling | designs | " + " | ".join((*KINDS, "auto")) + " | auto by floor |",
        "|---" * (len(KINDS) + 4) + "|",
    ]
    for name, chosen in ways.items():
        for count in COUNTS:
            part = chosen[:count]
            latencies = designs.ratios(part)
            cells = []
            kinds: tuple[Kind, ...] = (*KINDS, "auto")
            for kind in kinds:
                surrogate = Surrogate(designs.geometry, kind, multiple=STEPS[-1]).fit(
                    part, latencies
                )
                error = compare_predictions(surrogate.predict(tests), truth)
                cells.append(f"{error.mape:.1f} % / {error.spearman:.3f}")
            cells[-1] += f" ({surrogate.report.kind})"
            row = " | ".join((name, str(count), *cells, f"{error.mape / floor:.2f}"))
            lines.append(f"| {row} |")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, "resnet20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    designs = Designs(options.network, options.folder, options.seconds)
    with in_pieces():
        where = visited(designs, options.folder / f"{options.network}-visited.json")
        designs.ratios(where.tests)
        ways = {"uniform": uniform(designs, where)}
        designs.ratios(ways["uniform"])
        ways["guided"] = guided(designs, where)
        designs.ratios(ways["guided"])
        designs.ratios(where.tests, repeat=1)
    print(table(designs, where.tests, ways))


if __name__ == "__main__":
    main()
