from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from engine import data, models
from engine.compress.evaluate import accuracy

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def image_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("resnet20").eval()


def test_resnet20_has_the_published_number_of_parameters(image_net: torch.nn.Module) -> None:
    learnt = sum(p.numel() for p in image_net.parameters() if p.requires_grad)
    assert learnt == 269_722
    assert image_net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_equals_a_strided_slice_with_zero_channels(
    image_net: torch.nn.Module,
) -> None:
    x = torch.rand(2, 16, 8, 8)
    published = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(image_net.get_submodule("layer2.0.shortcut")(x), published)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'resnet21': choose one of resnet20, resnet32"):
        models.build("resnet21")


def test_weights_of_another_network_are_refused(tmp_path: Path, image_net: torch.nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    save_file(models.build("resnet32").state_dict(), path)
    with pytest.raises(ValueError, match=r"the network has no layer1\.3\.bn1"):
        models.load_weights(image_net, path)
    save_file(models.build("resnet20", classes=7).state_dict(), path)
    with pytest.raises(ValueError, match=r"linear\.bias is \[7\] in the file and \[10\]"):
        models.load_weights(image_net, path)
    tensors = image_net.state_dict()
    del tensors["layer3.2.bn2.bias"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"layer3\.2\.bn2\.bias is missing"):
        models.load_weights(image_net, path)


def test_a_file_that_is_no_safetensors_is_refused(
    tmp_path: Path, image_net: torch.nn.Module
) -> None:
    (tmp_path / "w").write_bytes(b"hello")
    for name in ("w", "absent"):
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            models.load_weights(image_net, tmp_path / name)


def test_the_public_resnet20_reaches_its_published_accuracy() -> None:
    sheet, weights = SHARED / "cifar10" / "test_00.webp", SHARED / "weights_cifar10"
    if not sheet.exists() or not weights.exists():
        pytest.skip("the shared CIFAR-10 and its weights are not here")
    image = pytest.importorskip("PIL.Image")
    pixels = np.asarray(image.open(sheet).convert("RGB"))
    images = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    with np.load(SHARED / "cifar10" / "labels.npz") as file:
        labels = file["test_labels"][:500]
    net = models.build("resnet20")
    models.load_weights(net, weights / "resnet20_akamaster.safetensors").eval()
    with torch.no_grad():
        found = net(torch.from_numpy(images[:500].copy()).float() / 255).argmax(1).numpy()
    assert 0.90 < float((found == labels).mean()) < 0.94


def test_the_shipped_weights_have_the_accuracy_that_stands_beside_them() -> None:
    path = models.SHIPPED["resnet20-digits"]
    record = json.loads(path.with_suffix(".json").read_text())
    digits = data.load(record["data"], record["seed"])
    net = models.load_weights(models.build(record["network"], record["classes"]), path)
    found = accuracy(net, digits.test_images, digits.test_labels)
    assert found >= 0.985
    assert round(found, 4) == record["test_accuracy"]
    assert path.stat().st_size < 1.2e6
