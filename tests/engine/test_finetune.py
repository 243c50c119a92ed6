from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine import data
from engine.compress import checkpoint as checkpoints
from engine.compress.evaluate import evaluate
from engine.compress.finetune import (
    Recipe,
    accuracy,
    finetune,
    labelled,
    reestimate_batch_norm,
)
from engine.events import Advanced, AnyEvent, Finished, Noted, Reporter, Scored, Started
from engine.models.train import main


class Small(nn.Module):
    """A network that learns digits in seconds; dropout makes it depend on the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x)).relu())
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(1)
    return Small()


def _recipe(**changes: object) -> Recipe:
    return dataclasses.replace(Recipe(epochs=4, lr=0.05, seed=3), **changes)  # type: ignore[arg-type]


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_network_learns_and_the_events_tell_it(small: nn.Module, digits: data.Dataset) -> None:
    events: list[AnyEvent] = []
    before = accuracy(small, digits.test_images, digits.test_labels)
    result = finetune(small, digits, _recipe(), reporter=Reporter("j", events.append))
    assert before < 0.3
    assert accuracy(small, digits.test_images, digits.test_labels) > 0.85
    assert result.finished
    assert len(result.epochs) == 4
    assert isinstance(events[0], Started)
    assert events[0].total == 4
    assert [e.n for e in events if isinstance(e, Advanced)] == [1, 2, 3, 4]
    curve = [(e.x, e.y) for e in events if isinstance(e, Scored) and e.name == "accuracy"]
    assert curve == [(n, epoch.accuracy) for n, epoch in enumerate(result.epochs, 1)]
    assert isinstance(events[-1], Finished)


def test_the_best_epoch_of_the_selection_split_is_kept(
    small: nn.Module, digits: data.Dataset
) -> None:
    result = finetune(small, digits, _recipe(epochs=5, lr=0.4, schedule="constant"))
    found = accuracy(small, digits.selection_images, digits.selection_labels)
    assert found == result.accuracy == max(e.accuracy for e in result.epochs)
    assert result.epochs[result.best_epoch - 1].accuracy == found


def test_a_start_that_training_only_spoils_is_kept(small: nn.Module, digits: data.Dataset) -> None:
    finetune(small, digits, _recipe(epochs=6))
    before = copy.deepcopy(small)
    noise = np.random.default_rng(0).integers(0, 10, len(digits.train_labels))
    mislabelled = dataclasses.replace(digits, train_labels=noise)
    result = finetune(small, mislabelled, _recipe(epochs=1, lr=0.1))
    assert result.best_epoch == 0
    assert _same(before, small)


@pytest.mark.parametrize("kill_after", [1, 3])
def test_a_killed_run_ends_in_the_same_bits_as_an_undisturbed_one(
    small: nn.Module, digits: data.Dataset, tmp_path: Path, kill_after: int
) -> None:
    whole, start = copy.deepcopy(small), copy.deepcopy(small)
    undisturbed = finetune(whole, digits, _recipe())

    class Killed(BaseException):
        pass

    def kill(event: AnyEvent) -> None:
        if isinstance(event, Scored) and event.x > kill_after:
            raise AssertionError("nobody stopped it")
        if isinstance(event, Scored) and event.name == "loss" and event.x == kill_after:
            raise Killed

    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        finetune(small, digits, _recipe(), checkpoint=path, reporter=Reporter("j", kill))
    torch.manual_seed(99)  # another process, another random state
    events: list[AnyEvent] = []
    resumed = finetune(
        start, digits, _recipe(), checkpoint=path, reporter=Reporter("j", events.append)
    )
    assert next(e.n for e in events if isinstance(e, Advanced)) == kill_after
    assert resumed == undisturbed
    assert _same(whole, start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_run_is_not_run_again(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    start, path = copy.deepcopy(small), tmp_path / "run.safetensors"
    first = finetune(small, digits, _recipe(epochs=2), checkpoint=path)
    age = path.stat().st_mtime_ns
    assert finetune(start, digits, _recipe(epochs=2), checkpoint=path) == first
    assert _same(small, start)
    assert path.stat().st_mtime_ns == age


def test_cancelling_gives_up_the_epoch_and_can_be_resumed(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    whole, start, path = copy.deepcopy(small), copy.deepcopy(small), tmp_path / "run.safetensors"
    undisturbed = finetune(whole, digits, _recipe())
    batches = iter(range(10_000))
    stopped = finetune(
        small, digits, _recipe(), checkpoint=path, cancelled=lambda: next(batches) > 40
    )
    assert not stopped.finished
    assert len(stopped.epochs) == 2
    assert accuracy(small, digits.selection_images, digits.selection_labels) == stopped.accuracy
    assert finetune(start, digits, _recipe(), checkpoint=path) == undisturbed
    assert _same(whole, start)


def test_a_checkpoint_of_another_run_is_refused(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    start, path = copy.deepcopy(small), tmp_path / "run.safetensors"
    finetune(small, digits, _recipe(epochs=1), checkpoint=path)
    with pytest.raises(ValueError, match="belongs to a run with another"):
        finetune(copy.deepcopy(start), digits, _recipe(epochs=2), checkpoint=path)
    with pytest.raises(ValueError, match="belongs to a run with another"):
        finetune(small, digits, _recipe(epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"not a readable checkpoint .* remove it"):
        finetune(start, digits, _recipe(epochs=1), checkpoint=path)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"model": {"a/b": torch.rand(3), "n": torch.tensor(5)}, "best": {"x": torch.ones(2)}}
    checkpoints.save(tmp_path / "c", tensors, {"epochs": [1]})
    found, state = checkpoints.load(tmp_path / "c")
    assert state == {"epochs": [1]}
    assert torch.equal(found["model"]["a/b"], tensors["model"]["a/b"])
    assert found["model"]["n"].dtype == torch.int64


class Fragile(Small):
    """Answers with nonsense while its learning has gone too fast."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits * (torch.nan if self.conv.weight.abs().max() > 0.6 else 1.0)


def test_a_diverging_run_goes_back_with_a_lower_rate_and_says_so(digits: data.Dataset) -> None:
    torch.manual_seed(1)
    model, events = Fragile(), []
    result = finetune(
        model, digits, _recipe(epochs=3, lr=2.0), reporter=Reporter("j", events.append)
    )
    notes = [e.text for e in events if isinstance(e, Noted)]
    assert notes
    assert "diverged" in notes[0]
    assert "learning rate lowered to 0.4" in notes[0]
    assert len(result.epochs) == 3
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert result.accuracy > 0.5


def test_a_run_that_always_diverges_ends_with_one_sentence(digits: data.Dataset) -> None:
    class Broken(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    with pytest.raises(ValueError, match="training diverges in epoch 1 even at"):
        finetune(Broken(), digits, _recipe())


def test_distillation_brings_the_student_to_the_teacher(digits: data.Dataset) -> None:
    torch.manual_seed(0)
    teacher = Small().eval()
    torch.manual_seed(1)
    student = Small()
    images = torch.from_numpy(digits.test_images).float() / 255

    def agreement() -> float:
        with torch.no_grad():
            mine, theirs = student.eval()(images).argmax(1), teacher(images).argmax(1)
        return float((mine == theirs).float().mean())

    before, kept = agreement(), copy.deepcopy(teacher)
    # Nothing but the untrained teacher's answers is learnt; selection must not undo it.
    with torch.no_grad():
        labels = teacher(torch.from_numpy(digits.selection_images).float() / 255).argmax(1)
    taught = dataclasses.replace(digits, selection_labels=labels.numpy())
    recipe = _recipe(epochs=6, distill=1.0, temperature=1.0, augment=False)
    finetune(student, taught, recipe, teacher=teacher)
    assert agreement() > max(0.7, before + 0.3)
    assert _same(kept, teacher)
    assert not teacher.training


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill": 0.5}, "there is no teacher"),
        ({"lr": -1.0}, "the recipe's lr cannot be -1.0"),
        ({"batch": 1}, "the recipe's batch cannot be 1"),
        ({"threads": 0}, "threads cannot be 0"),
    ],
)
def test_a_senseless_recipe_is_refused(
    small: nn.Module, digits: data.Dataset, changes: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        finetune(small, digits, _recipe(**changes))


def test_a_network_for_other_data_is_refused(small: nn.Module, digits: data.Dataset) -> None:
    small.head = nn.Linear(8 * 64, 7)
    with pytest.raises(ValueError, match="tells 7 classes apart, digits has 10"):
        finetune(small, digits, _recipe())
    small.conv = nn.Conv2d(1, 8, 5)
    with pytest.raises(ValueError, match="cannot read the images of digits"):
        finetune(small, digits, _recipe())


def test_frozen_parameters_and_the_callers_random_state_stay(
    small: nn.Module, digits: data.Dataset
) -> None:
    small.conv.requires_grad_(False)
    before = small.conv.weight.detach().clone()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    finetune(small, digits, _recipe(epochs=1, threads=2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == 1
    assert torch.equal(small.conv.weight, before)


def test_schedules_lower_the_learning_rate(small: nn.Module, digits: data.Dataset) -> None:
    def rates(**changes: object) -> list[float]:
        result = finetune(copy.deepcopy(small), digits, _recipe(lr=0.1, **changes))
        return [epoch.lr for epoch in result.epochs]

    assert rates(schedule="step", step_epochs=2) == pytest.approx([0.1, 0.1, 0.01, 0.01])
    cosine = rates(schedule="cosine")
    assert cosine[0] == 0.1
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[2] == pytest.approx(0.05)


def test_bfloat16_learns_or_says_that_it_cannot(small: nn.Module, digits: data.Dataset) -> None:
    events: list[AnyEvent] = []
    finetune(small, digits, _recipe(bf16=True), reporter=Reporter("j", events.append))
    noted = any(isinstance(e, Noted) and "no bfloat16" in e.text for e in events)
    assert noted != torch.cpu._is_avx512_bf16_supported()
    assert accuracy(small, digits.test_images, digits.test_labels) > 0.8
    assert small.conv.weight.is_contiguous()
    assert small.conv.weight.dtype == torch.float32


def test_batch_norms_are_measured_anew_and_nothing_else_changes(
    small: nn.Module, digits: data.Dataset
) -> None:
    small.train()
    weights = {n: p.detach().clone() for n, p in small.named_parameters()}
    images = digits.train_images[:256]
    reestimate_batch_norm(small, images, batch=128)
    with torch.no_grad():
        features = small.conv(torch.from_numpy(images).float() / 255)
    assert torch.allclose(small.norm.running_mean, features.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(small.norm.running_var, features.var((0, 2, 3)), rtol=0.02)
    assert all(torch.equal(weights[n], p) for n, p in small.named_parameters())
    assert small.norm.momentum == 0.1
    assert all(m.training for m in small.modules())
    with pytest.raises(ValueError, match="two images at least"):
        reestimate_batch_norm(small, images[:1])


def test_accuracy_leaves_the_mode_and_refuses_no_images(
    small: nn.Module, digits: data.Dataset
) -> None:
    small.train()
    first = accuracy(small, digits.test_images, digits.test_labels, batch=100)
    assert first == accuracy(small, digits.test_images, digits.test_labels, batch=7)
    assert all(m.training for m in small.modules())
    with pytest.raises(ValueError, match="needs images"):
        accuracy(small, digits.test_images[:0], digits.test_labels[:0])
    images, labels = (torch.from_numpy(a) for a in (digits.test_images, digits.test_labels))
    assert evaluate(small, images, labels)[0] == first


def _write_npz(path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    bright = np.where(labels == 1, 200, 30)[:, None, None, None]
    images = (bright + rng.integers(0, 30, (64, 3, 32, 32))).astype(np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


def test_the_training_command_writes_weights_and_how_they_were_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = _write_npz(tmp_path / "own.npz")
    out = tmp_path / "w.safetensors"
    arguments = ["--data", str(own), "--out", str(out), "--epochs", "1"]
    assert main(arguments) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert record["command"].startswith("python -m engine.models.train --data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.npz", "w.json", "w.safetensors"]
    assert main(["--data", str(tmp_path), "--out", str(out)]) == 1
    assert "no CIFAR-10 in this folder" in capsys.readouterr().err


def test_a_process_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    own = _write_npz(tmp_path / "own.npz")
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    common = ["--network", "resnet8", "--data", str(own), "--epochs", "12", "--batch", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.models.train", *common, "--out", str(killed)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # ends when the process does
        if line.startswith("epoch 3: loss"):
            process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert killed.with_suffix(".checkpoint").exists()
    assert not killed.exists()
    assert main([*common, "--out", str(killed)]) == 0
    assert main([*common, "--out", str(whole)]) == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_images_without_labels_are_learnt_from_the_teacher_alone(
    small: nn.Module, digits: data.Dataset
) -> None:
    teacher = copy.deepcopy(small)
    finetune(teacher, digits, _recipe(epochs=6))
    none = dataclasses.replace(
        digits,
        train_labels=np.full_like(digits.train_labels, -1),
        selection_labels=np.full_like(digits.selection_labels, -1),
    )
    with pytest.raises(ValueError, match="without a label: they can only be learnt from"):
        finetune(small, none, _recipe())
    finetune(small, none, _recipe(distill=1.0, epochs=6), teacher=teacher)
    assert accuracy(small, digits.test_images, digits.test_labels) > 0.85
    answers = labelled(none, teacher).selection_labels
    assert accuracy(teacher, digits.selection_images, answers) == 1.0
    assert labelled(digits, teacher) is digits


def test_the_rate_rises_before_the_schedule_begins(small: nn.Module, digits: data.Dataset) -> None:
    result = finetune(small, digits, _recipe(lr=0.1, warmup_epochs=2.0, label_smoothing=0.1))
    rates = [epoch.lr for epoch in result.epochs]
    assert rates[0] < 0.01
    assert rates[0] < rates[1] < rates[2] == 0.1
    assert rates[3] == pytest.approx(0.05)


def test_two_processes_train_one_network_and_go_on_where_they_were_stopped(
    small: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    whole, stopped, resumed, alone = (copy.deepcopy(small) for _ in range(4))
    recipe, path = _recipe(epochs=12, processes=2), tmp_path / "run.safetensors"
    events: list[AnyEvent] = []
    undisturbed = finetune(whole, digits, recipe, reporter=Reporter("j", events.append))
    assert [e.n for e in events if isinstance(e, Advanced)][:3] == [1, 2, 3]
    assert undisturbed.finished
    assert accuracy(whole, digits.test_images, digits.test_labels) > 0.8

    cut = finetune(stopped, digits, recipe, checkpoint=path, cancelled=path.exists)
    assert not cut.finished
    assert 1 <= len(cut.epochs) < 12
    assert finetune(resumed, digits, recipe, checkpoint=path) == undisturbed
    assert _same(whole, resumed)

    # Averaged gradients of halves are the gradient of the whole, up to the batch norms.
    single = finetune(alone, digits, _recipe(epochs=12))
    assert undisturbed.epochs[0].loss == pytest.approx(single.epochs[0].loss, rel=0.1)


class Fatal(Small):
    """Ends the second process of a team."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and os.environ.get("RANK") == "1":
            os._exit(9)
        return super().forward(x)


def test_a_process_that_dies_is_one_clear_sentence(digits: data.Dataset) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    with pytest.raises(ValueError, match=r"ended unexpectedly .* the epochs before are kept"):
        finetune(Fatal(), digits, _recipe(processes=2))
    assert not multiprocessing.active_children()
