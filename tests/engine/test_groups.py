from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from engine.compress import groups as module
from engine.compress.groups import Design, Group, check, choose, compose, importance, trace, whole


class PaddedShortcut(nn.Module):
    """The published option A, which a dependency graph misreads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        skip = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        logits: Tensor = self.linear(functional.relu(self.conv(x) + skip).mean((2, 3)))
        return logits


class Shuffle(nn.Module):
    """Channel shuffle between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: Tensor = self.linear(functional.relu(self.second(x)).mean((2, 3)))
        return logits


class NormStream(nn.Module):
    """A layer norm over the channels: dropping some changes the statistics of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.norm(self.first(x.flatten(1)[:, :12])))
        return logits


def test_resnet20_has_twelve_groups_in_the_order_of_its_layers(
    resnet_groups: tuple[Group, ...],
) -> None:
    assert [(g.name, g.channels) for g in resnet_groups] == [
        ("conv1", 16), ("layer1.0.conv1", 16), ("layer1.1.conv1", 16), ("layer1.2.conv1", 16),
        ("layer2.0.conv1", 32), ("layer2.0.conv2", 32), ("layer2.1.conv1", 32),
        ("layer2.2.conv1", 32), ("layer3.0.conv1", 64), ("layer3.0.conv2", 64),
        ("layer3.1.conv1", 64), ("layer3.2.conv1", 64),
    ]  # fmt: skip


def test_an_inner_group_holds_all_tensors_of_its_channels(
    resnet_groups: tuple[Group, ...],
) -> None:
    inner = next(g for g in resnet_groups if g.name == "layer2.1.conv1")
    assert {(s.tensor, s.axis, s.reads) for s in inner.slices} == {
        ("layer2.1.conv1.weight", 0, False),
        ("layer2.1.bn1.weight", 0, False),
        ("layer2.1.bn1.bias", 0, False),
        ("layer2.1.bn1.running_mean", 0, False),
        ("layer2.1.bn1.running_var", 0, False),
        ("layer2.1.conv2.weight", 1, True),
    }


def test_the_fixed_shortcut_lies_in_both_streams_that_it_joins(
    resnet_groups: tuple[Group, ...],
) -> None:
    found = {(g.name, s.axis) for g in resnet_groups for s in g.slices if s.tensor == _SHORTCUT}
    assert found == {("conv1", 1), ("layer2.0.conv2", 0)}


_SHORTCUT = "layer2.0.shortcut.weight"


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_network_as_it_was(
    resnet: nn.Module, example: Tensor, training: bool
) -> None:
    model = copy.deepcopy(resnet).train(training)
    model.get_parameter("conv1.weight").requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        assert len(trace(model, example)) == 12
    assert all(m.training == training for m in model.modules())
    assert not model.get_parameter("conv1.weight").requires_grad
    assert model.get_parameter("linear.weight").requires_grad
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_network_has_the_same_groups(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    frozen = copy.deepcopy(resnet).requires_grad_(False)
    assert trace(frozen, example) == resnet_groups


def test_groups_survive_pickle_and_json(resnet_groups: tuple[Group, ...]) -> None:
    assert pickle.loads(pickle.dumps(resnet_groups)) == resnet_groups
    assert module.from_json(module.to_json(resnet_groups)) == resnet_groups
    with pytest.raises(ValueError, match="not dependency groups"):
        module.from_json('[{"name": "conv1"}]')


def test_a_flattened_feature_map_maps_each_channel_to_its_pixels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 3))
    (group,) = trace(model, torch.rand(1, 1, 5, 5))
    (reader,) = (s for s in group.slices if s.reads)
    assert reader.tensor == "2.weight"
    assert reader.index[2] == tuple(range(18, 27))
    check(model, (group,), torch.rand(2, 1, 5, 5))


def test_a_depthwise_convolution_follows_its_pointwise_one() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    groups = trace(model, torch.rand(1, 3, 8, 8))
    assert [(g.name, g.channels) for g in groups] == [("0", 8), ("6", 6)]
    check(model, groups, torch.rand(2, 3, 8, 8))


def test_a_layer_that_cannot_be_sliced_leaves_its_group_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="1 \\(Conv2d\\) cannot be sliced"):
        groups = trace(model, torch.rand(1, 3, 8, 8))
    assert [g.name for g in groups] == ["2"]


def test_the_guard_passes_every_group_of_resnet20(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    check(resnet, resnet_groups, example)


@pytest.mark.parametrize(
    ("model", "culprit"),
    [(PaddedShortcut(), "stem|conv"), (Shuffle(), "first")],
    ids=["padded shortcut", "channel shuffle"],
)
def test_the_guard_refuses_what_prunes_wrongly_and_names_it(model: nn.Module, culprit: str) -> None:
    torch.manual_seed(1)
    x = torch.rand(2, 3, 8, 8)
    groups = trace(model, x)
    with pytest.raises(ValueError, match=rf"group ({culprit}): .* ignored="):
        check(model, groups, x)


def test_what_a_layer_norm_reads_stays_whole() -> None:
    with (
        pytest.warns(UserWarning, match="norm .LayerNorm. cannot be sliced"),
        pytest.raises(ValueError, match=r"no channels that could be pruned: norm .*first stay"),
    ):
        trace(NormStream(), torch.rand(2, 3, 8, 8))


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ValueError, match="the network cannot be traced: "):
        trace(nn.Conv2d(4, 4, 3), torch.rand(1, 3, 8, 8))


def test_the_guard_notices_a_wrong_entry(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    first, *rest = resnet_groups[0].slices
    wrong = module.Slice(first.tensor, first.axis, first.index[1:] + first.index[:1])
    bad = (Group("conv1", 16, (wrong, *rest)), *resnet_groups[1:])
    with pytest.raises(ValueError, match="group conv1: pruned and masked outputs differ"):
        check(resnet, bad, example)


def test_ignored_layers_are_left_out_and_unknown_ones_refused(
    resnet: nn.Module, example: Tensor
) -> None:
    groups = trace(resnet, example, ignored=("layer2.0.conv2", "layer3.1.conv1"))
    assert len(groups) == 10
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        trace(resnet, example, ignored=("layer9",))
    with pytest.raises(ValueError, match="no channels that could be pruned"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2))


def test_importance_ranks_channels_as_torch_pruning_does(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: Tensor
) -> None:
    twin = copy.deepcopy(resnet).requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(twin, example_inputs=example)
    scorer = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    scores = importance(resnet, resnet_groups)
    for group, score in zip(resnet_groups, scores, strict=True):
        layer = twin.get_submodule(group.name)
        peer = graph.get_pruning_group(
            layer, torch_pruning.prune_conv_out_channels, list(range(group.channels))
        )
        theirs = scorer(peer).numpy()
        mine = score**2 / theirs
        assert np.allclose(mine, mine[0], rtol=1e-4)


def test_choosing_keeps_the_best_channels_rounded_up_to_the_multiple() -> None:
    groups = [Group("a", 16, ()), Group("b", 10, ())]
    scores = [np.arange(16.0), np.arange(10.0)[::-1]]
    design = choose(groups, [0.5, 0.7], scores)
    assert design.kept == (tuple(range(8, 16)), (0, 1, 2))
    assert choose(groups, [0.7, 0.5], scores, multiple=4).widths == (8, 8)
    assert choose(groups, [0.0, 0.0], scores, multiple=4).widths == (16, 10)
    assert choose(groups, [1.0, 1.0], scores).widths == (1, 1)
    assert choose(groups, [1.0, 1.0], scores, minimum=3).widths == (3, 3)
    assert choose(groups, [0.5, 0.5], [np.zeros(16), np.zeros(10)]).kept[1] == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("ratios", [[0.5], [0.5, 1.1], [0.5, float("nan")], [-0.1, 0]])
def test_ratios_that_make_no_sense_are_refused(ratios: Sequence[float]) -> None:
    groups = [Group("a", 4, ()), Group("b", 4, ())]
    with pytest.raises(ValueError, match=r"ratio"):
        choose(groups, ratios, [np.ones(4)] * 2)


def test_a_design_goes_to_json_and_back_and_keeps_its_key_everywhere() -> None:
    design = Design(((0, 2), (1,)), "int8")
    assert Design.from_json(design.to_json()) == design
    code = "from engine.compress.groups import Design; print(Design(((0, 2), (1,)), 'int8').key())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == design.key()
    assert len({design.key(), Design(((0, 2), (1,))).key(), Design(((0, 1), (1,))).key()}) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kept": 3}', '{"kept": [[0]], "precision": 4}'])
def test_what_is_no_design_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="design"):
        Design.from_json(text)


def test_a_design_of_another_network_is_refused() -> None:
    groups = [Group("a", 4, ())]
    module.validate(groups, whole(groups))
    for kept, sentence in [
        (((0,), (0,)), "made for another network"),
        (((),), "at least one channel must stay"),
        (((0, 4),), "rising numbers from 0 to 3"),
        (((2, 1),), "rising numbers"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            module.validate(groups, Design(kept))


def test_designs_compose_to_the_original_channel_numbers() -> None:
    first = Design(((1, 3, 5), (0, 2)))
    assert compose(first, Design(((0, 2), (1,)), "int8")) == Design(((1, 5), (2,)), "int8")
    with pytest.raises(ValueError, match="not made for the network"):
        compose(first, Design(((0, 3), (1,))))
