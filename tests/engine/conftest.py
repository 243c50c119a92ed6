from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from engine import data, models
from engine.compress.export import Template
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import Group, trace
from engine.models import builtin
from engine.models.resnet import ResNet

torch.set_num_threads(1)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and scales unlike those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="session", autouse=True)
def operators_of_the_exporter() -> Iterator[None]:
    """Let torch's exporter list its operators once: for a small network that is half its work."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


@pytest.fixture(scope="session")
def example() -> torch.Tensor:
    """Two random images."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """ResNet-20 with random weights and lively batch norms; nobody may change it."""
    torch.manual_seed(0)
    return shake(models.build("resnet20")).eval()


@pytest.fixture(scope="session")
def resnet_groups(resnet: nn.Module, example: torch.Tensor) -> tuple[Group, ...]:
    """Its twelve dependency groups."""
    return trace(resnet, example)


@pytest.fixture(scope="session")
def template(
    resnet: nn.Module, resnet_groups: tuple[Group, ...], example: torch.Tensor
) -> Template:
    """Its ONNX template: exporting takes seconds, so it is done once."""
    return Template(resnet, example, resnet_groups)


@pytest.fixture(scope="session")
def short_resnet() -> nn.Module:
    """A ResNet of one block a stage, of all kinds of layers that ResNet-20 has."""
    torch.manual_seed(0)
    return shake(ResNet(blocks=1)).eval()


@pytest.fixture(scope="session")
def short_groups(short_resnet: nn.Module, example: torch.Tensor) -> tuple[Group, ...]:
    """Its dependency groups."""
    return trace(short_resnet, example)


@pytest.fixture(scope="session")
def short_template(
    short_resnet: nn.Module, short_groups: tuple[Group, ...], example: torch.Tensor
) -> Template:
    """Its ONNX template."""
    return Template(short_resnet, example, short_groups)


@pytest.fixture(scope="session")
def short_file(
    short_resnet: nn.Module, short_template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """It as ONNX."""
    return short_template.write(short_resnet, tmp_path_factory.mktemp("short") / "m.onnx").path


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    """scikit-learn's digits."""
    return data.load("digits")


@pytest.fixture(scope="session")
def reader(digits: data.Dataset) -> nn.Module:
    """A small network that reads digits, trained; nobody may change it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    finetune(model, digits, Recipe(epochs=4, lr=0.05, augment=False))
    return model.eval()


@pytest.fixture(scope="session")
def reader_template(reader: nn.Module, example: torch.Tensor) -> Template:
    """The ONNX template of the reader, and of what has its layers with other weights."""
    return Template(reader, example)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The network that comes along, as ONNX, and the digest that it was written with."""
    path = tmp_path_factory.mktemp("shipped") / "digits.onnx"
    return path, builtin.write("resnet20-digits", path)
