"""What channel multiples are worth: pruned networks on and off them, on this machine.

    python -m benchmarks.alignment [--network resnet20] [--folder DIR] [--seconds 110]

Random designs of 70 and 40 % of the unpruned network's MACs, each beside two others for every
multiple: one with all widths on the multiple and the same MACs (within 3 %), and its twin, with all
widths rounded up, which keeps every channel and more. Medians over the designs. Measures and keeps
as `benchmarks.surrogates` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.designs import Designs, command_line, in_pieces
from engine.search.space import Space, Widths

MULTIPLES = (4, 8, 16)
SHARES = (0.7, 0.4)
COUNT, CLOSE = 24, 0.03


def design(
    designs: Designs,
    share: float,
    random: np.random.Generator,
    allowed: Callable[[np.ndarray], np.ndarray],
) -> Widths | None:
    """Return a random design with that share of the MACs; None where none was found."""
    channels = np.array(designs.whole)
    whole = float(designs.geometry.macs(designs.whole).sum())
    for _ in range(200):
        shape = random.uniform(0.6, 1.4, len(channels))
        low, high = 0.05, 1.6
        for _ in range(30):
            middle = (low + high) / 2
            widths = allowed(np.clip(channels * middle * shape, 1, channels))
            reached = float(designs.geometry.macs(widths).sum()) / whole
            low, high = (middle, high) if reached < share else (low, middle)
        if abs(reached - share) < CLOSE * share:
            return tuple(int(w) for w in widths)
    return None


def rounded(multiple: int, channels: Widths) -> Callable[[np.ndarray], np.ndarray]:
    """Return what moves widths to the nearest multiple, never to none nor beyond the channels."""
    return lambda widths: np.clip(
        np.rint(widths / multiple) * multiple, multiple, np.maximum(channels, multiple)
    ).astype(int)


def rows(designs: Designs) -> list[str]:
    """Return the table's lines."""
    random, lines = np.random.default_rng(0), []
    space = Space(designs.whole, designs.whole, 1.0)
    for share in SHARES:
        free = [design(designs, share, random, np.rint) for _ in range(COUNT)]
        off = [widths for widths in free if widths is not None]
        slow = designs.ratios(off)
        for multiple in MULTIPLES:
            on = [
                design(designs, share, random, rounded(multiple, designs.whole))
                for _ in range(COUNT)
            ]
            same = [widths for widths in on if widths is not None]
            twins = space.aligned(off, multiple)
            up = designs.ratios(twins) / slow
            added = designs.geometry.macs(twins).sum(1) / designs.geometry.macs(off).sum(1) - 1
            fast = f"{np.median(designs.ratios(same)):.3f}" if len(same) > 2 else "none found"
            lines.append(
                f"| {designs.name} | {100 * share:.0f} % | {multiple} | {np.median(slow):.3f} | "
                f"{fast} | {np.median(up):.2f} | {100 * np.median(added):+.0f} % | "
                f"{100 * (up < 1).mean():.0f} % |"
            )
    return lines


def main() -> None:
    parser = command_line(__doc__, "resnet20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with in_pieces():
        lines = rows(Designs(options.network, options.folder, options.seconds))
    print(
        "| network | MACs | multiple | off it | on it, same MACs | twin by design | its MACs | "
        "faster twins |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
