from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engine import data
from engine.compress.executed import executed
from engine.compress.export import Template, export
from engine.compress.quantize import PRESETS, onnx_accuracy, quantize_dynamic


@pytest.fixture(scope="module")
def file(
    reader: nn.Module, reader_template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return reader_template.write(reader, tmp_path_factory.mktemp("float") / "m.onnx").path


@pytest.mark.parametrize("preset", list(PRESETS))
def test_linear_layers_become_integers_and_convolutions_stay(
    file: Path, digits: data.Dataset, tmp_path: Path, preset: str
) -> None:
    result = quantize_dynamic(file, tmp_path / "m.onnx", preset)  # type: ignore[arg-type]
    ran = executed(result.path)
    assert (ran.integer, ran.floating) == (("7", "9"), ("0", "2", "4"))
    assert result.bytes < 0.5 * file.stat().st_size
    before = onnx_accuracy(file, digits.test_images, digits.test_labels)
    assert onnx_accuracy(result.path, digits.test_images, digits.test_labels) > before - 0.01
    again = quantize_dynamic(file, tmp_path / "again.onnx", preset)  # type: ignore[arg-type]
    assert again.digest == result.digest


def test_convolutions_become_integers_when_asked_for(
    file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    result = quantize_dynamic(file, tmp_path / "m.onnx", operators=["Conv", "MatMul", "Gemm"])
    assert executed(result.path).integer == ("0", "2", "4", "7", "9")
    proto = onnx.load(result.path)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    kinds = {
        node.op_type: values[node.input[1]].dtype
        for node in proto.graph.node
        if node.op_type in ("ConvInteger", "MatMulInteger")
    }
    assert kinds == {"ConvInteger": np.uint8, "MatMulInteger": np.int8}
    before = onnx_accuracy(file, digits.test_images, digits.test_labels)
    assert onnx_accuracy(result.path, digits.test_images, digits.test_labels) > before - 0.02
    only = quantize_dynamic(file, tmp_path / "only.onnx", operators=["Conv"])
    assert executed(only.path).integer == ("0", "2", "4")


class Tokens(nn.Module):
    """A linear layer on a sequence, which is exported as MatMul."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.mix = nn.Linear(32, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.patch(x).flatten(2).transpose(1, 2)).relu()
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_a_linear_layer_on_a_sequence_becomes_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = export(Tokens().eval(), torch.rand(2, 3, 32, 32), tmp_path / "m.onnx").path
    ran = executed(quantize_dynamic(source, tmp_path / "d.onnx").path)
    assert len(ran.integer) == 2
    assert "head" in ran.integer
    assert ran.floating == ("patch",)


def test_an_operator_without_such_a_kernel_is_refused(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "d.onnx"
    for operators, message in (
        (["MatMul", "Relu"], "no kernel that quantizes Relu while it runs"),
        ([], "quantizes nothing while"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_dynamic(file, target, operators=operators)
    assert not target.exists()


def test_a_network_without_such_weights_and_a_quantized_one_are_refused(
    file: Path, example: torch.Tensor, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convolution = export(model, example, tmp_path / "c.onnx").path
    with pytest.raises(ValueError, match="no weights of MatMul or Gemm that could be quantized"):
        quantize_dynamic(convolution, tmp_path / "d.onnx")
    once = quantize_dynamic(file, tmp_path / "once.onnx")
    with pytest.raises(ValueError, match="already quantized"):
        quantize_dynamic(once.path, tmp_path / "d.onnx")
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        quantize_dynamic(tmp_path / "absent.onnx", tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()
