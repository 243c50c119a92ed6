"""Pruned networks widened for training: channels of zeros fill the processor's blocks.

Processors train in blocks of channels, in bfloat16 above all: a network with widths off the
blocks takes up to twice the time of the unpruned one (docs/results.md). A channel whose numbers
are all zero adds nothing to any other, so the widened network computes what the pruned one does
and learns the same, as long as they stay zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.compress.designs import Design
from engine.compress.groups import Group
from engine.compress.prune import narrow, prune

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Zeros:
    """Entries along one axis of a tensor that are to stay zero."""

    tensor: str
    """The tensor's name in the state dict."""
    axis: int
    entries: tuple[int, ...]


@dataclass(frozen=True)
class Padded:
    """A pruned network with channels of zeros."""

    network: nn.Module
    zeros: tuple[Zeros, ...]
    """What has to stay zero in it."""
    groups: tuple[Group, ...]
    design: Design
    """Which of its channels are those of the pruned network."""

    def strip(self) -> nn.Module:
        """Return the pruned network, as it is now, without the channels of zeros."""
        return prune(self.network, self.groups, self.design)


def pad(
    pruned: nn.Module,
    original: nn.Module,
    groups: Sequence[Group],
    design: Design,
    multiple: int,
) -> Padded:
    """Widen a pruned network to multiples of channels, never beyond the original's widths.

    Args:
        pruned: the network; it is left as it was.
        original: the network that it was cut from, whose form is used and no number.
        groups: the original's dependency groups, each of which may be zeroed in place of being
            removed (see `groups.faults`).
        design: which of the original's channels the pruned network has.
        multiple: what widths are rounded up to.

    Raises:
        ValueError: the design is another network's.
    """
    import torch

    wide, inner = _widened(groups, design, multiple)
    network = prune(original, groups, wide)
    widened = narrow(groups, wide)
    zeros = tuple(_zeros(widened, inner))
    lost: dict[str, dict[int, set[int]]] = {}
    for zero in zeros:
        lost.setdefault(zero.tensor, {}).setdefault(zero.axis, set()).update(zero.entries)
    numbers = pruned.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            _fill(tensor, numbers[name], lost.get(name, {}))
    return Padded(network.train(pruned.training), zeros, widened, inner)


def _widened(groups: Sequence[Group], design: Design, multiple: int) -> tuple[Design, Design]:
    """Return the design with channels added, and which of its channels were there before."""
    wide, inner = [], []
    for group, kept in zip(groups, design.kept, strict=True):
        width = min(-(-len(kept) // multiple) * multiple, group.channels)
        others = (c for c in range(group.channels) if c not in set(kept))
        added = [next(others) for _ in range(width - len(kept))]
        channels = sorted((*kept, *added))
        wide.append(tuple(channels))
        inner.append(tuple(channels.index(c) for c in kept))
    return Design(tuple(wide), design.precision), Design(tuple(inner), design.precision)


def _zeros(groups: Sequence[Group], inner: Design) -> Iterable[Zeros]:
    for group, kept in zip(groups, inner.kept, strict=True):
        added = [c for c in range(group.channels) if c not in set(kept)]
        for cut in group.slices if added else ():
            entries = tuple(entry for channel in added for entry in cut.index[channel])
            yield Zeros(cut.tensor, cut.axis, entries)


def _fill(wide: Tensor, numbers: Tensor, lost: dict[int, set[int]]) -> None:
    """Put the numbers where they belong, and zeros everywhere else."""
    if not lost:
        wide.copy_(numbers)
        return
    import torch

    kept = [
        torch.from_numpy(np.array([e for e in range(size) if e not in lost.get(axis, ())]))
        for axis, size in enumerate(wide.shape)
    ]
    wide.zero_()
    wide[torch.meshgrid(*kept, indexing="ij")] = numbers
