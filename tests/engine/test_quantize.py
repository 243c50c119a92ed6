from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from engine.compress.inference import operators, session
from engine.compress.quantize import PRESETS, Preset, isa, onnx_accuracy, quantize_static


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_gives_an_integer_network_close_to_the_float_one(
    short_file: Path, images: np.ndarray, tmp_path: Path, preset: str
) -> None:
    result = quantize_static(short_file, tmp_path / "int8.onnx", images, preset)  # type: ignore[arg-type]
    assert result.bytes < 0.35 * short_file.stat().st_size
    executed = operators(result.path, as_arm=preset.startswith("arm64"))
    assert executed["QLinearConv"] == 9
    assert "Conv" not in executed
    x = images[:8].astype(np.float32) / 255
    (exact,) = session(short_file).run(None, {"images": x})
    (rough,) = session(result.path).run(None, {"images": x})
    assert rough.shape == exact.shape
    assert 0 < np.abs(rough - exact).max() < 0.2 * np.abs(exact).max()
    assert list(tmp_path.iterdir()) == [result.path]


def _weights(path: Path) -> tuple[set[int], np.ndarray]:
    proto = onnx.load(path)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    name = next(n for n in values if n.startswith("layer3.0.conv2.weight") and "quantized" in n)
    zeros = {v.dtype.num for n, v in values.items() if n.endswith("zero_point") and v.ndim == 0}
    return zeros, values[name]


def test_presets_differ_in_what_their_processor_asks_for(
    short_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    found = {
        name: _weights(quantize_static(short_file, tmp_path / name, images, name).path)
        for name in PRESETS
    }
    assert {np.dtype(np.uint8).num} == found["x86-vnni"][0] == found["x86"][0]
    assert found["arm64"][0] == {np.dtype(np.int8).num}
    assert np.abs(found["x86-vnni"][1].astype(int)).max() == 127
    assert np.abs(found["x86"][1].astype(int)).max() <= 64
    assert found["arm64-dotprod"][0] == {np.dtype(np.int8).num}
    # One scale for each channel: every channel uses its whole range.
    assert (np.abs(found["arm64"][1].astype(int)).max(axis=(1, 2, 3)) >= 126).all()


def test_the_same_input_gives_the_same_bytes(
    short_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    first, second = (
        quantize_static(short_file, tmp_path / name, images[:8]) for name in ("a", "b")
    )
    assert first.digest == second.digest


def test_the_preset_follows_the_machine() -> None:
    assert isa("x86_64", ["avx2", "avx512_vnni"]) == "x86-vnni"
    assert isa("x86_64", ["avx2", "AVX_VNNI"]) == "x86-vnni"
    assert isa("AMD64", ["avx2"]) == "x86"
    assert isa("aarch64", ["asimd", "asimddp"]) == "arm64-dotprod"
    assert isa("arm64", ["asimd"]) == isa("aarch64") == "arm64"
    with pytest.raises(ValueError, match="no int8 preset for 'riscv64'"):
        isa("riscv64")


def test_one_scale_for_all_channels_where_the_preset_says_so(
    short_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    preset = Preset(activations_signed=False, per_channel=False)
    _, weights = _weights(quantize_static(short_file, tmp_path / "m", images[:8], preset).path)
    assert np.abs(weights).max() == 127
    assert (np.abs(weights.astype(int)).max(axis=(1, 2, 3)) < 126).any()


def _graph(*nodes: onnx.NodeProto, opset: int = 18) -> bytes:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", opset)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def test_what_has_no_integer_kernel_is_named(images: np.ndarray, tmp_path: Path) -> None:
    node = onnx.helper.make_node
    path = tmp_path / "m.onnx"
    path.write_bytes(_graph(node("Softplus", ["images"], ["s"]), node("Sin", ["s"], ["logits"])))
    with pytest.raises(
        ValueError, match=r"nothing that ONNX Runtime computes in int8: .* Sin, Soft"
    ):
        quantize_static(path, tmp_path / "int8.onnx", images)
    path.write_bytes(_graph(node("Conv", ["images", "w"], ["logits"]), opset=12))
    with pytest.raises(ValueError, match="opset 12 has no int8 weights with a scale for each"):
        quantize_static(path, tmp_path / "int8.onnx", images)
    path.write_bytes(_graph(node("Conv", ["images", "w"], ["logits"])))
    with pytest.raises(ValueError, match="cannot read the calibration images"):
        quantize_static(path, tmp_path / "int8.onnx", images)
    assert list(tmp_path.iterdir()) == [path]


def test_a_quantized_network_is_not_quantized_again(
    short_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    result = quantize_static(short_file, tmp_path / "int8.onnx", images[:8])
    with pytest.raises(ValueError, match="already quantized"):
        quantize_static(result.path, tmp_path / "twice.onnx", images)
    assert not (tmp_path / "twice.onnx").exists()


def test_no_calibration_images_and_no_onnx_are_refused(
    short_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs calibration images"):
        quantize_static(short_file, tmp_path / "int8.onnx", images[:0])
    (tmp_path / "text.onnx").write_text("no model")
    for call in (
        lambda: quantize_static(tmp_path / "text.onnx", tmp_path / "int8.onnx", images),
        lambda: quantize_static(tmp_path / "absent.onnx", tmp_path / "int8.onnx", images),
    ):
        with pytest.raises(ValueError, match="not a readable ONNX file"):
            call()
    with pytest.raises(ValueError, match="ONNX Runtime cannot run it"):
        onnx_accuracy(tmp_path / "text.onnx", images, np.zeros(24, np.int64))


def test_accuracy_counts_what_the_network_gets_right(tmp_path: Path) -> None:
    # A network whose class is the mean brightness: 0 for dark, 1 for bright.
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["bright"]),
            helper.make_node("Sub", ["whole", "bright"], ["dark"]),
            helper.make_node("Concat", ["dark", "bright"], ["logits"], axis=1),
        ],
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("whole", TensorProto.FLOAT, [1, 1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    images = np.zeros((10, 1, 2, 2), np.uint8)
    images[4:] = 255
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0])
    assert onnx_accuracy(tmp_path / "m.onnx", images, labels, batch=3) == 0.7
    with pytest.raises(ValueError, match="accuracy needs images"):
        onnx_accuracy(tmp_path / "m.onnx", images[:0], labels[:0])


def test_sessions_run_on_one_thread(short_file: Path) -> None:
    options = session(short_file).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert torch.get_num_threads() == 1


def test_integers_are_summed_exactly_here_whatever_this_processor_has(tmp_path: Path) -> None:
    # 64 products of 255 x 127: two of them overflow 16 bits, which processors without VNNI add in.
    helper = onnx.helper
    weights = np.full((1, 64, 1, 1), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "nought"], ["f"]),
        helper.make_node("Conv", ["d", "f"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "wide", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "wide", "zero"], ["y"]),
    ]
    scale = 255.0 * 127 * 64 / 200
    constants = {
        "w": weights, "one": np.float32(1), "wide": np.float32(scale), "zero": np.uint8(0),
        "nought": np.int8(0),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64, 1, 1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 1, 1])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert operators(path)["QLinearConv"] == 1
    (found,) = session(path).run(None, {"x": np.full((1, 64, 1, 1), 255, np.float32)})
    assert found.item() == pytest.approx(200 * scale)
