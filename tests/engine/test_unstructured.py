from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from engine import data
from engine.compress.export import Template, export
from engine.compress.finetune import Recipe, accuracy, finetune
from engine.compress.profile import profile
from engine.compress.unstructured import prune_weights, refuse_masks, remove_masks, zeros
from engine.compress.updates import Update

LAYERS = ("0", "2", "4", "7", "9")


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach() for name in LAYERS}


@pytest.mark.parametrize("measure", ["l1", "random"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_every_layer_loses_exactly_the_share(reader: nn.Module, measure: str, share: float) -> None:
    sparse = prune_weights(reader, share, measure)  # type: ignore[arg-type]
    for name, weight in _weights(sparse).items():
        assert int((weight == 0).sum()) == round(share * weight.numel()), name
    assert set(zeros(sparse)) == set(LAYERS)


@pytest.mark.parametrize("measure", ["l1", "random"])
def test_all_layers_together_lose_exactly_the_share(reader: nn.Module, measure: str) -> None:
    sparse = prune_weights(reader, 0.6, measure, "global")  # type: ignore[arg-type]
    gone = sum(int((w == 0).sum()) for w in _weights(sparse).values())
    assert gone == round(0.6 * sum(w.numel() for w in _weights(reader).values()))
    assert len({round(share, 3) for share in zeros(sparse).values()}) > 1


def test_l1_takes_the_smallest_weights_and_changes_no_other(reader: nn.Module) -> None:
    for scope in ("layer", "global"):
        sparse = _weights(prune_weights(reader, 0.5, "l1", scope))  # type: ignore[arg-type]
        before = _weights(reader)
        parts = [LAYERS] if scope == "global" else [(name,) for name in LAYERS]
        for part in parts:
            gone = torch.cat([before[n][sparse[n] == 0].abs() for n in part])
            stayed = torch.cat([before[n][sparse[n] != 0].abs() for n in part])
            assert gone.max() <= stayed.min()
        for name in LAYERS:
            assert torch.equal(sparse[name][sparse[name] != 0], before[name][sparse[name] != 0])


def test_chance_follows_its_seed_and_disturbs_nobody_elses(reader: nn.Module) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (prune_weights(reader, 0.5, "random", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for name in LAYERS:
        assert torch.equal(_weights(first)[name], _weights(second)[name])
        assert not torch.equal(_weights(first)[name], _weights(other)[name])


@pytest.mark.parametrize("measure", ["l1", "random"])
def test_pruning_in_steps_counts_what_is_zero_already(reader: nn.Module, measure: str) -> None:
    half = prune_weights(reader, 0.5, measure)  # type: ignore[arg-type]
    most = prune_weights(half, 0.8, measure)  # type: ignore[arg-type]
    for name, weight in _weights(most).items():
        assert int((weight == 0).sum()) == round(0.8 * weight.numel())
        assert (weight[_weights(half)[name] == 0] == 0).all()
    again = prune_weights(most, 0.3, measure)  # type: ignore[arg-type]
    assert zeros(again) == zeros(most)


def test_the_original_is_left_and_the_copy_is_an_ordinary_network(reader: nn.Module) -> None:
    before = {name: t.clone() for name, t in reader.state_dict().items()}
    sparse = prune_weights(reader, 0.5)
    assert all(torch.equal(t, before[name]) for name, t in reader.state_dict().items())
    assert set(sparse.state_dict()) == set(before)
    assert not any(m._forward_pre_hooks for m in sparse.modules())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in sparse.parameters())
    for name in ("0.bias", "9.bias"):
        assert torch.equal(sparse.state_dict()[name], before[name])


def test_a_weight_that_two_layers_share_counts_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    sparse = prune_weights(model, 0.5, scope="global")
    assert sparse[0].weight is sparse[1].weight  # type: ignore[index]
    assert zeros(sparse) == {"0": 0.5}


def test_fine_tuning_keeps_every_zero_and_gets_the_accuracy_back(
    reader: nn.Module, digits: data.Dataset
) -> None:
    sparse = prune_weights(reader, 0.8, scope="global")
    before = accuracy(sparse, digits.selection_images, digits.selection_labels)
    gone = {name: weight == 0 for name, weight in _weights(sparse).items()}
    start = {name: weight.clone() for name, weight in _weights(sparse).items()}
    recipe = Recipe(epochs=2, lr=0.02, augment=False, weight_decay=1e-3, keep_zeros=True)
    after = finetune(sparse, digits, recipe).accuracy
    for name, weight in _weights(sparse).items():
        assert torch.equal(weight == 0, gone[name])
        assert not torch.equal(weight, start[name])
    assert after > before
    forgetful = prune_weights(reader, 0.8, scope="global")
    finetune(forgetful, digits, Recipe(epochs=1, lr=0.02, augment=False))
    assert sum(zeros(forgetful).values()) < 0.5 * sum(zeros(sparse).values())


def test_a_killed_fine_tuning_resumes_with_the_same_zeros(
    reader: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=2, lr=0.02, augment=False, keep_zeros=True)
    whole, resumed = prune_weights(reader, 0.7), prune_weights(reader, 0.7)
    finetune(whole, digits, recipe)
    calls = iter(range(10_000))
    finetune(
        copy.deepcopy(resumed), digits, recipe,
        checkpoint=tmp_path / "c", cancelled=lambda: next(calls) > 25,
    )  # fmt: skip
    finetune(resumed, digits, recipe, checkpoint=tmp_path / "c")
    for name in LAYERS:
        assert torch.equal(_weights(whole)[name], _weights(resumed)[name])
    assert min(zeros(resumed).values()) > 0.69


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_optimizer_moves_a_zero_even_where_the_loss_is_not_finite(
    optimizer: Literal["sgd", "adamw"],
) -> None:
    model = prune_weights(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), 0.5)
    gone = [model[i].weight == 0 for i in (0, 2)]  # type: ignore[index]
    update = Update()
    update.begin(model, Recipe(weight_decay=0.1, optimizer=optimizer, keep_zeros=True), 3)
    for at, factor in enumerate((1.0, 1.0, float("inf"))):
        update.optimizer.zero_grad()
        (model(torch.rand(4, 6)).square().sum() * factor).backward()
        update.step(at, 0.1)
    for layer, zero in zip((model[0], model[2]), gone, strict=True):  # type: ignore[index]
        assert (layer.weight[zero] == 0).all()
        assert not (layer.weight[~zero] == 0).all()


def test_the_exported_file_has_no_masks_and_compresses(
    reader: nn.Module, reader_template: Template, example: torch.Tensor, tmp_path: Path
) -> None:
    dense = reader_template.write(reader, tmp_path / "dense.onnx")
    sparse_model = prune_weights(reader, 0.8)
    sparse = export(sparse_model, example, tmp_path / "sparse.onnx")
    assert sparse.bytes == dense.bytes
    nodes = onnx.load(sparse.path).graph.node
    assert "Mul" not in {node.op_type for node in nodes}
    rows = [profile(m, example, f.path) for m, f in ((reader, dense), (sparse_model, sparse))]
    assert rows[1].compressed_bytes < 0.45 * rows[0].compressed_bytes  # type: ignore[operator]
    assert rows[1].macs == rows[0].macs  # nothing is saved there
    assert rows[1].nonzeros < 0.25 * rows[1].parameters


def test_a_network_with_masks_is_refused_until_they_are_removed(
    reader: nn.Module, reader_template: Template, example: torch.Tensor, tmp_path: Path
) -> None:
    model = copy.deepcopy(reader)
    prune.l1_unstructured(model[2], "weight", 0.5)  # type: ignore[index]
    for call in (lambda: prune_weights(model, 0.7), lambda: export(model, example, tmp_path / "m")):
        with pytest.raises(ValueError, match="2 still carries pruning masks"):
            call()
    remove_masks(model)
    refuse_masks(model)
    assert zeros(model)["2"] == 0.5
    export(model, example, tmp_path / "m.onnx", template=reader_template)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(reader: nn.Module, share: float) -> None:
    with pytest.raises(ValueError, match="must be from 0 to below 1"):
        prune_weights(reader, share)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        prune_weights(nn.Sequential(nn.ReLU()), 0.5)
