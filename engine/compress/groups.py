"""Dependency groups: which channels of a network can only go together.

One group is one gene of the search. It is found once by tracing (DepGraph, Fang et al. 2023,
arXiv 2301.12900, through torch-pruning) and from then on is plain data over the names of the
network's tensors: it pickles, goes to JSON, and slices any copy of the network without tracing.

    >>> groups = trace(model, torch.rand(1, 3, 32, 32))
    >>> check(model, groups, torch.rand(4, 3, 32, 32))
    >>> design = choose(groups, [0.5] * len(groups), importance(model, groups))
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.compress.designs import Design, Precision, choose, compose, validate, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.compress.prune import Pruner

__all__ = [
    "Design", "Group", "Precision", "Slice", "StaysWhole", "check", "choose", "compose", "faults",
    "from_json", "importance", "to_json", "trace", "validate", "whole",
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """Where the channels of a group lie in one tensor."""

    tensor: str
    """The tensor's name in the state dict."""
    axis: int
    index: tuple[tuple[int, ...], ...]
    """For each channel of the group, the entries along the axis that go with it."""
    reads: bool = False
    """The entries read the channel (a consumer's input axis) rather than make it."""


@dataclass(frozen=True)
class Group:
    """Channels that are coupled through the network and go together."""

    name: str
    """The first layer that makes them."""
    channels: int
    slices: tuple[Slice, ...]


class StaysWhole(UserWarning):
    """A layer's channels are no group, since another layer that they reach cannot be sliced."""

    def __init__(self, layer: str, other: str, kind: str) -> None:
        super().__init__(f"{other} ({kind}) cannot be sliced: the channels of {layer} stay whole")
        self.layer = layer
        self.reason = f"{other}, a {kind}, cannot be sliced"


def to_json(groups: Sequence[Group]) -> str:
    """Return groups as JSON."""
    return json.dumps([asdict(group) for group in groups], separators=(",", ":"))


def from_json(text: str) -> tuple[Group, ...]:
    """Return the groups that `to_json` wrote.

    Raises:
        ValueError: the text holds no groups.
    """
    try:
        return tuple(
            Group(g["name"], g["channels"], tuple(_slice(s) for s in g["slices"]))
            for g in json.loads(text)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not dependency groups: {text[:80]!r}") from error


def _slice(data: dict[str, Any]) -> Slice:
    return Slice(**{**data, "index": tuple(tuple(entries) for entries in data["index"])})


def trace(model: nn.Module, example: Tensor, ignored: Iterable[str] = ()) -> tuple[Group, ...]:
    """Find the dependency groups of a network; it is left exactly as it was.

    The classes (whatever reaches the output) are no group. A group through a layer that cannot
    be sliced is left whole, with a :class:`StaysWhole` warning; so is one through a layer norm,
    whose mean and variance over all channels change with any that goes.

    Args:
        model: the network.
        example: an input, any batch size.
        ignored: names of layers whose groups shall be left whole.

    Raises:
        ValueError: a name in `ignored` is no layer, or the network cannot be traced or has
            nothing to prune.
    """
    import torch
    import torch_pruning
    from torch import nn

    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        # The tracer follows gradients, and does not see what is frozen.
        parameter.requires_grad_(True)
    layers = dict(twin.named_modules())
    unknown = [name for name in ignored if name not in layers]
    if unknown:
        raise ValueError(f"the network has no layer {unknown[0]!r} to ignore")

    def reach_output(out: Any) -> Any:
        # An operation after the last layer makes the tracer mark what reaches the output.
        return [part * 1 for part in torch_pruning.utils.flatten_as_list(out)]

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                twin, example, output_transform=reach_output, verbose=False
            )
            raw = list(
                graph.get_all_groups(
                    ignored_layers=[layers[name] for name in ignored],
                    root_module_types=[nn.modules.conv._ConvNd, nn.Linear],
                )
            )
        except Exception as error:
            # Anybody's network through somebody's tracer: it may raise anything.
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"the network cannot be traced: {first}") from error
    found = [_plain(twin, items) for items in raw]
    notes = [note for note in found if isinstance(note, StaysWhole)]
    for note in notes:
        warnings.warn(note, stacklevel=2)
    groups = [group for group in found if isinstance(group, Group)]
    order = {name: i for i, name in enumerate(layers)}
    groups.sort(key=lambda group: order[group.name])
    if not groups:
        reason = f": {notes[0]}" if notes else ""
        raise ValueError(f"the network has no channels that could be pruned{reason}")
    return tuple(groups)


def _plain(model: nn.Module, items: Any) -> Group | StaysWhole | None:
    """Turn one group of torch-pruning into plain data; None where it reaches the output."""
    from torch import nn

    modules = {id(module): name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[tuple[str, int, bool], dict[int, set[int]]] = {}
    makers: list[str] = []
    channels = len(items[0].idxs)
    for item in items:
        target = item.dep.target
        kind = type(target.module).__name__
        if kind == "_OutputOp":
            return None
        if id(target.module) in parameters:
            cuts = [(parameters[id(target.module)], int(target.pruning_dim), False)]
        elif id(target.module) in modules:
            name = modules[id(target.module)]
            reads = item.dep.handler.__name__ == "prune_in_channels"
            known = _cuts(name, target.module, reads)
            if known is None or any(root is None for root in item.root_idxs):
                return StaysWhole(modules[id(items[0].dep.target.module)], name, kind)
            cuts = known
            if not reads and isinstance(target.module, (nn.modules.conv._ConvNd, nn.Linear)):
                makers.append(name)
        else:
            continue  # an operation without tensors
        for cut in cuts:
            entries = found.setdefault(cut, {})
            for root, entry in zip(item.root_idxs, item.idxs, strict=True):
                entries.setdefault(int(root), set()).add(int(entry))
    rank = {name: i for i, name in enumerate(model.state_dict())}
    slices = sorted(
        (
            Slice(t, axis, tuple(tuple(sorted(e.get(c, ()))) for c in range(channels)), reads)
            for (t, axis, reads), e in found.items()
        ),
        key=lambda s: (rank[s.tensor], s.axis),
    )
    first = min(makers, key=lambda name: rank[f"{name}.weight"])
    return Group(first, channels, tuple(slices))


def _cuts(name: str, module: nn.Module, reads: bool) -> list[tuple[str, int, bool]] | None:
    """Tell which tensors of a layer, along which axis, hold the channels made or read.

    None where nobody knows how to slice the layer.
    """
    from torch import nn

    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    per_channel = [(f"{name}.{key}", 0, False) for key, tensor in own if tensor.ndim == 1]
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels
        if module.groups > 1 and not depthwise:
            return None
        if depthwise and module.groups > 1:
            return [(f"{name}.weight", 0, False), *per_channel]
        if reads:
            return [(f"{name}.weight", 0 if module.transposed else 1, True)]
        return [(f"{name}.weight", 1 if module.transposed else 0, False), *per_channel]
    if isinstance(module, nn.Linear):
        return [(f"{name}.weight", 1, True)] if reads else [
            (f"{name}.weight", 0, False), *per_channel,
        ]  # fmt: skip
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.PReLU)):
        return per_channel
    return None


def faults(
    model: nn.Module, groups: Sequence[Group], example: Tensor, tolerance: float = 1e-4
) -> dict[str, str]:
    """Try each group, and all together, and tell which give a wrong network.

    Every third channel is dropped, once by slicing and once by zeroing what makes it; the two
    networks must answer alike. The weights are shaken first, so that nothing passes because it
    is zero. Returns a sentence for each group at fault.
    """
    import torch

    from engine.compress.prune import Pruner

    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            scale = float(parameter.pow(2).mean().sqrt()) or 1.0
            shake = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(0.1 * scale * shake)
    found: dict[str, str] = {}
    for group in groups:
        try:
            Pruner(twin, [group])
        except ValueError as error:
            found[group.name] = f"the pruned network does not run ({error})"
    if found:
        return found
    pruner = Pruner(twin, groups)

    def broken(names: set[str]) -> str:
        return _fault(twin, pruner, groups, names, example, tolerance)

    for group in groups:
        if group.channels > 1 and (fault := broken({group.name})):
            found[group.name] = fault
    if not found and (fault := broken({group.name for group in groups})):
        found["all groups together"] = fault
    return found


def check(
    model: nn.Module, groups: Sequence[Group], example: Tensor, tolerance: float = 1e-4
) -> None:
    """Guard: refuse groups whose pruned network would not compute what it should.

    Raises:
        ValueError: naming the group, and how far pruned and masked outputs are apart.
    """
    for name, fault in faults(model, groups, example, tolerance).items():
        raise ValueError(f"group {name}: {fault}; leave its layer out with ignored=({name!r},)")


def _fault(
    model: nn.Module,
    pruner: Pruner,
    groups: Sequence[Group],
    names: set[str],
    example: Tensor,
    tolerance: float,
) -> str:
    import torch

    every_third = Design(
        tuple(
            tuple(c for c in range(g.channels) if g.name not in names or c % 3 or g.channels == 1)
            for g in groups
        )
    )
    cut = [group for group in groups if group.name in names and group.channels > 1]
    with torch.no_grad():
        try:
            actual = pruner.reuse(every_third)(example)
            with _masked(model, cut):
                expected = model(example)
        except (RuntimeError, ValueError, IndexError) as error:
            return f"the pruned network does not run ({str(error).splitlines()[0]})"
    if actual.shape != expected.shape:
        return f"the pruned network answers {tuple(actual.shape)}, not {tuple(expected.shape)}"
    apart = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if apart <= tolerance:
        return ""
    return f"pruned and masked outputs differ by {100 * apart:.2g} %"


@contextmanager
def _masked(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Zero what makes every third channel, and put it back at the end."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    whole: dict[str, Tensor] = {}
    for group in groups:
        for cut in group.slices:
            if cut.reads or cut.tensor.endswith(("running_mean", "running_var")):
                continue
            tensor = tensors[cut.tensor]
            whole.setdefault(cut.tensor, tensor.detach().clone())
            entries = [e for c in range(0, group.channels, 3) for e in cut.index[c]]
            tensor.movedim(cut.axis, 0)[entries] = 0
    try:
        yield
    finally:
        for name, tensor in whole.items():
            tensors[name].copy_(tensor)


def importance(
    model: nn.Module, groups: Sequence[Group], norm: int = 2
) -> list[NDArray[np.float64]]:
    """Score each channel of each group by its group magnitude; one array a group.

    The norm over all weights that make or read the channel and over its batch-norm scales
    (biases left out): the group L2 importance of DepGraph (arXiv 2301.12900, section 3.3).
    """
    weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    scores = []
    for group in groups:
        total = np.zeros(group.channels)
        for cut in group.slices:
            if cut.tensor not in weights or cut.tensor.endswith("bias"):
                continue
            power = np.abs(np.moveaxis(weights[cut.tensor], cut.axis, 0)) ** norm
            entries = power.reshape(len(power), -1).sum(1)
            total += [entries[list(index)].sum() for index in cut.index]
        scores.append(total ** (1 / norm))
    return scores
