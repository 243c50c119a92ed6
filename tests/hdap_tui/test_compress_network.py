"""Which network a compression job starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.events import Reporter
from engine.models.resnet8 import ResNet8
from hdap_tui.actions.compress import _check_network
from hdap_tui.config import load
from hdap_tui.errors import SettingsError
from hdap_tui.jobs.compress import _Compression
from hdap_tui.jobs.parts import Job
from hdap_tui.jobs.steps import Steps

NETWORK = """
from engine.events import Reporter
from engine.models.resnet8 import ResNet8

def small(classes):
    return ResNet8(classes, (4, 4, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "tiny.npz",
        train_images=rng.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8),
        train_labels=np.arange(64) % 3,
        test_images=rng.integers(0, 256, (16, 3, 8, 8), dtype=np.uint8),
        test_labels=np.arange(16) % 3,
    )
    (tmp_path / "shop_networks.py").write_text(NETWORK)
    save_file(ResNet8(3, (4, 4, 4)).state_dict(), tmp_path / "w.safetensors")
    return tmp_path


def job(folder: Path, **changes: Any) -> Any:
    keys = {"network": "shop_networks:small", "weights": "w.safetensors", "data": "tiny.npz",
            "classes": 3, **changes}  # fmt: skip
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in keys.items()]
    file = folder / "fleet.toml"
    file.write_text("\n".join(["[compression]", *lines]) + "\n")
    settings = load(file)
    compression = msgspec.structs.replace(settings.compression, network=settings.network)
    request: dict[str, Any] = {
        "compression": msgspec.to_builtins(compression),
        "weights": str(settings.weights),
        "data": str(settings.data),
        "clusters": [],
    }
    unused: Any = None
    steps = Steps.of(request, compression)
    return _Compression(
        Job(unused, unused, settings, compression, request, steps, unused, unused, ())
    )


def test_a_users_own_network_beside_the_settings_is_loaded_with_its_weights(folder: Path) -> None:
    network, dataset = job(folder)._load()
    assert dataset.classes == ("0", "1", "2")
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    with_its_own, _ = job(folder, weights="")._load()
    assert not torch.equal(with_its_own.fc.weight, network.fc.weight)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 4}, "tiny has 3 classes, .* asked for 4: set compression.classes"),
        ({"network": "shop_networks:large"}, "large is not there in .*shop_networks.py"),
        ({"network": "resnet8"}, "w.safetensors: bn0.bias is .4. in the file and .16. in the"),
        ({"network": "resnet8", "weights": ""}, "resnet8 reads images of 32x32 pixels, and these"),
    ],
)
def test_what_does_not_fit_the_network_is_said_in_a_sentence(
    folder: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        job(folder, **changes)._load()


@pytest.mark.parametrize(
    ("network", "weights", "sentence"),
    [
        ("resnet21", "", 'No network is called "resnet21"; did you mean "resnet'),
        ("vgg16", "", "vgg16 comes without trained weights"),
        ("timm:resnet18", "", "timm:resnet18 comes without trained weights"),
        ("vgg16", "builtin:resnet20-digits", "are not the weights of vgg16"),
        ("/nowhere/net.onnx", "", "there is no file /nowhere/net.onnx"),
    ],
)
def test_what_no_job_could_start_from_is_refused_before_one_does(
    network: str, weights: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        _check_network(network, weights)


def test_a_network_that_brings_its_own_weights_needs_none() -> None:
    _check_network("resnet20", "builtin:resnet20-digits")
    _check_network("shop.networks:small", "")


def test_a_selection_split_that_the_network_was_trained_on_is_told(folder: Path) -> None:
    made, events = job(folder), []
    made.reporter = Reporter("compress-1", events.append)
    made._warn({"selection": 0.945, "test": 0.93})
    assert not events
    made._warn({"selection": 0.999, "test": 0.934})
    [note] = events
    assert "99.90% of the selection split right and 93.40% of the test images" in note.text
    assert "believe the test images" in note.text
