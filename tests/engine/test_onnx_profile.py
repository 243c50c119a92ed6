"""What a file costs, counted from the file alone, against what torch counts of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from engine.compress.executed import name_layers
from engine.compress.export import Template, export
from engine.compress.onnx_profile import profile_file
from engine.compress.profile import profile
from engine.compress.quantize import quantize_dynamic, quantize_static
from engine.compress.weight_bits import four_bits, packable


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def file(resnet: nn.Module, template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template.write(resnet, tmp_path_factory.mktemp("float") / "m.onnx").path


class Tokens(nn.Module):
    """Linear layers on a sequence, of which one has no whole number of blocks of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.mix = nn.Linear(32, 70)
        self.back = nn.Linear(70, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.patch(x).flatten(2).transpose(1, 2)).relu()
        logits: Tensor = self.head(self.back(x).mean(1))
        return logits


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Tokens().eval()
    path = tmp_path_factory.mktemp("tokens") / "m.onnx"
    return model, export(model, torch.rand(2, 3, 32, 32), path).path


def test_a_file_has_what_torch_counts_but_one_number_for_each_folded_channel(
    resnet: nn.Module, example: Tensor, file: Path
) -> None:
    counted, expected = profile_file(file), profile(resnet, example, file)
    folded = sum(m.num_features for m in resnet.modules() if isinstance(m, nn.BatchNorm2d))
    assert counted.macs == expected.macs == 40_813_184
    assert counted.parameters == expected.parameters - folded
    assert (counted.bytes, counted.compressed_bytes) == (
        file.stat().st_size,
        expected.compressed_bytes,
    )


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.PReLU(8),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2),
        ),
        nn.Sequential(nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 5), nn.GELU()),
    ],
    ids=["convolutions", "sequence"],
)  # fmt: skip
def test_where_nothing_is_folded_a_file_has_exactly_what_torch_counts(
    model: nn.Module, tmp_path: Path
) -> None:
    whole, x = nn.Sequential(model, nn.Flatten()).eval(), torch.rand(2, 3, 8, 8)
    counted = profile_file(export(whole, x, tmp_path / "m.onnx").path)
    expected = profile(whole, x)
    assert (counted.parameters, counted.nonzeros) == (expected.parameters, expected.nonzeros)
    assert counted.macs == expected.macs


def test_a_quantized_network_has_as_many_parameters_and_operations_as_before(
    file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    before = profile_file(file)
    found = [
        quantize_static(file, tmp_path / "x86.onnx", images).path,
        quantize_static(file, tmp_path / "arm.onnx", images, "arm64").path,
        quantize_static(file, tmp_path / "half.onnx", images, floating=["layer1.1.conv1"]).path,
        quantize_dynamic(file, tmp_path / "dynamic.onnx", operators=["Conv", "Gemm"]).path,
        _whole_operators(file, images, tmp_path),
        _four_bits(file, tmp_path),
    ]
    for path in found:
        after = profile_file(path)
        assert (after.parameters, after.macs) == (before.parameters, before.macs), path
        assert 0.8 * before.nonzeros < after.nonzeros < before.nonzeros, path
        assert after.bytes is not None
        assert before.bytes is not None
        assert after.bytes < 0.5 * before.bytes


def _whole_operators(file: Path, images: np.ndarray, folder: Path) -> Path:
    """Quantize to QLinearConv, QGemm and QLinearAdd, which other tools write."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([{"images": images[:4].astype(np.float32) / 255}])

        def get_next(self) -> object:
            return next(self._left, None)

    quant_pre_process(file, folder / "pre.onnx", skip_symbolic_shape=True)
    quantization.quantize_static(
        folder / "pre.onnx",
        folder / "whole.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QOperator,
        per_channel=True,
    )
    return folder / "whole.onnx"


def _four_bits(file: Path, folder: Path) -> Path:
    proto = onnx.load(file)
    name_layers(proto.graph)
    onnx.save(four_bits(proto, packable(proto.graph)), folder / "four.onnx")
    return folder / "four.onnx"


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_packed_by_a_few_bits_are_counted_one_by_one(
    tokens: tuple[nn.Module, Path], tmp_path: Path, symmetric: bool
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.quant_utils import QuantFormat

    _, path = tokens
    before, found = profile_file(path), []
    for kind in (QuantFormat.QOperator, QuantFormat.QDQ):
        quantizer = MatMulNBitsQuantizer(
            onnx.load(path), block_size=16, is_symmetric=symmetric, quant_format=kind
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(tmp_path / "n.onnx"))
        found.append(profile_file(tmp_path / "n.onnx"))
    packed, plain = found
    assert packed.parameters == plain.parameters == before.parameters
    assert packed.macs == plain.macs == before.macs
    # Two ways to write the same numbers: in bytes of an own layout, and as ONNX's type INT4.
    assert packed.nonzeros == plain.nonzeros < before.nonzeros


def test_pruned_weights_are_parameters_but_no_nonzeros(
    tokens: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, path = tokens
    proto = onnx.load(path)
    (weight,) = (i for i in proto.graph.initializer if list(i.dims) == [32, 3, 8, 8])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[::2] = 0
    weight.raw_data = values.tobytes()
    onnx.save(proto, tmp_path / "sparse.onnx")
    found, before = profile_file(tmp_path / "sparse.onnx"), profile(model, torch.rand(1, 3, 32, 32))
    assert found.parameters == before.parameters
    assert found.nonzeros == before.nonzeros - 16 * 3 * 64
    assert found.macs == before.macs


def _save(path: Path, nodes: list[onnx.NodeProto], shape: list[object], **tensors: object) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_quantized_number_is_zero_where_it_equals_its_zero_point(tmp_path: Path) -> None:
    weights = np.arange(2 * 3, dtype=np.int8).reshape(2, 3, 1, 1)  # 0 1 2, 3 4 5
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z", "b"], ["y"])
    found = profile_file(
        _save(
            tmp_path / "m.onnx", [node], ["n", 3, 4, 4], w=weights, wz=np.array([2, 9], np.int8),
            s=np.float32(1), z=np.uint8(7), b=np.array([0, 5], np.int32),
        )
    )  # fmt: skip
    assert (found.parameters, found.nonzeros, found.macs) == (6 + 2, 5 + 1, 4 * 4 * 6)


def test_operations_that_a_file_does_not_tell_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    weights = np.ones((2, 3, 1, 1), np.uint8)
    conv = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    open_size = _save(tmp_path / "a.onnx", [conv], ["n", 3, "h", "w"], w=weights)
    assert profile_file(open_size).macs is None
    own = helper.make_node("Own", ["y"], ["z"], domain="shop")
    unknown = _save(tmp_path / "b.onnx", [conv, own], ["n", 3, 4, 4], w=weights)
    assert profile_file(unknown).macs is None
    assert profile_file(open_size).parameters == profile_file(unknown).parameters == 6


def test_a_file_that_is_no_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.onnx: cannot be read"):
        profile_file(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network at all")
    with pytest.raises(ValueError, match=r"broken\.onnx: not a readable ONNX file"):
        profile_file(broken)
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=r"broken\.onnx: not an ONNX network"):
        profile_file(broken)
    weights = np.ones((2, 3, 1, 1), np.uint8)
    conv = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    proto = onnx.load(_save(broken, [conv], ["n", 3, 4, 4], w=weights))
    proto.graph.initializer[0].raw_data = b"\x01"
    onnx.save(proto, broken)
    with pytest.raises(ValueError, match=r"broken\.onnx: not a readable ONNX file"):
        profile_file(broken)
