"""The weights that make each channel of some dependency groups: OTO's zero-invariant groups.

x_g is all that makes channel g, over all layers of its group (rows of convolutions and linear
layers, depthwise filters, biases, batch norms' scales and shifts), not what reads it. Where all of
x_g is zero, the channel's output is exactly zero, and the channel can go (Chen et al., *Only
Train Once*, NeurIPS 2021; OTOv2, ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.compress.groups import Group


@dataclass(frozen=True)
class _Rows:
    """Entries along one axis of a tensor, each of which belongs to a channel."""

    tensor: Tensor
    axis: int
    entries: Tensor
    owners: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum of each entry over the other axes, for values shaped as the tensor."""
        rows = values.movedim(self.axis, 0)
        return rows.reshape(len(rows), -1).sum(1)[self.entries]

    def spread(self, channels: Tensor, fill: float) -> Tensor:
        """Return a number a channel (N,) as a factor that broadcasts to the tensor."""
        along = channels.new_full((self.tensor.shape[self.axis],), fill)
        along[self.entries] = channels[self.owners]
        shape = [1] * self.tensor.ndim
        shape[self.axis] = -1
        return along.reshape(shape)


class Channels:
    """All channels of some groups, numbered from 0 through the groups, in one network's weights.

    What is frozen, such as a parameter-free shortcut written as a convolution, is no part of x_g,
    but shrinks and goes to zero with it; so does the running mean of a batch norm.

    Args:
        model: the network, on the device where it stays.
        groups: some of its dependency groups.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        found: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        self.count = 0
        for group in groups:
            for cut in group.slices:
                if cut.reads or cut.tensor.endswith("running_var"):
                    continue
                entries, owners = found.setdefault((cut.tensor, cut.axis), ([], []))
                for channel, index in enumerate(cut.index):
                    entries += index
                    owners += [self.count + channel] * len(index)
            self.count += group.channels
        self._made: list[_Rows] = []
        self._learnt: list[_Rows] = []
        for (name, axis), (entries, owners) in found.items():
            tensor = tensors[name]
            places = [torch.tensor(a, device=tensor.device) for a in (entries, owners)]
            rows = _Rows(tensor.detach(), axis, *places)
            self._made.append(rows)
            if tensor.requires_grad:
                self._learnt.append(rows)
        self.device = self._made[0].tensor.device
        ones = [torch.ones_like(rows.tensor) for rows in self._learnt]
        self.sizes = self._sum(ones).clamp_min(1)
        """Weights that are learnt, a channel: |x_g|."""

    def weights(self) -> list[Tensor]:
        """Return the learnt tensors themselves; they share memory with the network's."""
        return [rows.tensor for rows in self._learnt]

    def dot(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the inner product of each channel (N,) in two lists shaped as `weights()`."""
        return self._sum([x * y for x, y in zip(a, b, strict=True)])

    def subtract(self, values: Sequence[Tensor], factor: Tensor) -> None:
        """Take `factor` (N,) times values, shaped as `weights()`, off the weights."""
        for rows, value in zip(self._learnt, values, strict=True):
            rows.tensor.sub_(value * rows.spread(factor, 0.0))

    def scale(self, factor: Tensor) -> None:
        """Multiply all that makes each channel by its `factor` (N,)."""
        for rows in self._made:
            rows.tensor.mul_(rows.spread(factor, 1.0))

    def zero(self, chosen: Tensor) -> None:
        """Set all that makes the chosen channels, booleans (N,), to exactly zero."""
        for rows in self._made:
            rows.tensor.masked_fill_(rows.spread(chosen, False), 0.0)

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(self.count, device=self.device)
        for rows, value in zip(self._learnt, values, strict=True):
            total.index_add_(0, rows.owners, rows.sums(value))
        return total


def learnt(model: nn.Module, group: Group) -> bool:
    """Tell whether anything that makes the group's channels is learnt."""
    parameters = dict(model.named_parameters())
    return any(
        not cut.reads and cut.tensor in parameters and parameters[cut.tensor].requires_grad
        for cut in group.slices
    )
