from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

from engine import data, models
from engine.compress.export import Template
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import Group, trace

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
