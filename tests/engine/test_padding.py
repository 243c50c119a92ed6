"""Widened networks: they compute and learn what the pruned ones do."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine import data, models
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import Design, Group, choose, compose, trace
from engine.compress.padding import Padded, pad
from engine.compress.prune import narrow, prune


def random_design(groups: tuple[Group, ...], seed: int) -> Design:
    rng = np.random.default_rng(seed)
    return choose(groups, rng.random(len(groups)), [rng.random(g.channels) for g in groups])


def zeros_hold(padded: Padded) -> bool:
    numbers = padded.network.state_dict()
    return all(
        not numbers[zero.tensor].index_select(zero.axis, torch.tensor(zero.entries)).any()
        for zero in padded.zeros
    )


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv1-cifar", "vgg16"])
def test_a_widened_network_computes_the_same_in_training_as_well(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(name).eval()
    example = torch.rand(4, 3, 32, 32)
    groups = trace(network, example)
    design = random_design(groups, 1)
    pruned = prune(network, groups, design)
    padded = pad(pruned, network, groups, design, 16)
    assert padded.zeros
    assert zeros_hold(padded)
    for training in (False, True):
        with torch.no_grad():
            mine, theirs = (n.train(training)(example) for n in (pruned, padded.network))
        if not training or name != "vgg16":  # which drops numbers at random
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)


def test_widths_are_rounded_up_but_never_beyond_the_original(
    resnet: nn.Module, resnet_groups: tuple[Group, ...]
) -> None:
    design = random_design(resnet_groups, 2)
    pruned = prune(resnet, resnet_groups, design)
    padded = pad(pruned, resnet, resnet_groups, design, 24)
    expected = [
        min(-(-width // 24) * 24, group.channels)
        for width, group in zip(design.widths, resnet_groups, strict=True)
    ]
    assert [group.channels for group in padded.groups] == expected
    same = pad(pruned, resnet, resnet_groups, design, 1)
    assert not same.zeros
    assert same.network.state_dict().keys() == pruned.state_dict().keys()


def test_stripped_it_is_the_pruned_network_again_after_two_rounds_of_pruning(
    resnet: nn.Module, resnet_groups: tuple[Group, ...]
) -> None:
    first = random_design(resnet_groups, 3)
    once, groups = prune(resnet, resnet_groups, first), narrow(resnet_groups, first)
    second = random_design(groups, 4)
    with torch.no_grad():  # fine-tuned, so that its numbers are no longer the original's
        for parameter in once.parameters():
            parameter.mul_(1.5)
    twice = prune(once, groups, second)
    padded = pad(twice, resnet, resnet_groups, compose(first, second), 16)
    assert padded.zeros
    stripped = padded.strip().state_dict()
    for name, tensor in twice.state_dict().items():
        assert torch.equal(stripped[name], tensor), name


def test_it_learns_what_the_pruned_network_learns_and_its_zeros_stay(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    whole = data.load("digits")
    digits = replace(
        whole,
        train_images=whole.train_images[:256, :, ::2, ::2].copy(),
        train_labels=whole.train_labels[:256],
        selection_images=whole.selection_images[:, :, ::2, ::2].copy(),
    )
    design = random_design(resnet_groups, 5)
    pruned = prune(resnet, resnet_groups, design)
    recipe = Recipe(epochs=1, lr=0.01, batch=64)
    padded = pad(pruned, resnet, resnet_groups, design, 16)
    widened = copy.deepcopy(padded.network)
    finetune(padded.network, digits, recipe, zeros=padded.zeros)
    assert zeros_hold(padded)
    assert not torch.equal(*(n.get_parameter("conv1.weight") for n in (padded.network, widened)))
    finetune(pruned, digits, recipe)
    stripped = padded.strip()
    with torch.no_grad():
        torch.testing.assert_close(padded.network(example), stripped(example))
        torch.testing.assert_close(stripped(example), pruned(example), rtol=0.01, atol=0.01)
