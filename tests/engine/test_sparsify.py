from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine import data, models
from engine.compress.channels import Channels
from engine.compress.finetune import Recipe, accuracy, finetune
from engine.compress.groups import Group, Slice, trace, whole
from engine.compress.prunable import prunable
from engine.compress.prune import prune
from engine.compress.sparsifiers import DHSPG, HESSO, adapted
from engine.compress.sparsify import Sparsity, sparsify
from engine.compress.sparsity import select
from engine.events import AnyEvent, Finished, Noted, Reporter, Scored, Started
from engine.models.convnext import ConvNeXt


class Small(nn.Module):
    """Two groups of eight; dropout makes it depend on the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.first(x)).relu())
        logits: Tensor = self.head(self.second(x).relu().flatten(1))
        return logits


GROUPS = trace(Small(), torch.rand(2, 3, 32, 32))


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    """Few of them, so that an epoch is soon over."""
    found = data.load("digits")
    return dataclasses.replace(
        found, train_images=found.train_images[:256], train_labels=found.train_labels[:256]
    )


@pytest.fixture(scope="module")
def quarters(digits: data.Dataset) -> data.Dataset:
    """Every second pixel of every second line, for networks that need more arithmetic."""
    return dataclasses.replace(
        digits,
        train_images=digits.train_images[:, :, ::2, ::2].copy(),
        selection_images=digits.selection_images[:, :, ::2, ::2].copy(),
        test_images=digits.test_images[:, :, ::2, ::2].copy(),
    )


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(1)
    return Small()


def _recipe(**changes: object) -> Recipe:
    start = Recipe(epochs=4, lr=0.05, batch=32, seed=3)
    return dataclasses.replace(start, **changes)  # type: ignore[arg-type]


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _apart(model: nn.Module, compact: nn.Module, images: np.ndarray) -> float:
    x = torch.from_numpy(images[:64]).float() / 255
    with torch.no_grad():
        return float((model.eval()(x) - compact.eval()(x)).abs().max())


def _zero_channels(model: nn.Module, group: Group) -> list[int]:
    """Return the channels of which everything that makes them is zero."""
    tensors = model.state_dict()
    parts = [c for c in group.slices if not c.reads and "running" not in c.tensor]
    return [
        channel
        for channel in range(group.channels)
        if all(
            not tensors[c.tensor].movedim(c.axis, 0)[list(c.index[channel])].any() for c in parts
        )
    ]


@pytest.mark.parametrize("method", ["dhspg", "hesso"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resnet_meets_the_budget_exactly_and_answers_as_the_compact_one(
    quarters: data.Dataset, method: str, optimizer: str
) -> None:
    torch.manual_seed(0)
    model = models.build("resnet8", 10, (8, 16, 32), quarters.mean, quarters.std)
    groups = trace(model, torch.rand(2, 3, 16, 16))
    recipe = _recipe(epochs=2, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.003)
    sparsity = Sparsity(method, kept=0.4, periods=3)  # type: ignore[arg-type]
    result = sparsify(model, groups, quarters, recipe, sparsity)
    assert sum(result.design.widths) == 45  # of 112, rounded up
    assert min(result.design.widths) >= 1
    assert result.whole == {}
    for group, kept in zip(groups, result.design.kept, strict=True):
        assert _zero_channels(model, group) == sorted(set(range(group.channels)) - set(kept))
    compact = prune(model, groups, result.design)
    assert _apart(model, compact, quarters.test_images) < 1e-5
    assert sum(p.numel() for p in compact.parameters()) < 0.35 * sum(
        p.numel() for p in model.parameters()
    )


def test_a_zeroed_channel_is_exactly_zero_behind_its_batch_norm(
    small: nn.Module, digits: data.Dataset
) -> None:
    result = sparsify(small, GROUPS, digits, _recipe(), Sparsity(kept=0.5))
    gone = sorted(set(range(8)) - set(result.design.kept[0]))
    assert gone
    with torch.no_grad():
        images = torch.from_numpy(digits.test_images).float() / 255
        behind = small.get_submodule("norm")(small.get_submodule("first")(images))
        assert not behind[:, gone].any()
        assert behind[:, list(result.design.kept[0])].any()


def test_a_convnext_keeps_what_its_layer_norms_read_and_says_so(digits: data.Dataset) -> None:
    torch.manual_seed(0)
    model = ConvNeXt(10, (8, 8, 8, 8), digits.mean, digits.std, (1, 1, 1, 1), patch=4)
    for block in (m for m in model.modules() if hasattr(m, "layer_scale")):
        nn.init.ones_(block.layer_scale)
    found = prunable(model, torch.rand(2, 3, 32, 32))
    hidden = [f"features.{n}.0.block.3" for n in (1, 3, 5, 7)]
    assert [g.name for g in found.groups] == hidden
    assert found.whole["features.1.0.block.5"] == "features.0.1, a LayerNorm, cannot be sliced"

    def cut(tensor: str, axis: int = 0, reads: bool = False) -> Slice:
        return Slice(tensor, axis, tuple((c,) for c in range(8)), reads)

    # The same stream by hand, as another tracer might give it.
    made = ("0.0", "0.1", "1.0.block.0", "1.0.block.2", "1.0.block.5", "2.0")
    stream = Group(
        "features.0.0",
        8,
        (
            *(cut(f"features.{name}.{key}") for name in made for key in ("weight", "bias")),
            cut("features.1.0.layer_scale"),
            cut("features.1.0.block.3.weight", 1, True),
            cut("features.2.1.weight", 1, True),
        ),
    )  # fmt: skip
    groups, events = (stream, *found.groups), list[AnyEvent]()
    recipe = _recipe(epochs=2, optimizer="adamw", lr=0.003)
    result = sparsify(
        model, groups, digits, recipe, Sparsity(kept=0.25), reporter=Reporter("j", events.append)
    )
    assert list(result.whole) == ["features.0.0"]
    assert "pruned and masked outputs differ" in result.whole["features.0.0"]
    said = [e.text for e in events if isinstance(e, Noted)]
    assert said[0].startswith("group features.0.0 keeps all its channels: pruned and masked")
    assert result.design.widths[0] == 8
    assert sum(result.design.widths[1:]) == 32
    assert _apart(model, prune(model, groups, result.design), digits.test_images) < 1e-5


@pytest.mark.parametrize(
    ("method", "optimizer", "kill_after"), [("dhspg", "sgd", 1), ("hesso", "adamw", 2)]
)
def test_a_killed_run_ends_in_the_same_bits_as_an_undisturbed_one(
    small: nn.Module,
    digits: data.Dataset,
    tmp_path: Path,
    method: str,
    optimizer: str,
    kill_after: int,
) -> None:
    undisturbed, start = copy.deepcopy(small), copy.deepcopy(small)
    recipe = _recipe(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.003)
    # Due after epoch 3: the run is killed while channels are on their way.
    sparsity = Sparsity(method, kept=0.4, until=0.75, periods=2)  # type: ignore[arg-type]
    expected = sparsify(undisturbed, GROUPS, digits, recipe, sparsity)

    class Killed(BaseException):
        pass

    def kill(event: AnyEvent) -> None:
        if isinstance(event, Scored) and event.name == "loss" and event.x == kill_after:
            raise Killed

    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        sparsify(
            small, GROUPS, digits, recipe, sparsity, checkpoint=path, reporter=Reporter("j", kill)
        )
    torch.manual_seed(99)  # another process, another random state
    resumed = sparsify(start, GROUPS, digits, recipe, sparsity, checkpoint=path)
    assert resumed == expected
    assert _same(undisturbed, start)
    other = dataclasses.replace(sparsity, kept=0.5)
    with pytest.raises(ValueError, match="belongs to a run with another"):
        sparsify(copy.deepcopy(small), GROUPS, digits, recipe, other, checkpoint=path)


def test_a_finished_run_is_not_run_again(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    start, path = copy.deepcopy(small), tmp_path / "run.safetensors"
    first = sparsify(small, GROUPS, digits, _recipe(epochs=2), Sparsity(), checkpoint=path)
    assert sparsify(start, GROUPS, digits, _recipe(epochs=2), Sparsity(), checkpoint=path) == first
    assert _same(small, start)


def test_cancelling_before_the_budget_is_due_leaves_the_network_as_it_was(
    small: nn.Module, digits: data.Dataset
) -> None:
    before, batches = copy.deepcopy(small), iter(range(10_000))
    result = sparsify(
        small, GROUPS, digits, _recipe(), Sparsity(), cancelled=lambda: next(batches) > 10
    )
    assert not result.finished
    assert result.design == whole(GROUPS)
    assert _same(before, small)


def test_no_epoch_before_the_budget_is_chosen_however_good(
    small: nn.Module, digits: data.Dataset
) -> None:
    finetune(small, digits, _recipe(epochs=12))
    before = accuracy(small, digits.selection_images, digits.selection_labels)
    events: list[AnyEvent] = []
    result = sparsify(
        small, GROUPS, digits, _recipe(), Sparsity(kept=0.1), reporter=Reporter("j", events.append)
    )
    assert result.accuracy < before
    assert result.best_epoch >= 2
    assert result.design.widths == (1, 1)
    shares = [e.y for e in events if isinstance(e, Scored) and e.name == "channels"]
    assert shares[1:] == pytest.approx([2 / 16] * 3)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[-1].result["channels"] == 2
    note = events[-2]
    assert isinstance(note, Noted)
    assert "14 of 16 channels are zero: the half-space projection brought" in note.text


@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_a_budget_that_leaves_a_group_nothing_is_said_before_training(
    small: nn.Module, digits: data.Dataset, method: Literal["dhspg", "hesso"]
) -> None:
    events: list[AnyEvent] = []
    result = sparsify(
        small, GROUPS, digits, _recipe(), Sparsity(method, kept=0.01),
        reporter=Reporter("j", events.append),
    )  # fmt: skip
    assert result.design.widths == (1, 1)
    note = events[1]
    assert isinstance(note, Noted)
    assert note.text == (
        "the budget cannot be met: 1 of 16 channels should stay, but 2 do, since each of 2 groups "
        "keeps one"
    )


def test_only_a_budget_that_cannot_be_met_is_said_to_be_one() -> None:
    assert Sparsity(kept=0.125).unmet(GROUPS) == []
    assert Sparsity(kept={GROUPS[0].name: 0.01}).unmet(GROUPS) == []
    assert Sparsity(kept=0.3, multiple=4).unmet(GROUPS) == [], "a multiple adds that much anyway"
    (said,) = Sparsity(kept=0.2, multiple=4).unmet(GROUPS)
    assert "4 of 16 channels should stay, but 8 do" in said
    assert said.endswith("each of 2 groups keeps 4, or all")


def test_a_diverging_run_goes_back_and_still_meets_the_budget(digits: data.Dataset) -> None:
    class Fragile(Small):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits * (torch.nan if self.first.weight.abs().max() > 0.6 else 1.0)

    torch.manual_seed(1)
    model, events = Fragile(), list[AnyEvent]()
    result = sparsify(
        model, GROUPS, digits, _recipe(lr=2.0), Sparsity(), reporter=Reporter("j", events.append)
    )
    assert any("diverged" in e.text for e in events if isinstance(e, Noted))
    assert sum(result.design.widths) == 8
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


def test_shares_a_group_and_channel_multiples(small: nn.Module, digits: data.Dataset) -> None:
    recipe, twin = _recipe(epochs=1), copy.deepcopy(small)
    result = sparsify(
        small, GROUPS, digits, recipe, Sparsity("hesso", {"second": 0.3}, until=1.0, periods=2)
    )
    assert result.design.widths == (8, 3)
    result = sparsify(twin, GROUPS, digits, recipe, Sparsity(kept=0.6, multiple=4, until=1.0))
    assert sorted(result.design.widths) == [4, 8]
    assert _apart(twin, prune(twin, GROUPS, result.design), digits.test_images) < 1e-5


def test_a_frozen_shortcut_goes_with_its_channel_and_a_frozen_group_stays(
    quarters: data.Dataset,
) -> None:
    torch.manual_seed(0)
    model = models.build("resnet20", 10, (4, 8, 8), quarters.mean, quarters.std)
    assert not model.get_parameter("layer2.0.shortcut.weight").requires_grad
    for name in ("layer1.0.conv1", "layer1.0.bn1"):
        model.get_submodule(name).requires_grad_(False)
    groups = trace(model, torch.rand(2, 3, 16, 16))
    result = sparsify(model, groups, quarters, _recipe(epochs=1), Sparsity(kept=0.5, until=1.0))
    assert result.whole == {"layer1.0.conv1": "its weights are frozen"}
    assert result.design.widths[1] == 4
    assert sum(result.design.widths) == 4 + 38
    assert _apart(model, prune(model, groups, result.design), quarters.test_images) < 1e-5


def test_lambda_is_raised_where_a_channel_would_grow_and_stays_within_its_bounds() -> None:
    # <x, d>, |x|, |d| of five channels; lambda 0.1, twice the lower bound, ten times at most.
    along = torch.tensor([3.0, -0.02, -0.2, -4.0, -1.0])
    norms = torch.tensor([2.0, 1.0, 1.0, 2.0, 1.0])
    lengths = torch.tensor([5.0, 1.0, 1.0, 8.0, 1.0])
    expected = [
        0.1,  # descent shrinks it anyway
        0.1,  # 2 x 0.02 is less than lambda
        0.4,  # 2 x 0.2; upper is 1 x 1 / 0.2 = 5
        1.0,  # 2 x 2 is more than 10 lambda; upper is 64 x 2 / 4 = 32
        1.0,  # 2 x 1, capped at 1, meets upper = 1: the middle of 1 and 1
    ]
    assert adapted(along, norms, lengths, torch.tensor(0.1), 2.0, 10.0).tolist() == pytest.approx(
        expected
    )
    above = adapted(
        torch.tensor([-0.6]), torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor(3.0), 2.0, 10.0
    )
    assert float(above) == pytest.approx((0.6 + 1 / 0.6) / 2)


ROWS = (
    Group("0", 2, (Slice("0.weight", 0, ((0,), (1,))), Slice("1.weight", 1, ((0,), (1,)), True))),
)


def _begun(update: DHSPG | HESSO, rows: list[list[float]], batches: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows))
    plain = Recipe(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
    update.begin(model, plain, batches)
    return model


def _step(update: DHSPG | HESSO, model: nn.Module, at: int, gradient: list[list[float]]) -> Tensor:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].weight.grad = torch.tensor(gradient)  # type: ignore[index, union-attr]
    update.step(at, 0.1)
    return model.get_parameter("0.weight").detach()


def test_dhspg_takes_the_steps_that_one_finds_by_hand() -> None:
    sparsity = Sparsity("dhspg", warmup=0.25, until=1.0, tolerance=0.0, penalty=4.0)
    update = DHSPG(ROWS, sparsity)
    model = _begun(update, [[3.0, 4.0], [0.3, 0.4]], batches=4)
    # Warm-up: x - 0.1 d.
    x = _step(update, model, 0, [[1.0, 0.0], [0.0, 0.0]])
    assert x.tolist() == [pytest.approx([2.9, 4.0]), pytest.approx([0.3, 0.4])]
    # The lighter row is redundant (both cosines are 0); <x, d> = 0, so lambda is 4:
    # x - 0.1 * 4 * x / 0.5 = 0.2 x.
    x = _step(update, model, 1, [[0.0, 0.0], [0.0, 0.0]])
    assert update.redundant.tolist() == [False, True]
    assert x.tolist() == [pytest.approx([2.9, 4.0]), pytest.approx([0.06, 0.08])]
    # d = (1, 1): <x, d> > 0. x - 0.1 * (d + 4 (0.6, 0.8)) = (-0.28, -0.34) has turned round.
    x = _step(update, model, 2, [[0.0, 0.0], [1.0, 1.0]])
    assert x.tolist() == [pytest.approx([2.9, 4.0]), [0.0, 0.0]]
    # Zero stays zero, and the other row is never penalised.
    x = _step(update, model, 3, [[0.0, 1.0], [1.0, 1.0]])
    assert x.tolist() == [pytest.approx([2.9, 3.9]), [0.0, 0.0]]
    assert int(update.projected) == 1


def test_the_penalty_scales_with_the_learning_rate_and_the_steps() -> None:
    update = DHSPG(ROWS, Sparsity("dhspg", warmup=0.0, until=1.0, tolerance=0.0, strength=1.0))
    model = _begun(update, [[3.0, 4.0], [0.3, 0.4]], batches=10)
    # Its norm of 0.5 in 10 steps: a tenth of it each.
    x = _step(update, model, 0, [[0.0, 0.0], [0.0, 0.0]])
    assert x[1].tolist() == pytest.approx([0.27, 0.36])
    for at in range(1, 9):
        x = _step(update, model, at, [[0.0, 0.0], [0.0, 0.0]])
    assert x[1].tolist() == pytest.approx([0.03, 0.04])
    assert not update.dead.any()
    # What is left when the budget is due is projected, and counted as such.
    x = _step(update, model, 9, [[0.0, 0.0], [-1.0, -1.0]])
    assert x[1].tolist() == [0.0, 0.0]
    assert int(update.projected) == 0
    assert "the half-space projection brought 0, the closing one 1" in update.sentence()


def test_hesso_shrinks_evenly_to_exactly_zero_at_the_end_of_the_period() -> None:
    update = HESSO(ROWS, Sparsity("hesso", until=1.0, warmup=0.0, periods=1))
    model = _begun(update, [[3.0, 4.0], [0.3, 0.4]], batches=4)
    for at, left in enumerate([0.75, 0.5, 0.25]):
        x = _step(update, model, at, [[0.0, 0.0], [0.0, 0.0]])
        assert x.tolist() == [pytest.approx([3.0, 4.0]), pytest.approx([0.3 * left, 0.4 * left])]
        assert not update.dead.any()
    x = _step(update, model, 3, [[0.0, 0.0], [7.0, -7.0]])
    assert x[1].tolist() == [0.0, 0.0]
    assert update.alive() == [(0,)]


def test_hesso_takes_its_share_in_each_period(small: nn.Module) -> None:
    update = HESSO(GROUPS, Sparsity("hesso", kept=0.25, warmup=0.0, until=1.0, periods=5))
    update.begin(small, _recipe(epochs=1), 10)
    gone = []
    for at in range(10):
        for parameter in small.parameters():
            parameter.grad = 0.01 * torch.randn(parameter.shape)
        update.step(at, 0.05)
        gone.append(int(update.dead.sum()))
    assert gone == [0, 2, 2, 4, 4, 6, 6, 8, 8, 12]  # 12 of 16, the last period has the rest


def test_what_makes_a_channel_is_all_of_it_and_nothing_that_reads_it(small: nn.Module) -> None:
    before = {name: t.clone() for name, t in small.state_dict().items()}
    channels = Channels(small, GROUPS)
    assert channels.count == 16
    assert channels.sizes.tolist() == [75 + 1 + 1 + 1] * 8 + [72 + 1] * 8
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[[2, 8]] = True
    channels.zero(chosen)
    after = small.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"first.weight", "first.bias", "norm.weight", "second.weight", "second.bias"}
    assert torch.equal(after["second.weight"][1:], before["second.weight"][1:])
    assert torch.equal(after["head.weight"], before["head.weight"])


def test_selection_keeps_whole_blocks_and_leaves_no_group_empty() -> None:
    scores = [np.array([1.0, 9.0, 2.0, 8.0]), np.array([0.1, 0.2, 0.3])]
    assert [kept.tolist() for kept in select(scores, 3)] == [
        [False, True, False, True], [False, False, True],
    ]  # fmt: skip
    assert [int(kept.sum()) for kept in select(scores, 1)] == [1, 1]
    assert [int(kept.sum()) for kept in select(scores, 5, multiple=2)] == [4, 2]
    assert [int(kept.sum()) for kept in select(scores, 7, multiple=2)] == [4, 3]
    gone = [np.array([5.0, -np.inf]), np.array([-np.inf, 0.0])]
    assert [kept.tolist() for kept in select(gone, 2)] == [[True, False], [False, True]]


def test_adamw_trains_and_resumes_to_the_same_bits(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    undisturbed, start = copy.deepcopy(small), copy.deepcopy(small)
    recipe, path = _recipe(optimizer="adamw", lr=0.003, epochs=8), tmp_path / "run.safetensors"
    finetune(undisturbed, digits, recipe)
    assert accuracy(undisturbed, digits.test_images, digits.test_labels) > 0.5
    batches = iter(range(10_000))
    finetune(small, digits, recipe, checkpoint=path, cancelled=lambda: next(batches) > 20)
    finetune(start, digits, recipe, checkpoint=path)
    assert _same(undisturbed, start)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "the sparsity's method cannot be magic"),
        ({"kept": 0.0}, r"the sparsity's kept cannot be 0\.0"),
        ({"kept": {"first": 1.5}}, "the sparsity's kept cannot be {'first': 1.5}"),
        ({"kept": {"third": 0.5}}, "names third, which is no group to sparsify"),
        ({"multiple": 0}, "multiple cannot be 0"),
        ({"warmup": 0.6}, r"until cannot be 0\.5"),
        ({"penalty": -1.0}, r"penalty cannot be -1\.0"),
        ({"strength": float("nan")}, "strength cannot be nan"),
        ({"method": "hesso", "periods": 99}, "99 periods need as many batches, and between"),
        ({"method": "hesso", "periods": 0}, "periods cannot be 0"),
    ],
)
def test_a_senseless_sparsity_is_one_sentence(
    small: nn.Module, digits: data.Dataset, changes: dict[str, object], sentence: str
) -> None:
    sparsity = dataclasses.replace(Sparsity(), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        sparsify(small, GROUPS, digits, _recipe(), sparsity)


def test_what_cannot_be_made_sparse_is_one_sentence(small: nn.Module, digits: data.Dataset) -> None:
    with pytest.raises(ValueError, match="no epochs, and sparsity comes by training"):
        sparsify(small, GROUPS, digits, _recipe(epochs=0), Sparsity())
    with pytest.raises(ValueError, match="the recipe's optimizer cannot be adam"):
        sparsify(small, GROUPS, digits, _recipe(optimizer="adam"), Sparsity())
    with pytest.raises(ValueError, match="no group of channels can be made sparse"):
        sparsify(small, (), digits, _recipe(), Sparsity())
    small.requires_grad_(False)
    with pytest.raises(ValueError, match="can be made sparse: first: its weights are frozen"):
        sparsify(small, GROUPS, digits, _recipe(), Sparsity())


def test_two_processes_meet_the_budget_too(small: nn.Module, digits: data.Dataset) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    result = sparsify(small, GROUPS, digits, _recipe(processes=2), Sparsity(kept=0.4))
    assert result.finished
    assert sum(result.design.widths) == 7
    assert _apart(small, prune(small, GROUPS, result.design), digits.test_images) < 1e-5


def test_before_it_begins_an_update_goes_to_another_process() -> None:
    update = pickle.loads(pickle.dumps(DHSPG(GROUPS, Sparsity())))
    assert update.fingerprint == DHSPG(GROUPS, Sparsity()).fingerprint
    assert update.fingerprint != DHSPG(GROUPS, Sparsity(kept=0.4)).fingerprint
