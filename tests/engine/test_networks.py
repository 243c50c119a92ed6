"""Every family, as narrow as it gets: traced, guarded, pruned, exported, and run as ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shake
from safetensors.torch import save_file
from torch import Tensor, nn

from engine import models
from engine.compress.export import Template, parity
from engine.compress.groups import choose, importance
from engine.compress.profile import macs
from engine.compress.prunable import Prunable, prunable
from engine.compress.prune import prune
from engine.fleet.geometry import measure_geometry
from engine.models.convnext import Block, ConvNeXt
from engine.models.mobilenet import MobileNet
from engine.models.resnet8 import ResNet8
from engine.models.resnet50 import ResNet50
from engine.models.vgg import VGG

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def convnext(widths: tuple[int, ...] = (4, 6), patch: int = 4) -> ConvNeXt:
    net = ConvNeXt(5, widths, blocks=(1,) * len(widths), patch=patch)
    for module in net.modules():
        if isinstance(module, Block):
            # Fresh blocks hardly speak: 1e-6.
            nn.init.uniform_(module.layer_scale, 0.2, 1.0)
    return net


FAMILIES = {
    "resnet8": (lambda: ResNet8(5, (6, 8, 10)), 16, 6),
    "resnet8 folded": (lambda: ResNet8(5, (6, 8, 10), norms=False), 16, 6),
    "resnet50": (lambda: ResNet50(5, (2, 3, 2, 3), blocks=(2, 1, 1, 1)), 32, 15),
    "vgg16": (lambda: VGG(5, (3, 4, 5, 6, 7), hidden=8), 32, 15),
    "mobilenetv1": (lambda: MobileNet(5, (4, 6, 8), blocks=(1, 2)), 32, 4),
    "convnext": (convnext, 32, 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_prunes_and_exports_and_onnx_runtime_agrees(name: str) -> None:
    torch.manual_seed(0)
    make, size, count = FAMILIES[name]
    model = shake(make()).eval()
    images = torch.rand(2, 3, size, size)
    groups = prunable(model, images).groups
    assert len(groups) == count
    design = choose(groups, [0.5] * count, importance(model, groups))
    pruned = prune(model, groups, design)
    assert all(k <= (g.channels + 1) // 2 for k, g in zip(design.widths, groups, strict=True))
    counted = measure_geometry(model, groups, images).macs([design.widths])
    assert counted.sum() == macs(pruned, images)
    template = Template(model, images, groups)
    assert parity(template.build(pruned), pruned, images) < 1e-5


def test_a_convnext_gives_up_hidden_channels_only_and_says_why() -> None:
    found = prunable(convnext().eval(), torch.rand(2, 3, 32, 32))
    assert [g.name for g in found.groups] == ["features.1.0.block.3", "features.3.0.block.3"]
    assert "a LayerNorm, cannot be sliced" in found.sentence
    assert len(found.whole) == 2


def test_a_group_that_prunes_wrongly_is_left_out_and_named() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            return self.linear(self.second(x).relu().mean((2, 3)))

    torch.manual_seed(1)
    found = prunable(Shuffled(), torch.rand(2, 3, 8, 8))
    assert [group.name for group in found.groups] == ["second"]
    assert found.sentence.startswith("these keep all their channels: first (")
    with pytest.raises(ValueError, match="no layer that can be pruned safely: first: "):
        prunable(Shuffled(), torch.rand(2, 3, 8, 8), ignored=("second",))
    assert Prunable(found.groups).sentence == ""


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet50", 1000, 25_557_032),
        ("mobilenetv1", 1000, 4_231_976),
        ("convnext-tiny", 1000, 28_589_128),
        ("convnext-small", 1000, 50_223_688),
        ("vgg16", 10, 15_253_578),
        ("resnet8", 10, 78_186),
    ],
)
def test_built_in_networks_have_the_published_number_of_parameters(
    name: str, classes: int, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(models.build(name, classes)) == count


@pytest.mark.parametrize("name", models.NAMES)
def test_every_built_in_network_reads_images_of_its_size(name: str) -> None:
    size = models.NETWORKS[name].size
    with torch.device("meta"):
        model = models.build(name, 7).eval()
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_timms_names_of_a_convnext_load_in_both_forms_of_its_block(tmp_path: Path) -> None:
    theirs = {
        "features.0.": "stem.", "features.1.": "stages.0.blocks.",
        "features.2.": "stages.1.downsample.", "features.3.": "stages.1.blocks.",
        ".block.0.": ".conv_dw.", ".block.2.": ".norm.", ".block.3.": ".mlp.fc1.",
        ".block.5.": ".mlp.fc2.", ".layer_scale": ".gamma",
        "classifier.0.": "head.norm.", "classifier.2.": "head.fc.",
    }  # fmt: skip
    torch.manual_seed(2)
    source, path = convnext().eval(), tmp_path / "timm.safetensors"
    images = torch.rand(2, 3, 32, 32)
    for convolutions in (False, True):
        tensors = {}
        for name, tensor in source.state_dict().items():
            if name.startswith("normalise."):
                continue
            for own, timms in theirs.items():
                name = name.replace(own, timms)
            if name.endswith(".gamma"):
                tensor = tensor.flatten()
            if convolutions and ".mlp." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            tensors[name] = tensor.contiguous()
        assert "stages.1.blocks.0.mlp.fc1.weight" in tensors
        save_file(tensors, path)
        loaded = models.load_weights(convnext(), path).eval()
        assert torch.equal(loaded(images), source(images))


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_in_torchs_own_format_load_without_running_code(
    tmp_path: Path, wrapped: bool
) -> None:
    source = ResNet8(5, (4, 4, 4))
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    loaded = models.load_weights(ResNet8(5, (4, 4, 4)), path)
    assert torch.equal(loaded.get_parameter("s1a.weight"), source.s1a.weight)


def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "touched",))  # type: ignore[return-value]

    path = tmp_path / "w.pth"
    for content, sentence in (
        (Evil(), "holds more than weights"),
        ({"epoch": 3}, "holds more than weights"),
        ({}, "holds no weights by name"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=sentence):
            models.load_weights(ResNet8(5, (4, 4, 4)), path)
    assert not (tmp_path / "touched").exists()
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"w\.pth: "):
        models.load_weights(ResNet8(5, (4, 4, 4)), path)


@pytest.mark.parametrize(
    ("name", "file", "low", "high"),
    [
        ("resnet8", "resnet8_mlperf_tiny", 0.85, 0.90),
        ("resnet8-40", "resnet8w40_mlperf_tiny_fused", 0.89, 0.94),
    ],
)
def test_the_public_resnet8_reaches_its_published_accuracy(
    name: str, file: str, low: float, high: float
) -> None:
    sheet, weights = SHARED / "cifar10" / "test_00.webp", SHARED / "weights_cifar10"
    if not sheet.exists() or not weights.exists():
        pytest.skip("the shared CIFAR-10 and its weights are not here")
    image = pytest.importorskip("PIL.Image")
    pixels = np.asarray(image.open(sheet).convert("RGB"))
    images = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    with np.load(SHARED / "cifar10" / "labels.npz") as labels:
        wanted = labels["test_labels"][:500]
    net = models.load(name, 10, weights / f"{file}.safetensors", example_shape=(2, 3, 32, 32))
    with torch.no_grad():
        found = net(torch.from_numpy(images[:500].copy()).float() / 255).argmax(1).numpy()
    assert low < float((found == wanted).mean()) < high


def test_training_any_network_writes_weights_that_load_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.models.train import main

    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "tiny.npz",
        train_images=rng.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8),
        train_labels=np.arange(64) % 3,
        test_images=rng.integers(0, 256, (16, 3, 8, 8), dtype=np.uint8),
        test_labels=np.arange(16) % 3,
    )
    (tmp_path / "my_small_network.py").write_text(
        "from engine.models.resnet8 import ResNet8\n"
        "def small(classes):\n    return ResNet8(classes, (4, 4, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    spec = "my_small_network:small"
    given = ["--network", spec, "--data", "tiny.npz", "--out", "w.safetensors", "--epochs", "1"]
    assert main(given) == 0
    assert json.loads((tmp_path / "w.json").read_text())["network"] == spec
    loaded = models.load(spec, 3, "w.safetensors", example_shape=(2, 3, 8, 8))
    assert not loaded.training
    assert main([*given[:1], "net.onnx", *given[2:]]) == 1
