"""ConvNeXt's two layouts, how they are trained, and the table that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import convnext as benchmark
from benchmarks.convnext_study import Row, Study
from engine import data, models
from engine.compress.export import parity
from engine.compress.groups import choose, importance
from engine.compress.profile import Profile
from engine.compress.prunable import prunable
from engine.compress.prune import prune
from engine.compress.recipe import Recipe
from engine.models import convnext, convnext_timm, train

LAYOUTS = {"torchvision": convnext, "timm": convnext_timm}
HIDDEN = {
    "torchvision": ["features.1.0.block.3", "features.3.0.block.3", "features.3.1.block.3"],
    "timm": [f"stages.{name}.mlp.fc1" for name in ("0.blocks.0", "1.blocks.0", "1.blocks.1")],
}


def small(layout: ModuleType, seed: int = 0) -> nn.Module:
    """Return three blocks that speak up: fresh ones are scaled by 1e-6."""
    torch.manual_seed(seed)
    net: nn.Module = layout.ConvNeXt(5, (8, 12), blocks=(1, 2), patch=2, kernel=3)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 or name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.2, 1.0)
    return net.eval()


@pytest.mark.parametrize(("source", "target"), [("torchvision", "timm"), ("timm", "torchvision")])
def test_weights_of_one_layout_load_in_the_other_and_compute_the_same(
    tmp_path: Path, source: str, target: str
) -> None:
    theirs, ours = small(LAYOUTS[source], 1), small(LAYOUTS[target], 2)
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(theirs(images), ours(images), atol=1e-2)
        save_file(theirs.state_dict(), tmp_path / "w.safetensors")
        models.load_weights(ours, tmp_path / "w.safetensors")
        assert torch.allclose(theirs(images), ours(images), atol=1e-6)


def test_the_layouts_have_their_librarys_names_and_shapes() -> None:
    shapes = {n: tuple(t.shape) for n, t in small(convnext_timm).state_dict().items()}
    block = {
        n.removeprefix("stages.1.blocks.1."): s for n, s in shapes.items() if ".1.blocks.1" in n
    }
    assert block == {
        "gamma": (12,), "conv_dw.weight": (12, 1, 3, 3), "conv_dw.bias": (12,),
        "norm.weight": (12,), "norm.bias": (12,), "mlp.fc1.weight": (48, 12), "mlp.fc1.bias": (48,),
        "mlp.fc2.weight": (12, 48), "mlp.fc2.bias": (12,),
    }  # fmt: skip
    others = [name for name in shapes if name.endswith("weight") and ".blocks." not in name]
    assert others == [
        "stem.0.weight", "stem.1.weight", "stages.1.downsample.0.weight",
        "stages.1.downsample.1.weight", "head.norm.weight", "head.fc.weight",
    ]  # fmt: skip
    theirs = small(convnext).state_dict()
    assert theirs["features.3.1.layer_scale"].shape == (12, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_give_up_hidden_channels_only_and_say_why(layout: str) -> None:
    model, images = small(LAYOUTS[layout]), torch.rand(2, 3, 16, 16)
    found = prunable(model, images)
    assert [group.name for group in found.groups] == HIDDEN[layout]
    assert [group.channels for group in found.groups] == [32, 48, 48]
    assert len(found.whole) == 2
    assert all("a LayerNorm, cannot be sliced" in reason for reason in found.whole.values())
    design = choose(found.groups, [0.75] * 3, importance(model, found.groups))
    pruned = prune(model, found.groups, design)
    assert design.widths == (8, 12, 12)
    weights = [m.weight.shape for m in pruned.modules() if isinstance(m, nn.Linear)]
    assert weights == [(8, 8), (8, 8), (12, 12), (12, 12), (12, 12), (12, 12), (5, 12)]


def test_both_layouts_keep_the_same_channels_for_the_same_weights(tmp_path: Path) -> None:
    theirs, ours = small(convnext, 1), small(convnext_timm, 2)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    models.load_weights(ours, tmp_path / "w.safetensors")
    images = torch.rand(2, 3, 16, 16)
    pruned = []
    for model in (theirs, ours):
        groups = prunable(model, images).groups
        design = choose(groups, [0.5] * 3, importance(model, groups))
        pruned.append((design, prune(model, groups, design)))
    assert pruned[0][0] == pruned[1][0]
    with torch.no_grad():
        assert torch.allclose(pruned[0][1](images), pruned[1][1](images), atol=1e-6)


def test_a_networks_own_recipe_makes_sense_and_the_command_line_wins() -> None:
    for network in models.NETWORKS.values():
        Recipe(**network.recipe).check()
    given = ["--network", "convnext-pico-cifar", "--out", "w", "--lr", "0.5", "--no-bf16"]
    parse = train._parser().parse_args
    found = train._recipe(parse(given))
    assert (found.optimizer, found.label_smoothing, found.warmup_epochs) == ("adamw", 0.1, 2.0)
    assert (found.lr, found.bf16) == (0.5, False)
    assert train._recipe(parse([*given, "--epochs", "1"])).warmup_epochs == 0.1
    common = train._recipe(parse(["--out", "w"]))
    assert common == Recipe(epochs=40, lr=0.1, nesterov=True, weight_decay=5e-4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits, at a quarter of their pixels."""
    digits, path = data.load("digits"), tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(
        path,
        train_images=digits.train_images[:300, :, ::2, ::2],
        train_labels=digits.train_labels[:300],
        test_images=digits.test_images[:64, :, ::2, ::2],
        test_labels=digits.test_labels[:64],
    )
    return path


def test_the_training_command_trains_a_convnext_by_its_recipe(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "tiny.npz",
        train_images=random.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8),
        train_labels=np.arange(40) % 3,
        test_images=random.integers(0, 256, (16, 3, 32, 32), dtype=np.uint8),
        test_labels=np.arange(16) % 3,
    )
    out, name = tmp_path / "w.safetensors", "convnext-pico-timm-cifar"
    given = ["--network", name, "--data", str(tmp_path / "tiny.npz"), "--out", str(out)]
    assert train.main([*given, "--epochs", "1", "--device", "cpu"]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["recipe"]["optimizer"] == "adamw"
    assert record["recipe"]["epochs"] == 1
    models.load("convnext-pico-cifar", 3, out, example_shape=(2, 3, 32, 32))


def test_the_table_is_made_in_pieces_and_nothing_is_trained_twice(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_convnext.py").write_text(
        "from engine.models.convnext_timm import ConvNeXt\n"
        "def small(classes):\n"
        "    return ConvNeXt(classes, (16, 32), blocks=(1, 1), patch=2, kernel=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    save_file(small_digits().state_dict(), "w.safetensors")
    given = [
        "--data", str(pictures), "--weights", "w.safetensors", "--networks", "my_convnext:small",
        "--epochs", "1", "--sparse-epochs", "2", "--batch", "64", "--threads", "1",
        "--kept", "0.25", "--folder", "kept",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        benchmark.main([*given, "--seconds", "0"])
    assert ended.value.code == 75
    assert "small, original-tuned: 0 epochs are done: run it again" in capsys.readouterr().err
    assert benchmark.main(given) == 0
    out, progress = capsys.readouterr()
    assert "small dhspg, epoch 2: channels 0.2500" in progress
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    rows = [dict(zip(cells[0], each, strict=True)) for each in cells[2:]]
    titles = [each["method"] for each in rows]
    assert titles == [title for title in dict.fromkeys(titles) for _ in range(2)]
    assert [each["fine-tuned"] for each in rows] == ["no", "yes"] * 6
    assert [each["epochs"] for each in rows] == [*"01" * 3, "2", "3", "0", "1", "2", "3"]
    whole, sparse, compact, dynamic = (rows[i] for i in (0, 2, 7, 8))
    assert int(sparse["non-zeros"]) < 0.6 * int(whole["non-zeros"])
    assert sparse["bytes"] == whole["bytes"]
    assert int(compact["parameters"]) < 0.5 * int(whole["parameters"])
    assert float(compact["MACs"].split()[0]) < float(whole["MACs"].split()[0])
    assert int(dynamic["bytes"]) < int(whole["bytes"])
    assert out.count("Goal not met: OTO (DHSPG) + dynamic quantization") == 2
    assert "2 groups of 192 channels in all can be pruned, 25% stay; these keep all" in out

    options = benchmark._parser().parse_args(given)
    again = Study(options.networks[0], options, data.load(pictures), end=0.0)
    images = again.example
    for method, number in (("l1", 3), ("dhspg", 7)):  # timm's layout, whole and pruned
        file = Path("kept") / "small" / f"{method}-tuned.onnx"
        assert parity(file, again.network(method, tuned=True), images) < 1e-5
        assert parameters(again.network(method, tuned=True)) == int(rows[number]["parameters"])
    assert benchmark.main([*given, "--epochs", "3"]) == 1
    assert "kept holds networks of another epochs: give another" in capsys.readouterr().err


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small_digits() -> nn.Module:
    torch.manual_seed(0)
    net = convnext.ConvNeXt(10, (16, 32), blocks=(1, 1), patch=2, kernel=3)
    for name, parameter in net.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.ones_(parameter)
    return net


def test_the_goal_is_computed_from_sizes_and_accuracies() -> None:
    original = Row("original", False, False, 0, 0.9, Profile(1, 1, 1), 10_000, Path("a"))
    longer = replace(original, tuned=True, accuracy=0.91)
    both = replace(original, method="dhspg", quantized=True, bytes=1030)
    (met,) = benchmark.goal([original, longer, both])
    assert met.startswith("Goal met: OTO (DHSPG) + dynamic quantization, not fine-tuned, is 89.70%")
    assert "+0.00 points of accuracy against the original" in met
    assert "-1.00 against it fine-tuned" in met
    for worse in (replace(both, bytes=1031), replace(both, accuracy=0.8999)):
        assert benchmark.goal([original, longer, worse])[0].startswith("Goal not met")
