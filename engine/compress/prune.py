"""Structured pruning by slicing: a design and its groups make a smaller, ordinary network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.compress.groups import Design, Group, validate

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
    import torch
    from torch import nn

    validate(groups, design)
    cuts = removed(groups, design)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    memo: dict[int, Any] = {}
    for name, tensor in tensors.items():
        smaller = _without(name, tensor.detach(), cuts.pop(name, {}))
        # A copy that finds a tensor in the memo takes it as it is: the big ones are not copied.
        memo[id(tensor)] = (
            nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else smaller
        )
    if cuts:
        raise ValueError(f"the network has no {next(iter(cuts))}: the groups are another network's")
    with torch.no_grad():
        pruned = copy.deepcopy(model, memo)
    for module in pruned.modules():
        _tell_sizes(module)
    return pruned


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


def _without(name: str, tensor: Tensor, cuts: dict[int, set[int]]) -> Tensor:
    """Return a copy of the tensor without those entries."""
    import torch

    if not cuts:
        return tensor.clone()
    for axis, gone in cuts.items():
        if axis >= tensor.ndim or max(gone) >= tensor.shape[axis]:
            raise ValueError(f"{name} is smaller than its group: the groups are another network's")
        kept = torch.tensor([i for i in range(tensor.shape[axis]) if i not in gone])
        tensor = tensor.index_select(axis, kept)
    return tensor


def _tell_sizes(module: nn.Module) -> None:
    """Set a layer's own numbers to the shapes of its tensors."""
    from torch import nn

    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
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
