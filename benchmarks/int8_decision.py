"""Float or int8, decided from two probes on devices never seen: how often right, how much faster.

    python -m benchmarks.int8_decision [--data ../shared/data/ncnn_bench] [--rows cpu]

ncnn's public table of real devices. Each device is left out whole: no row of it, nor of another
board with its chip, is learned from. On each of its rows any two networks that were measured
in both precisions are the probes once, and decide for the networks that are not. All methods
are scored on the same cells. "Speed-up" is that of the precision chosen, over float: the geometric
mean, and the arithmetic one beside it. Intervals are 95 % bootstrap intervals over devices.

"Ours, validated" has its settings, and the second and third table their probes, chosen by
validation on other devices: there are five blocks of devices, and for each the choice is made on
the other four, again with whole devices left out. "Ours" has the settings that are built in; those
were found with all of these devices in view, so the validated row is the one to compare.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.fleet.precision import Int8Benefit, Pair, Settings

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Probes = tuple[int, ...]
Mask = NDArray[np.bool_]
Predict = Callable[["Table", Rows, Rows, Sequence[Probes]], Array]
"""Expected log speed-ups (probes, tested rows, networks), learned from the first rows."""

NCNN = Path(__file__).resolve().parents[2] / "shared" / "data" / "ncnn_bench"
CHIPS = {
    "rk3399": "rk3399",
    "kunpeng 920": "kunpeng 920",
    "bcm2837": "bcm2837",
    "bcm2710": "bcm2837",
}
"""What several boards of the table are built on; the BCM2710 is a BCM2837 in another package."""
BLOCKS, FOLDS, DRAWS = 5, 5, 10_000
GRID = [
    Settings(scale=scale, reach=reach, strength=strength, latencies=latencies)
    for scale, reach, strength, latencies in product(
        (0.4, 100.0), (0.5, 100.0), (1.0, 4.0), (True, False)
    )
]
"""With a scale of 100 speed-ups are not compressed, with such a reach all devices count alike."""


@dataclass(frozen=True)
class Table:
    """What was measured, configurations of devices by networks in both precisions."""

    networks: tuple[str, ...]
    device: Rows
    """Number of each row's device (n,)."""
    float_ms: Array
    int8_ms: Array
    error: Array
    """How far the means lie above the fastest runs: about the relative error of a speed-up."""
    log_speedup: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_speedup", np.log(self.float_ms / self.int8_ms))

    def pairs(self, row: int) -> dict[str, Pair]:
        """Return what was measured in both precisions."""
        return {
            name: Pair(float_ms=self.float_ms[row, j], int8_ms=self.int8_ms[row, j],
                       error=self.error[row, j])
            for j, name in enumerate(self.networks) if np.isfinite(self.log_speedup[row, j])
        }  # fmt: skip


def load(data: Path, cpu: bool = True) -> Table:
    """Read ncnn's table; of GPUs only on request."""
    with np.load(data / "ncnn_bench.npz") as file:
        names = [str(name) for name in file["models"]]
        networks = tuple(name for name in names if f"{name}_int8" in names)
        in_float = [names.index(name) for name in networks]
        in_int8 = [names.index(f"{name}_int8") for name in networks]
        mean, least = (np.asarray(file[key], float) for key in ("avg_ms", "min_ms"))
        keep = np.isfinite(mean[:, in_float] / mean[:, in_int8]).any(axis=1)
        if cpu:
            keep &= file["gpu_device"] == -1
        chips = [
            next((chip for word, chip in CHIPS.items() if word in str(device).lower()), str(device))
            for device in file["device"][keep]
        ]
    above = np.log(mean / least)[keep]
    return Table(
        networks,
        np.unique(chips, return_inverse=True)[1],
        mean[keep][:, in_float],
        mean[keep][:, in_int8],
        np.hypot(above[:, in_float], above[:, in_int8]),
    )


def ours(settings: Settings) -> Predict:
    """Return the predictor with these settings."""

    def predict(table: Table, known: Rows, tested: Rows, probes: Sequence[Probes]) -> Array:
        counts = np.bincount(table.device)
        fitted = Int8Benefit(settings).fit(
            [table.pairs(row) for row in known],
            table.networks,
            [1 / counts[table.device[row]] for row in known],
        )
        found = np.full((len(probes), len(tested), len(table.networks)), np.nan)
        for i, row in enumerate(tested):
            pairs = table.pairs(row)
            for k, two in enumerate(probes):
                names = [table.networks[j] for j in two]
                if all(name in pairs for name in names):
                    said = fitted.given({name: pairs[name] for name in names}).benefits
                    found[k, i] = [said[name].mean for name in table.networks]
        return found

    return predict


def regression(latencies: bool) -> Predict:
    """Return least squares, network by network, on the probes' log speed-ups.

    Args:
        latencies: the probes' log float latencies are used, too.
    """

    def predict(table: Table, known: Rows, tested: Rows, probes: Sequence[Probes]) -> Array:
        found = np.full((len(probes), len(tested), len(table.networks)), np.nan)
        for k, two in enumerate(probes):
            inputs = [np.ones((len(table.device), 1)), table.log_speedup[:, two]]
            if latencies:
                inputs.append(np.log(table.float_ms[:, two]))
            x = np.hstack(inputs)
            usable = known[np.isfinite(x[known]).all(axis=1)]
            for j in range(len(table.networks)):
                learn = usable[np.isfinite(table.log_speedup[usable, j])]
                weights = np.linalg.lstsq(x[learn], table.log_speedup[learn, j], rcond=None)[0]
                found[k, :, j] = x[tested] @ weights
        return found

    return predict


def sign(table: Table, _known: Rows, tested: Rows, probes: Sequence[Probes]) -> Array:
    """Return the probes' mean log speed-up for every network."""
    means = [table.log_speedup[tested][:, two].mean(axis=1) for two in probes]
    return np.repeat(np.array(means)[:, :, None], len(table.networks), axis=2)


def left_out(predict: Predict, table: Table, probes: Sequence[Probes]) -> Array:
    """Return predictions for all rows, each device's by the others."""
    found = np.full((len(probes), *table.log_speedup.shape), np.nan)
    for device in np.unique(table.device):
        tested = np.flatnonzero(table.device == device)
        known = np.flatnonzero(table.device != device)
        found[:, tested] = predict(table, known, tested, probes)
    return found


def scored(table: Table, probes: Sequence[Probes]) -> Mask:
    """Return the cells that count (probes, rows, networks)."""
    measured: Mask = np.isfinite(table.log_speedup)
    cells: Mask = np.repeat(measured[None], len(probes), axis=0)
    for k, two in enumerate(probes):
        cells[k, ~measured[:, two].all(axis=1)] = False
        cells[k, :, two] = False
    return cells


def lost(table: Table, predicted: Array, cells: Mask) -> Array:
    """Return what the decisions with each probe lose against perfect ones, in log speed-up."""
    wrong = cells & ((predicted > 0) != (table.log_speedup > 0))
    return np.asarray(np.where(wrong, abs(table.log_speedup), 0.0).sum(axis=(1, 2)))


def blocks(table: Table, count: int, seed: int, among: Rows | None = None) -> Iterator[Rows]:
    """Deal devices into so many blocks."""
    devices = np.unique(table.device) if among is None else among
    yield from np.array_split(np.random.default_rng(seed).permutation(devices), count)


def validated(predict: Predict, table: Table, devices: Rows, probes: Sequence[Probes]) -> Array:
    """Return what a decision with each probe loses, with devices left out in turn among these."""
    rows = np.isin(table.device, devices)
    losses = np.zeros(len(probes))
    cells = scored(table, probes) & rows[:, None]
    for fold in blocks(table, FOLDS, 1, devices):
        held = np.isin(table.device, fold)
        known, tested = np.flatnonzero(rows & ~held), np.flatnonzero(held)
        part = np.full(cells.shape, np.nan)
        part[:, tested] = predict(table, known, tested, probes)
        losses += lost(table, part, cells & held[:, None])
    return np.asarray(losses / cells.sum(axis=(1, 2)))


@dataclass(frozen=True)
class Choice:
    """What validation chose for one block of devices, of which it saw none."""

    rows: Rows
    settings: Settings
    by_regression: int
    """Which probes, by what the regression loses with them,"""
    by_ours: int
    """and by what ours does."""


def choose(table: Table, probes: Sequence[Probes]) -> list[Choice]:
    """Choose settings and probes for each block of devices on the other blocks."""
    choices = []
    for block in blocks(table, BLOCKS, 0):
        others = np.setdiff1d(table.device, block)
        losses = [validated(ours(settings), table, others, probes) for settings in GRID]
        best = int(np.argmin([loss.sum() for loss in losses]))
        plain = validated(regression(False), table, others, probes)
        rows = np.flatnonzero(np.isin(table.device, block))
        choices.append(Choice(rows, GRID[best], int(plain.argmin()), int(losses[best].argmin())))
    return choices


def methods(table: Table, probes: Sequence[Probes], choices: Sequence[Choice]) -> dict[str, Array]:
    """Return the predictions of each method for devices that it did not learn from."""
    shape = (len(probes), *table.log_speedup.shape)
    found = {
        "always float": np.full(shape, -1.0),
        "always int8": np.full(shape, 1.0),
        "sign of the probes": left_out(sign, table, probes),
        "regression on the probes": left_out(regression(False), table, probes),
        "regression, float latencies too": left_out(regression(True), table, probes),
    }
    by_settings = {
        settings: left_out(ours(settings), table, probes)
        for settings in dict.fromkeys([Settings(), *(choice.settings for choice in choices)])
    }
    if choices:
        mixed = np.empty_like(by_settings[Settings()])
        for choice in choices:
            mixed[:, choice.rows] = by_settings[choice.settings][:, choice.rows]
        found["ours, validated"] = mixed
    found["ours"] = by_settings[Settings()]
    found["perfect choice"] = np.repeat(table.log_speedup[None], len(probes), axis=0)
    return found


@dataclass(frozen=True)
class Score:
    """Sums over the cells of each device (d,)."""

    right: Array
    gained: Array
    """Log speed-up of what was chosen."""
    factor: Array
    """Speed-up of what was chosen."""
    cells: Array

    def shares(self, draws: Rows | None = None) -> Array:
        """Return the share of right decisions, geometric and arithmetic mean of the speed-up.

        Args:
            draws: devices of each bootstrap sample (n, d); all devices where not given.
        """
        sums = np.array([self.right, self.gained, self.factor, self.cells])
        right, gained, factor, cells = (sums if draws is None else sums[:, draws]).sum(axis=-1)
        return np.array([right / cells, np.exp(gained / cells), factor / cells])


def score(table: Table, predicted: Array, cells: Mask) -> Score:
    """Return how good the decisions are; int8 is chosen where its log speed-up is above 0."""
    chosen = np.where(predicted > 0, table.log_speedup, 0.0)
    right = (predicted > 0) == (table.log_speedup > 0)

    def summed(values: Array | Mask) -> Array:
        by_row = np.where(cells, values, 0.0).sum(axis=(0, 2))
        return np.bincount(table.device, by_row).astype(np.float64)

    return Score(summed(right), summed(chosen), summed(np.exp(chosen)), summed(cells))


def report(table: Table, found: dict[str, Array], cells: Mask) -> str:
    """Return the scores as a Markdown table, with how much better ours is than each."""
    scores = {name: score(table, predicted, cells) for name, predicted in found.items()}
    devices = len(scores["ours"].cells)
    draws = np.random.default_rng(0).integers(0, devices, (DRAWS, devices))
    # A sample in which nothing was scored says nothing.
    draws = draws[scores["ours"].cells[draws].sum(axis=1) > 0]
    best = "ours, validated" if "ours, validated" in scores else "ours"
    lines = [
        f"| method | right | speed-up | arithmetic | {best}: more right | {best}: faster |",
        "|---" * 6 + "|",
    ]
    for name, one in scores.items():
        right, geometric, arithmetic = one.shares()
        apart = scores[best].shares(draws) - one.shares(draws)
        low, high = np.percentile(apart[:2], (2.5, 97.5), axis=1)
        more = scores[best].shares() - one.shares()
        cells_ = ["-", "-"] if name == best else [
            f"{100 * more[0]:+.1f} points ({100 * low[0]:+.1f} to {100 * high[0]:+.1f})",
            f"{more[1]:+.4f} ({low[1]:+.4f} to {high[1]:+.4f})",
        ]  # fmt: skip
        said = [name, f"{right:.1%}", f"{geometric:.4f}x", f"{arithmetic:.4f}x", *cells_]
        lines.append("| " + " | ".join(said) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=NCNN)
    parser.add_argument("--rows", choices=("cpu", "all"), default="cpu")
    parser.add_argument("--probes", type=int, default=2, help="how many are measured")
    options = parser.parse_args()
    table = load(options.data, options.rows == "cpu")
    probes = list(combinations(range(len(table.networks)), options.probes))
    choices = choose(table, probes)
    found, cells = methods(table, probes, choices), scored(table, probes)
    print(
        f"{len(table.device)} configurations of {len(np.unique(table.device))} devices, "
        f"{len(table.networks)} networks, {len(probes)} sets of probes, {cells.sum()} decisions\n"
    )
    print(report(table, found, cells))
    for name in ("by_regression", "by_ours"):
        chosen = np.zeros_like(cells)
        for choice in choices:
            chosen[getattr(choice, name), choice.rows] = True
        pairs = [" and ".join(table.networks[j] for j in probes[getattr(choice, name)])
                 for choice in choices]  # fmt: skip
        print(f"\nProbes chosen {name.replace('_', ' ')}: {'; '.join(dict.fromkeys(pairs))}\n")
        print(report(table, found, cells & chosen))
    print("\nSettings chosen, by block:")
    for choice in choices:
        print(f"- {choice.settings}")


if __name__ == "__main__":
    main()
