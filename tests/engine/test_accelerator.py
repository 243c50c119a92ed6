"""Where networks run; placement is tried with tensors that have a device but no data."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from engine import accelerator, data, models
from engine.compress import evaluate, training
from engine.compress.groups import Group, importance, trace
from engine.compress.padding import Zeros
from engine.compress.prune import Pruner
from engine.compress.recipe import Recipe
from engine.compress.sparsifiers import DHSPG, HESSO, Sparsifier
from engine.compress.sparsity import Sparsity
from engine.compress.training import Team
from engine.compress.updates import Update
from engine.search.scoring import at_widths


def test_without_cuda_the_processor_is_taken_and_asking_for_cuda_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator.device() == accelerator.device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r'torch finds no CUDA .* "auto" or "cpu"'):
        accelerator.device("cuda")


def test_cuda_is_taken_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert accelerator.device() == accelerator.device("cuda") == torch.device("cuda", 1)
    assert accelerator.device("cpu") == torch.device("cpu")


FAR = torch.device("meta")
"""A device without data: what mixes it with the processor's tensors is refused, as on a GPU."""


def _far_network() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)
    return nn.Sequential(*layers).to(FAR)


class _Far(Team):
    def __init__(self) -> None:
        self.device = FAR


def test_everything_that_a_batch_of_fine_tuning_needs_lies_on_the_device() -> None:
    run = object.__new__(training._Run)
    run.team, run.recipe, run.bf16 = _Far(), Recipe(distill=0.5), False
    run.model = run.learner = _far_network()
    run.teacher = _far_network().eval()
    run.update = Update(zeros=[Zeros("3.bias", 0, (0, 2))])
    run.update.begin(run.model, run.recipe, batches=1)
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8, device=FAR)
    labels = torch.zeros(6, dtype=torch.int64, device=FAR)
    shifted = data.augment(images, torch.Generator().manual_seed(0))
    loss = run._batch(shifted.float() / 255, labels)
    run.update.step(0, 0.1)
    assert loss.device == shifted.device == FAR
    with pytest.raises(RuntimeError):
        run._batch(shifted.float() / 255, labels.new_zeros(6, device="cpu"))


@pytest.mark.parametrize(("kind", "method"), [(DHSPG, "dhspg"), (HESSO, "hesso")])
def test_everything_that_sparsity_needs_lies_on_the_device(
    kind: type[Sparsifier], method: Literal["dhspg", "hesso"]
) -> None:
    model = _far_network()
    groups = trace(copy.deepcopy(model).to_empty(device="cpu"), torch.rand(2, 3, 8, 8))
    update = kind(groups, Sparsity(method, warmup=0.0, until=1.0, periods=1))
    update.begin(model, Recipe(epochs=1), batches=4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for at in (1, 2, 3):  # the first one chooses, for which numbers have to come over
        update.step(at, 0.1)
    saved = {name: dict(tensors) for name, tensors in update.tensors().items()}
    assert {t.device for t in saved["sparsity"].values()} == {FAR}
    update.restore(saved)


def test_evaluation_brings_images_to_the_device() -> None:
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(6, dtype=torch.int64)
    # It gets as far as asking for the number, which there is not.
    for estimate in (evaluate.evaluate, evaluate.accuracy_by_batch_statistics):
        with pytest.raises(RuntimeError, match="item"):
            estimate(_far_network(), images, labels)


def test_slicing_stays_on_the_device(resnet: nn.Module, resnet_groups: tuple[Group, ...]) -> None:
    scores = importance(resnet, resnet_groups)
    design = at_widths(scores, tuple(g.channels // 2 for g in resnet_groups))
    pruner = Pruner(models.build("resnet20").to(FAR).eval(), resnet_groups)
    for pruned in (pruner.copy(design), pruner.reuse(design)):
        assert {p.device for p in pruned.parameters()} == {FAR}
        answers = pruned(torch.zeros(2, 3, 32, 32, device=FAR))
        assert answers.device == FAR
        assert answers.shape == (2, 10)
