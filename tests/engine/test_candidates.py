"""From genes to whole channels, and what a candidate is worth."""

import copy
import json

import numpy as np
import pytest
import torch

from engine import accelerator
from engine.compress.designs import choose
from engine.compress.evaluate import accuracy_by_batch_statistics
from engine.compress.groups import importance, trace
from engine.compress.prune import prune
from engine.search.candidates import Accuracies
from engine.search.measurements import Cancelled
from engine.search.scoring import at_widths
from engine.search.space import Space


def box(**more):
    return Space(**{"channels": (16, 32, 10), "now": (16, 32, 10), "reach": 0.5, **more})


def test_genes_become_whole_channels_rounded_up():
    assert box().widths([[0, 0, 0], [0.5, 0.5, 0.5], [0.01, 0.26, 0.3]]) == [
        (16, 32, 10), (8, 16, 5), (16, 24, 7),
    ]  # fmt: skip
    assert box(multiple=8).widths([0.3, 0.3, 0.3]) == [(16, 24, 8)]
    assert box(minimum=9).widths([0.5, 0.5, 0.5]) == [(9, 16, 9)]
    assert box(reach=1.0).widths([1, 1, 1]) == [(1, 1, 1)]


def test_every_width_down_to_the_smallest_has_an_equal_share_of_the_genes():
    for space in (box(), box(multiple=4), box(now=(12, 20, 10), reach=0.2)):
        genes = np.linspace(0, 1, 10_001)[:, None] * space.upper
        found = np.array(space.widths(genes))
        assert tuple(found.min(0)) == space.smallest
        for group in range(3):
            _, counts = np.unique(found[:, group], return_counts=True)
            assert counts.max() < 1.01 * counts.min() or space.channels[group] % space.multiple


def test_a_later_outer_iteration_removes_shares_of_the_original_channels():
    space = box(now=(12, 20, 10), reach=0.2)
    assert space.widths([0, 0, 0]) == [(12, 20, 10)]
    assert space.widths([0.1, 0.1, 0.1]) == [(11, 17, 9)]
    assert space.smallest == (9, 14, 8)


def test_widths_agree_with_those_that_ratios_choose(resnet_groups, resnet):
    scores = importance(resnet, resnet_groups)
    channels = tuple(group.channels for group in resnet_groups)
    space = Space(channels, channels, 1.0, multiple=4)
    for genes in np.random.default_rng(0).random((20, 12)):
        design = choose(resnet_groups, genes, scores, multiple=4)
        assert space.widths(genes) == [design.widths]
        assert at_widths(scores, design.widths) == design


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8), random.integers(0, 10, 12)


@pytest.fixture
def make(resnet, resnet_groups, images, tmp_path):
    def build(**more):
        scores = importance(resnet, resnet_groups)
        return Accuracies(
            resnet, resnet_groups, scores, *images, tmp_path / "accuracies.jsonl",
            **{"round_": 1, **more},
        )  # fmt: skip

    return build


def test_accuracy_is_that_of_the_pruned_network_and_is_estimated_once(
    make, resnet, resnet_groups, images, tmp_path
):
    widths = (14,) * 4 + (28,) * 4 + (60,) * 4
    accuracies = make(reestimate=False, mixed=False)
    value = accuracies([widths, widths])
    design = at_widths(importance(resnet, resnet_groups), widths)
    with torch.no_grad():
        logits = prune(resnet, resnet_groups, design)(torch.from_numpy(images[0]).float() / 255)
    expected = float((logits.argmax(1).numpy() == images[1]).mean())
    assert value.tolist() == [expected, expected]
    lines = (tmp_path / "accuracies.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"round": 1, "widths": list(widths), "accuracy": expected}
    ]
    # Another object reads the file; another outer iteration does not.
    assert make(cancelled=lambda: True)([widths])[0] == expected
    with pytest.raises(Cancelled):
        make(round_=2, cancelled=lambda: True)([widths])


def test_batch_statistics_bring_back_what_the_old_ones_hide(make, resnet, resnet_groups, images):
    # Scaling what the first layer makes is what its batch norm undoes, if it knows.
    widths = tuple(group.channels for group in resnet_groups)
    with torch.no_grad():
        resnet_twin = copy.deepcopy(resnet)
        resnet_twin.conv1.weight *= 50
        logits = [accuracy_logits(model, images[0]) for model in (resnet, resnet_twin)]
    scores = importance(resnet, resnet_groups)
    assert not np.allclose(logits[0], logits[1], atol=0.1)
    tensors = [torch.from_numpy(array) for array in images]
    values = [
        accuracy_by_batch_statistics(prune(m, resnet_groups, at_widths(scores, widths)), *tensors)
        for m in (resnet, resnet_twin)
    ]
    assert values[0] == values[1]
    assert make(mixed=False)([widths])[0] == values[0]
    assert not any(module.training for module in resnet_twin.modules())


def accuracy_logits(model, images):
    return model(torch.from_numpy(images).float() / 255).numpy()


@pytest.mark.skipif(
    not accelerator.has_bfloat16(torch.device("cpu")), reason="this processor has no bfloat16"
)
def test_bfloat16_is_used_where_it_keeps_the_accuracy_and_not_where_it_does_not(
    resnet, resnet_groups, images, make, tmp_path
):
    class Coarse(torch.nn.Module):
        """Tells classes apart by less than bfloat16 can tell."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)
            self.linear = torch.nn.Linear(4, 10)
            torch.nn.init.zeros_(self.linear.weight)
            self.linear.bias.data = 1 + 1e-4 * torch.arange(10.0)

        def forward(self, x):
            return self.linear(self.conv(x).mean((2, 3)))

    assert make()._scorer.bf16
    model = Coarse().eval()
    groups = trace(model, torch.rand(1, 3, 8, 8))
    labels = np.full(12, 9)
    found = Accuracies(
        model, groups, importance(model, groups), images[0], labels, tmp_path / "a", 1
    )
    assert found([(2,)])[0] == 1.0
    assert not found._scorer.bf16
