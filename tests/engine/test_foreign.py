"""A user's own network, and what can be wrong with it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from engine import models

MODULE = """
import torch
from torch import nn

def good(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))

def two_outputs(classes):
    class Both(nn.Module):
        def forward(self, x):
            return x, x
    return Both()

def ten(classes):
    return good(10)

def broken(classes):
    raise RuntimeError("no such file: weights.bin")

def no_network(classes):
    return 7

def no_arguments():
    return good(4)

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "networks.py").write_text(MODULE)
    (tmp_path / "shop" / "faulty.py").write_text("def good(classes:\n")
    yield tmp_path
    for name in [n for n in sys.modules if n == "shop" or n.startswith("shop.")]:
        del sys.modules[name]


def test_a_factory_beside_the_settings_is_found_and_called_with_the_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"shop\.networks cannot be imported .* on Python's path"):
        models.load("shop.networks:good", 4)
    net = models.load("shop.networks:good", 4, example_shape=(2, 3, 8, 8), folder=folder)
    assert not net.training
    assert net(torch.rand(5, 3, 8, 8)).shape == (5, 4)
    assert sys.path[-1] == str(folder), "at the end, where it hides no installed module"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("shop.nothing:good", r"shop\.nothing cannot be imported \(No module named"),
        ("shop.faulty:good", r"shop\.faulty cannot be imported \('\(' was never closed"),
        ("shop.networks:better", r"better is not there in .*networks\.py"),
        ("shop.networks:number", "number is no function"),
        ("shop.networks:broken", "classes=4 it raised RuntimeError: no such file"),
        ("shop.networks:no_arguments", "classes=4 it raised TypeError"),
        ("shop.networks:no_network", r"must return a torch\.nn\.Module, not int"),
        ("shop.networks:ten", r"gives \[2, 10\] for 2 images .* each of the 4 classes, \[2, 4\]"),
        ("shop.networks:two_outputs", "gives tuple for 2 images"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said_in_one_sentence(
    folder: Path, spec: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        models.load(spec, 4, example_shape=(2, 3, 8, 8), folder=folder)
    assert "\n" not in str(caught.value)


def test_images_that_a_network_does_not_read_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not run on images of 9x9 pixels and 3 channels"):
        models.load("shop.networks:good", 4, example_shape=(2, 3, 9, 9), folder=folder)
    with pytest.raises(ValueError, match="resnet50 reads images of 224x224 pixels, and these"):
        models.load("resnet50", 10, example_shape=(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"resnet8 reads 3 channels, and these .* and 1 channels"):
        models.load("resnet8", 10, example_shape=(2, 1, 32, 32))


@pytest.mark.parametrize("spec", ["resnet21", "timm:", "a b:c", "net.pth", "module:", ":function"])
def test_what_is_no_network_is_refused_with_all_forms(spec: str) -> None:
    with pytest.raises(ValueError, match=r"or give timm:NAME, package\.module:function or the pa"):
        models.load(spec, 10)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("resnet20", "resnet20"), ("timm:resnet18", "resnet18"),
        ("shop.networks:good", "good"), ("/a/b/net.v2.onnx", "net.v2"),
    ],
)  # fmt: skip
def test_a_network_has_a_short_name_for_files(spec: str, name: str) -> None:
    assert models.title(spec) == name


def test_without_timm_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 needs timm.*the extra hdap-tui\[timm\]"):
        models.load("timm:resnet18", 10)


def test_a_network_of_timm_reads_plain_images_and_prunes() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from engine.compress.prunable import prunable

    net = models.load("timm:convnext_atto", 5, example_shape=(2, 3, 32, 32))
    assert net.get_buffer("normalise.mean").flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )
    found = prunable(net, torch.rand(2, 3, 32, 32))
    assert {group.name.rpartition(".")[2] for group in found.groups} == {"fc1"}
    with pytest.raises(ValueError, match="timm makes no network 'resnet1'"):
        models.load("timm:resnet1", 5)


def test_a_wrapped_networks_own_names_load(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from engine.models.normalise import Normalised

    bare = nn.Sequential(nn.Conv2d(3, 4, 1))
    save_file(bare.state_dict(), tmp_path / "w.safetensors")
    wrapped = Normalised(nn.Sequential(nn.Conv2d(3, 4, 1)), (0.5,) * 3, (0.5,) * 3)
    models.load_weights(wrapped, tmp_path / "w.safetensors")
    assert torch.equal(wrapped.get_parameter("network.0.weight"), bare[0].weight)
