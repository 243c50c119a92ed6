from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from engine import models
from engine.compress.groups import Design, Group, choose, compose, importance, trace, whole
from engine.compress.prune import Pruner, prune


def _random_design(groups: tuple[Group, ...], seed: int) -> Design:
    rng = np.random.default_rng(seed)
    scores = [rng.random(g.channels) for g in groups]
    return choose(groups, rng.random(len(groups)), scores)


def test_a_pruned_network_equals_the_one_that_torch_pruning_makes(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    design = _random_design(resnet_groups, 3)
    theirs = copy.deepcopy(resnet).requires_grad_(True)
    for group, kept in zip(resnet_groups, design.kept, strict=True):
        graph = torch_pruning.DependencyGraph().build_dependency(theirs, example_inputs=example)
        gone = sorted(set(range(group.channels)).difference(kept))
        if gone:
            layer = theirs.get_submodule(group.name)
            graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, gone).prune()
    mine = prune(resnet, resnet_groups, design)
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with torch.no_grad():
        assert torch.equal(mine(example), theirs.eval()(example))


def test_layers_tell_their_new_sizes(resnet: nn.Module, resnet_groups: tuple[Group, ...]) -> None:
    design = choose(resnet_groups, [0.5] * 12, importance(resnet, resnet_groups))
    small = prune(resnet, resnet_groups, design)
    conv, norm, linear = (
        small.get_submodule(n) for n in ("layer2.0.conv1", "layer2.0.bn1", "linear")
    )
    assert (conv.in_channels, conv.out_channels) == (8, 16)
    assert norm.num_features == 16
    assert (linear.in_features, linear.out_features) == (32, 10)


def test_pruning_nothing_gives_an_equal_but_separate_network(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    twin = prune(resnet, resnet_groups, whole(resnet_groups))
    with torch.no_grad():
        assert torch.equal(twin(example), resnet(example))
        before = resnet.get_parameter("conv1.weight").clone()
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
    assert torch.equal(resnet.get_parameter("conv1.weight"), before)
    own = {t.data_ptr() for t in resnet.state_dict().values()}
    assert own.isdisjoint(t.data_ptr() for t in twin.state_dict().values())


def test_mode_and_frozen_parameters_come_over(
    resnet: nn.Module, resnet_groups: tuple[Group, ...]
) -> None:
    model = copy.deepcopy(resnet).train()
    small = prune(model, resnet_groups, _random_design(resnet_groups, 1))
    assert small.training
    assert not small.get_parameter("layer2.0.shortcut.weight").requires_grad
    assert all(p.requires_grad for n, p in small.named_parameters() if "shortcut" not in n)


def test_a_pruned_network_learns(resnet: nn.Module, resnet_groups: tuple[Group, ...]) -> None:
    small = prune(resnet, resnet_groups, _random_design(resnet_groups, 2)).train()
    small(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


def test_pruning_twice_equals_pruning_once_with_the_composed_design(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    first = _random_design(resnet_groups, 4)
    once = prune(resnet, resnet_groups, first)
    regrouped = trace(once, example)
    second = _random_design(regrouped, 5)
    twice = prune(once, regrouped, second)
    direct = prune(resnet, resnet_groups, compose(first, second))
    for (name, a), b in zip(twice.state_dict().items(), direct.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_concatenated_channels_are_cut_at_their_own_offset() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Conv2d(3, 4, 1)
            self.right = nn.Conv2d(3, 6, 1)
            self.join = nn.Conv2d(10, 5, 1)
            self.linear = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.left(x), self.right(x)], 1).relu()
            logits: Tensor = self.linear(self.join(both).relu().mean((2, 3)))
            return logits

    model, x = Fork(), torch.rand(2, 3, 4, 4)
    groups = trace(model, x)
    right = next(i for i, g in enumerate(groups) if g.name == "right")
    kept = list(whole(groups).kept)
    kept[right] = (1, 5)
    small = prune(model, groups, Design(tuple(kept)))
    assert torch.equal(small.get_parameter("join.weight"), model.join.weight[:, [0, 1, 2, 3, 5, 9]])
    with torch.no_grad():
        for row in (0, 2, 3, 4):
            model.right.weight[row] = 0
            model.right.bias[row] = 0
        assert torch.allclose(small(x), model(x), atol=1e-6)


def test_a_depthwise_convolution_loses_its_groups() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 4, 2)
    )
    x = torch.rand(1, 3, 4, 4)
    groups = trace(model, x)
    small = prune(model, groups, Design(((0, 3, 6),)))
    depthwise = small.get_submodule("1")
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (3, 3, 3)
    assert small(x).shape == (1, 2)


def test_groups_of_another_network_are_refused(
    resnet_groups: tuple[Group, ...], resnet: nn.Module
) -> None:
    design = _random_design(resnet_groups, 6)
    with pytest.raises(ValueError, match="the groups are another network's"):
        prune(nn.Sequential(nn.Conv2d(3, 4, 1)), resnet_groups, design)
    narrow = models.build("resnet20", widths=(4, 8, 16))
    with pytest.raises(ValueError, match="the groups are another network's"):
        prune(narrow, resnet_groups, design)
    with pytest.raises(ValueError, match="made for another network"):
        prune(resnet, resnet_groups[:5], design)


def test_one_pruner_builds_many_networks_alike_and_leaves_the_original(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    pruner = Pruner(resnet, resnet_groups)
    for seed in (1, 2, 3):
        design = _random_design(resnet_groups, seed)
        with torch.no_grad():
            reused = pruner.reuse(design)(example)
            assert torch.equal(reused, prune(resnet, resnet_groups, design)(example))
    with torch.no_grad():
        assert torch.equal(pruner.reuse(whole(resnet_groups))(example), resnet(example))
    assert all(torch.equal(before[n], t) for n, t in resnet.state_dict().items())


def test_a_depthwise_convolution_grows_again_from_a_single_channel() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 4, 2)
    )
    x = torch.rand(1, 3, 4, 4)
    pruner = Pruner(model, trace(model, x))
    for kept in ((5,), (0, 3, 6), tuple(range(8))):
        pruned = pruner.reuse(Design((kept,)))
        assert torch.equal(pruned(x), pruner.copy(Design((kept,)))(x))
    assert torch.equal(pruned(x), model(x))
