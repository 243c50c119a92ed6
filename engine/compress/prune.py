"""Structured pruning by slicing: a design and its groups make a smaller, ordinary network.

    >>> small = prune(model, groups, design)

Many designs of one network are built by one `Pruner`, which finds out once what each needs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.compress.groups import Design, Group, Slice, validate

if TYPE_CHECKING:
    from torch import Tensor, nn


def prune(model: nn.Module, groups: Sequence[Group], design: Design) -> nn.Module:
    """Return a copy of the network with only the design's channels; nothing is traced.

    Args:
        model: the network that the groups were traced from, or one of the same structure.
        groups: what :func:`engine.compress.groups.trace` found.
        design: which channels stay.

    Raises:
        ValueError: the design or the groups do not fit the network.
    """
    validate(groups, design)
    return Pruner(model, groups).copy(design)


def narrow(groups: Sequence[Group], design: Design) -> tuple[Group, ...]:
    """Return the dependency groups of the network that the design makes of theirs."""
    gone = removed(groups, design)
    narrowed = []
    for group, kept in zip(groups, design.kept, strict=True):
        slices = []
        for cut in group.slices:
            lost = np.array(sorted(gone.get(cut.tensor, {}).get(cut.axis, ())), dtype=np.int64)
            index = tuple(
                tuple(entry - int(np.searchsorted(lost, entry)) for entry in cut.index[channel])
                for channel in kept
            )
            slices.append(Slice(cut.tensor, cut.axis, index, cut.reads))
        narrowed.append(Group(group.name, len(kept), tuple(slices)))
    return tuple(narrowed)


class Pruner:
    """Builds pruned networks out of one network, which must not change meanwhile.

    Args:
        model: the network.
        groups: its dependency groups.

    Raises:
        ValueError: the groups are another network's.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self._model, self._groups = model, tuple(groups)
        self._tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._axes = _axes(self._tensors, self._groups)
        self._depthwise = {name for name, m in model.named_modules() if _depthwise(m)}
        self._skeleton: nn.Module | None = None

    def copy(self, design: Design) -> nn.Module:
        """Return a network of its own with only the design's channels.

        Raises:
            ValueError: the design is another network's.
        """
        import torch
        from torch import nn

        memo: dict[int, Any] = {}
        for name, smaller in self._slices(design).items():
            tensor = self._tensors[name]
            smaller = smaller if smaller is not tensor else tensor.detach().clone()
            # A copy that finds a tensor in the memo takes it as it is: the big ones are not copied.
            memo[id(tensor)] = (
                nn.Parameter(smaller, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else smaller
            )
        with torch.no_grad():
            pruned = copy.deepcopy(self._model, memo)
        self._tell_sizes(pruned)
        return pruned

    def reuse(self, design: Design) -> nn.Module:
        """Return a network that is the design's until the next call, and the same object again.

        Several times as fast as a copy, and takes no memory of its own. What is left whole is
        shared with the original: for running it, not for training it.

        Raises:
            ValueError: the design is another network's.
        """
        if self._skeleton is None:
            self._skeleton = copy.deepcopy(self._model).requires_grad_(False)
            skeleton = self._skeleton
            self._places = {**dict(skeleton.named_parameters()), **dict(skeleton.named_buffers())}
        for name, smaller in self._slices(design).items():
            # Whoever refers to the tensor, in whatever way, sees its new data.
            self._places[name].data = smaller.detach()
        self._tell_sizes(self._skeleton)
        return self._skeleton

    def _slices(self, design: Design) -> dict[str, Tensor]:
        """Return all tensors at the design's size; those that keep all are not copied."""
        import torch

        validate(self._groups, design)
        lost = [
            None if len(kept) == group.channels else _complement(kept, group.channels)
            for group, kept in zip(self._groups, design.kept, strict=True)
        ]
        found = dict(self._tensors)
        for axis in self._axes:
            kept = axis.kept(lost)
            if kept is not None:
                index = torch.from_numpy(kept)
                for name, number in axis.tensors:
                    tensor = found[name].detach()
                    found[name] = tensor.index_select(number, index.to(tensor.device))
        return found

    def _tell_sizes(self, pruned: nn.Module) -> None:
        for name, module in pruned.named_modules():
            _tell_sizes(module, name in self._depthwise)


@dataclass
class _Axis:
    """Entries along tensors' axes that all lose the same ones."""

    size: int
    cuts: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]
    """For each group that reaches it: its number, its entries, and the channel of each."""
    tensors: list[tuple[str, int]] = field(default_factory=list)
    """Names of tensors, with the axis."""

    def kept(self, lost: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.int64] | None:
        """Return the entries that stay; None where all do."""
        stays = np.ones(self.size, dtype=bool)
        for group, entries, channels in self.cuts:
            gone = lost[group]
            if gone is not None:
                stays[entries[gone[channels]]] = False
        return None if stays.all() else np.flatnonzero(stays)


def _axes(tensors: dict[str, Tensor], groups: Sequence[Group]) -> list[_Axis]:
    """Find what is cut; tensors that are cut alike stand together."""
    cuts: dict[tuple[str, int], list[tuple[int, tuple[tuple[int, ...], ...]]]] = {}
    for number, group in enumerate(groups):
        for cut in group.slices:
            if cut.tensor not in tensors:
                raise ValueError(
                    f"the network has no {cut.tensor}: the groups are another network's"
                )
            cuts.setdefault((cut.tensor, cut.axis), []).append((number, cut.index))
    alike: dict[Any, _Axis] = {}
    for (name, number), found in cuts.items():
        tensor = tensors[name]
        largest = max((e for _, index in found for entries in index for e in entries), default=-1)
        if number >= tensor.ndim or largest >= tensor.shape[number]:
            raise ValueError(f"{name} is smaller than its group: the groups are another network's")
        key = (tensor.shape[number], tuple(found))
        if key not in alike:
            alike[key] = _Axis(tensor.shape[number], [(g, *_flat(index)) for g, index in found])
        alike[key].tensors.append((name, number))
    return list(alike.values())


def _flat(index: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    entries = np.array([e for entries in index for e in entries], dtype=np.int64)
    return entries, np.repeat(np.arange(len(index)), [len(entries) for entries in index])


def _complement(kept: Sequence[int], channels: int) -> NDArray[np.bool_]:
    gone = np.ones(channels, dtype=bool)
    gone[list(kept)] = False
    return gone


def removed(groups: Sequence[Group], design: Design) -> dict[str, dict[int, set[int]]]:
    """Return, for each tensor and axis that loses something, the entries that go."""
    cuts: dict[str, dict[int, set[int]]] = {}
    for group, kept in zip(groups, design.kept, strict=True):
        if len(kept) == group.channels:
            continue
        gone = sorted(set(range(group.channels)).difference(kept))
        for cut in group.slices:
            entries = cuts.setdefault(cut.tensor, {}).setdefault(cut.axis, set())
            for channel in gone:
                entries.update(cut.index[channel])
    return cuts


def _depthwise(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.modules.conv._ConvNd) and (
        1 < module.groups == module.in_channels == module.out_channels
    )


def _tell_sizes(module: nn.Module, depthwise: bool) -> None:
    """Set a layer's own numbers to the shapes of its tensors."""
    from torch import nn

    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        if depthwise:
            module.groups = module.in_channels = module.out_channels = rows
        elif module.groups == 1:
            inputs, outputs = (rows, columns) if module.transposed else (columns, rows)
            module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        for tensor in (module.running_mean, module.weight):
            if tensor is not None:
                module.num_features = len(tensor)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
