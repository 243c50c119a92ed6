"""How a network is trained to structured sparsity, and which channels a budget keeps.

Plain data and arithmetic; what trains is `engine.compress.sparsify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.compress.groups import Group


@dataclass(frozen=True)
class Sparsity:
    """How many channels stay, and how training gets rid of the others.

    The defaults of `tolerance`, `amplify`, `cap` and `epsilon` are those of the released code of
    OTOv2; its constant penalties (1e-3 with SGD, 1e-2 with AdamW) suit its own numbers of steps
    only, so that `penalty` follows the run unless it is given.
    """

    method: Literal["dhspg", "hesso"] = "dhspg"
    """DHSPG (OTOv2: Chen et al., ICLR 2023) penalises and projects; HESSO (Chen et al. 2024, arXiv
    2409.09085) shrinks in periods and has nothing to tune."""
    kept: float | dict[str, float] = 0.5
    """Share of channels that stay, over all groups together; or one a group by its name, and the
    groups that are not named stay whole. Rounded up to whole channels."""
    multiple: int = 1
    """The kept channels of a group are a multiple of it, or all; the budget is then exceeded by
    less than it. At least one multiple a group stays."""
    warmup: float = 0.1
    """Share of all batches before the first channel is chosen: plain steps."""
    until: float = 0.5
    """Share of the epochs, rounded up, after which the budget is met; the others heal. Only they
    and the last of those before are candidates for the best epoch."""
    tolerance: float = 0.05
    """DHSPG: share of channels that is penalised beyond those that go; with a multiple, none."""
    penalty: float | None = None
    """DHSPG: lambda, by which a penalised channel's norm falls in a step, over the learning rate.
    None: so that it could take `strength` times their mean norm off each until the budget is met,
    which makes it 1 / (learning rate x steps)."""
    strength: float = 8.0
    """DHSPG: see `penalty`."""
    amplify: float | None = None
    """DHSPG: where descent would make a penalised channel grow, the penalty is at least so many
    times what holds it. None: 2 with SGD, 20 with AdamW."""
    cap: float | None = None
    """DHSPG: and at most so many times `penalty`. None: 10 with SGD, 1000 with AdamW."""
    half_space: float = 0.0
    """DHSPG: share of the batches between warm-up and budget before which nothing is projected."""
    epsilon: float = 0.0
    """DHSPG: a channel is projected to zero where it keeps less than this share of itself, 0 (only
    where it turned round) to below 1."""
    periods: int = 10
    """HESSO: periods, each of which chooses its share of the channels and shrinks them to zero."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: something does not; the sentence says what.
        """
        shares = self.kept.values() if isinstance(self.kept, dict) else (self.kept,)
        for name, good in (
            ("method", self.method in ("dhspg", "hesso")),
            ("kept", bool(shares) and all(0 < share <= 1 for share in shares)),
            ("multiple", self.multiple >= 1),
            ("warmup", 0 <= self.warmup < 1),
            ("until", self.warmup < self.until <= 1),
            ("tolerance", 0 <= self.tolerance < 1),
            ("penalty", self.penalty is None or 0 < self.penalty < math.inf),
            ("strength", 0 < self.strength < math.inf),
            ("amplify", self.amplify is None or 1 <= self.amplify < math.inf),
            ("cap", self.cap is None or 1 <= self.cap < math.inf),
            ("half_space", 0 <= self.half_space < 1),
            ("epsilon", 0 <= self.epsilon < 1),
            ("periods", self.periods >= 1),
        ):
            if not good:
                raise ValueError(f"the sparsity's {name} cannot be {getattr(self, name)}")

    def pools(self, groups: Sequence[Group]) -> list[tuple[list[int], int]]:
        """Return the numbers of groups that share a budget, and how many of their channels stay.

        Raises:
            ValueError: a share is for a group that there is not.
        """
        names = [group.name for group in groups]
        if isinstance(self.kept, dict):
            unknown = [name for name in self.kept if name not in names]
            if unknown:
                raise ValueError(f"the sparsity names {unknown[0]}, which is no group to sparsify")
            shares = [([names.index(name)], share) for name, share in self.kept.items()]
        else:
            shares = [(list(range(len(groups))), self.kept)]
        # The small number keeps 10 * 0.7 from becoming 8.
        return [
            (pool, math.ceil(share * sum(groups[g].channels for g in pool) - 1e-9))
            for pool, share in shares
        ]

    def unmet(self, groups: Sequence[Group]) -> list[str]:
        """Tell which budgets are below what has to stay, since no group may lose all of itself.

        Raises:
            ValueError: a share is for a group that there is not.
        """
        said = []
        for pool, count in self.pools(groups):
            channels = [groups[g].channels for g in pool]
            least = sum(min(self.multiple, number) for number in channels)
            # What a multiple adds by itself is known to whoever asks for one.
            if least >= count + self.multiple:
                each = "one" if self.multiple == 1 else f"{self.multiple}, or all"
                said.append(
                    f"the budget cannot be met: {count} of {sum(channels)} channels should stay, "
                    f"but {least} do, since each of {len(pool)} groups keeps {each}"
                )
        return said


def select(
    scores: Sequence[NDArray[np.float64]], count: int, multiple: int = 1
) -> list[NDArray[np.bool_]]:
    """Tell which channels to keep: the best `count` of several groups together.

    Each group keeps a `multiple` of channels or all, and one multiple at least; `count` is exceeded
    by less than a multiple, and by no more than that asks for. The lower number wins where scores
    are equal.

    Args:
        scores: one array a group, higher is better, -inf for a channel that is gone.
        count: channels to keep.
        multiple: of how many channels a block is.
    """
    kept = [np.zeros(len(score), dtype=bool) for score in scores]
    blocks = []
    for number, score in enumerate(scores):
        order = np.argsort(-score, kind="stable")
        for start in range(0, len(score), multiple):
            block = order[start : start + multiple]
            blocks.append((start > 0, -float(score[block].mean()), number, start, block))
    blocks.sort(key=lambda block: block[:4])
    total = 0
    for more, _, number, _, block in blocks:
        if more and total >= count:
            break
        kept[number][block] = True
        total += len(block)
    return kept
