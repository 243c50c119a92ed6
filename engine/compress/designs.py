"""Designs: a pruned network as data.

A design says which channels of each dependency group stay, and in which precision the network
runs. It rebuilds the same network anywhere, and names it by a stable key.

    >>> design = choose(groups, [0.5] * len(groups), importance(model, groups))
    >>> Design.from_json(design.to_json()) == design
    True
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.compress.groups import Group

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class Design:
    """A pruned network as data: which channels of each group are kept, and the precision."""

    kept: tuple[tuple[int, ...], ...]
    """One rising tuple of channel numbers a group, in the order of the groups."""
    precision: Precision = "fp32"

    @property
    def widths(self) -> tuple[int, ...]:
        """How many channels each group keeps."""
        return tuple(len(channels) for channels in self.kept)

    def key(self) -> str:
        """Return a short hash that is the same on every machine and in every process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the design as canonical JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Design:
        """Return the design that `to_json` wrote.

        Raises:
            ValueError: the text is no design.
        """
        try:
            data = json.loads(text)
            kept = tuple(tuple(int(c) for c in channels) for channels in data["kept"])
            precision = data.get("precision", "fp32")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a design: {text[:80]!r}") from error
        if precision not in ("fp32", "int8"):
            raise ValueError(f"a design is fp32 or int8, not {precision!r}")
        return cls(kept, precision)


def whole(groups: Sequence[Group], precision: Precision = "fp32") -> Design:
    """Return the design that keeps every channel."""
    return Design(tuple(tuple(range(group.channels)) for group in groups), precision)


def validate(groups: Sequence[Group], design: Design) -> None:
    """Refuse a design that is not one of these groups.

    Raises:
        ValueError: the number of groups differs, or a group's channels are empty, out of range
            or out of order.
    """
    if len(design.kept) != len(groups):
        raise ValueError(
            f"the design has {len(design.kept)} groups and the network {len(groups)}: "
            "it was made for another network"
        )
    for group, kept in zip(groups, design.kept, strict=True):
        if not kept:
            raise ValueError(f"group {group.name}: at least one channel must stay")
        if kept[0] < 0 or kept[-1] >= group.channels or any(np.diff(kept) <= 0):
            raise ValueError(
                f"group {group.name}: kept channels must be rising numbers from 0 to "
                f"{group.channels - 1}"
            )


def compose(first: Design, second: Design) -> Design:
    """Return, in the original network's channel numbers, `second` applied after `first`.

    Raises:
        ValueError: `second` was not made for the network that `first` makes.
    """
    if len(first.kept) != len(second.kept) or any(
        later and later[-1] >= len(earlier)
        for earlier, later in zip(first.kept, second.kept, strict=True)
    ):
        raise ValueError("the second design was not made for the network that the first one makes")
    kept = tuple(
        tuple(earlier[c] for c in later)
        for earlier, later in zip(first.kept, second.kept, strict=True)
    )
    return Design(kept, second.precision)


def choose(
    groups: Sequence[Group],
    ratios: Sequence[float] | NDArray[np.float64],
    scores: Sequence[NDArray[np.float64]],
    multiple: int = 1,
    minimum: int = 1,
    precision: Precision = "fp32",
) -> Design:
    """Turn the fraction to remove from each group into a design.

    What stays is rounded up to the `multiple`, is never fewer than `minimum` (at least one) nor
    more than there are; the channels with the highest scores stay, the lower number first where
    scores are equal.

    Raises:
        ValueError: there is not one ratio between 0 and 1 a group.
    """
    if len(ratios) != len(groups) or len(scores) != len(groups):
        raise ValueError(f"{len(ratios)} ratios and {len(scores)} scores for {len(groups)} groups")
    kept = []
    for group, ratio, score in zip(groups, ratios, scores, strict=True):
        if not 0 <= ratio <= 1:  # refuses NaN as well
            raise ValueError(f"group {group.name}: the ratio must lie between 0 and 1, not {ratio}")
        # The small number keeps 10 * (1 - 0.7) from becoming 4.
        wanted = math.ceil(group.channels * (1 - ratio) / multiple - 1e-9) * multiple
        count = min(group.channels, max(wanted, minimum, 1))
        best = np.argsort(-score, kind="stable")[:count]
        kept.append(tuple(sorted(int(c) for c in best)))
    return Design(tuple(kept), precision)
